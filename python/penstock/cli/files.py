"""``ls``, ``stat``, ``cat``, ``du``, ``cp``, ``rm``: what is in the tree, out of it and into it."""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli import output
from penstock.cli.examples import examples
from penstock.cli.options import AsJson, TreePath

if TYPE_CHECKING:
    from penstock.client import Client
    from penstock.errors import PenstockError

COPY_BUFFER_BYTES = 4 << 20
"""Read at a time: large enough for a cold file to come at the speed of the link."""


def register(app: typer.Typer) -> None:
    """Adds the commands of this module."""
    app.command(epilog=examples("penstock ls /data", "penstock ls -l /data", "penstock ls -r --json /data"))(ls)
    app.command(epilog=examples("penstock stat /data/a.bin", "penstock stat --json /data/a.bin"))(stat)
    app.command(epilog=examples("penstock cat /data/a.txt", "penstock cat /data/part-0 /data/part-1 > whole"))(cat)
    app.command(epilog=examples("penstock du /data", "penstock du --json /data"))(du)
    app.command(
        epilog=examples(
            "penstock cp /data/a.bin .",
            "penstock cp -r /data/train ./train",
            "penstock cp -r ./results /runs/results",
            "penstock cp /runs/a.pt /runs/best.pt",
        )
    )(cp)
    app.command(epilog=examples("penstock rm /runs/a.pt", "penstock rm -r /runs/exp1 /runs/exp2"))(rm)


def ls(
    path: TreePath = "/",
    long: Annotated[bool, typer.Option("-l", "--long", help="With size and time.")] = False,
    recursive: Annotated[bool, typer.Option("-r", "--recursive", help="Everything below it.")] = False,
    as_json: AsJson = False,
) -> None:
    """List a directory.

    Huge directories stream.
    """
    from penstock.cli import connection
    from penstock.cli.paths import tree_path

    path = tree_path(path)
    client = connection.client()
    entries = _entries(client, path, recursive=recursive)
    if as_json:
        output.print_json_array(_facts(entry) for entry in entries)
        return
    for entry in entries:
        name = entry.name + ("/" if entry.is_directory else "")
        if long:
            size = "-" if entry.is_directory else f"{entry.size:,}"
            output.say(f"{size:>18}  {output.moment(entry.modified_ms / 1000):19}  {name}")
        else:
            output.say(name)


def stat(path: TreePath, as_json: AsJson = False) -> None:
    """Show size, time, version and mode of one path.

    Mode and owner only where somebody has said them: by a program on a mount.
    """
    from penstock.cli import connection
    from penstock.cli.paths import tree_path
    from penstock.units import format_size

    path = tree_path(path)
    entry = connection.client().stat(path)
    facts = {**_facts(entry), "path": path}
    facts.pop("name")
    if as_json:
        output.print_json(facts)
        return
    rows = [("path", path), ("kind", entry.kind)]
    if not entry.is_directory:
        rows += [
            ("size", f"{entry.size:,} bytes ({format_size(entry.size)})"),
            ("modified", output.moment(entry.modified_ms / 1000)),
            ("version", entry.version or "-"),
        ]
        if entry.mode is not None:
            rows.append(("mode", f"{entry.mode:03o}"))
        if entry.uid is not None or entry.gid is not None:
            owner, group = ("-" if one is None else one for one in (entry.uid, entry.gid))
            rows.append(("owner", f"{owner}:{group}"))
    for name, text in rows:
        output.say(f"{output.styled(name.ljust(10), 'bold')} {text}")


def cat(paths: Annotated[list[str], typer.Argument(metavar="PATH", help="Absolute paths in the tree.")]) -> None:
    """Write files to standard output."""
    from penstock.cli import connection
    from penstock.cli.paths import tree_path

    paths = [tree_path(path) for path in paths]
    client = connection.client()
    buffer = memoryview(bytearray(COPY_BUFFER_BYTES))
    for path in paths:
        with client.open(path) as stream:
            while size := stream.readinto(buffer):
                sys.stdout.buffer.write(buffer[:size])
    sys.stdout.flush()


def du(path: TreePath = "/", as_json: AsJson = False) -> None:
    """Sum up sizes and files below a path.

    By its children; asks no more of the source than a listing.
    """
    from penstock.cli import connection
    from penstock.cli.paths import tree_path
    from penstock.units import format_size

    path = tree_path(path)
    totals: dict[str, list[int]] = {}
    for entry in _entries(connection.client(), path, recursive=True):
        child, _, below = entry.name.partition("/")
        row = totals.setdefault(child + ("/" if below or entry.is_directory else ""), [0, 0])
        if not entry.is_directory:
            row[0] += entry.size
            row[1] += 1
    size = sum(row[0] for row in totals.values())
    files = sum(row[1] for row in totals.values())
    if as_json:
        children = [{"name": name, "size": row[0], "files": row[1]} for name, row in totals.items()]
        output.print_json({"path": path, "size": size, "files": files, "children": children})
        return
    shown = [(format_size(row[0]), f"{row[1]:,}", name) for name, row in totals.items()]
    shown.append((format_size(size), f"{files:,}", f"{path} (total)"))
    output.table(["SIZE", "FILES", "NAME"], shown, right=["SIZE", "FILES"])


def cp(
    sources: Annotated[list[str], typer.Argument(metavar="PATH", help="Paths in the tree, or local ones.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A file or directory, in the tree or local.")],
    recursive: Annotated[bool, typer.Option("-r", "--recursive", help="Directories too.")] = False,
    force: Annotated[bool, typer.Option("-f", "--force", help="Replace files that exist.")] = False,
) -> None:
    """Copy files out of the tree, into it or within it.

    A file appears whole or not at all; on a local disk with the time that it has in the source. A file that fails does
    not stop the others: each is named, and the command fails in the end.

    A relative path is local. An absolute one is in the tree where something is attached at or above it;
    penstock:///PATH and file:///PATH say which is meant. What is copied into the tree is safe as the attachment's
    durability says; `penstock persist` waits for the source.
    """
    from penstock.cli import connection
    from penstock.cli.copy import Copy

    copy = Copy(connection.client(), recursive=recursive, force=force, report=_tell)
    output.say(copy.run(sources, target))
    if copy.failed:
        raise typer.Exit(output.EXIT_FAILED)


def rm(
    paths: Annotated[list[str], typer.Argument(metavar="PATH", help="Absolute paths in the tree.")],
    recursive: Annotated[bool, typer.Option("-r", "--recursive", help="Directories too.")] = False,
) -> None:
    """Remove files.

    From the tree at once, and from their source: nothing brings them back. A file that cannot be removed does not stop
    the others: each is named, and the command fails in the end.
    """
    from penstock.cli import connection
    from penstock.cli.paths import tree_path
    from penstock.cli.remove import Remove

    checked = [tree_path(path) for path in paths]
    remove = Remove(connection.client(), recursive=recursive, report=_tell)
    output.say(remove.run(checked))
    if remove.failed:
        raise typer.Exit(output.EXIT_FAILED)


def _tell(error: "PenstockError") -> None:
    output.warn(output.error_line(error))


def _entries(client: "Client", path: str, *, recursive: bool) -> Iterator[Any]:
    from penstock.errors import NotDirectoryError

    try:
        yield from client.walk(path) if recursive else client.list(path)
    except NotDirectoryError:
        yield client.stat(path)


def _facts(entry: Any) -> dict[str, Any]:
    return {
        "name": entry.name,
        "kind": entry.kind,
        "size": entry.size,
        "modified": None if entry.is_directory else entry.modified_ms / 1000,
        "version": entry.version,
        "mode": None if entry.mode is None else f"{entry.mode:03o}",
        "uid": entry.uid,
        "gid": entry.gid,
    }
