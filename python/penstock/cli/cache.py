"""``pin``, ``unpin`` and ``cache …``: what is cached, why, and what stays."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli import output
from penstock.cli.examples import examples
from penstock.cli.group import command_group
from penstock.cli.options import AsJson, TreePath

if TYPE_CHECKING:
    from penstock.client import Client

PAGE_ENTRIES = 1000


def register(app: typer.Typer) -> None:
    """Adds the commands of this module."""
    app.command(epilog=examples("penstock pin /data/train", "penstock pin '/runs/exp1/step-*' --newest 2"))(pin)
    app.command(epilog=examples("penstock unpin /data/train", "penstock unpin '/runs/exp1/step-*'"))(unpin)
    group = command_group("cache", "Look into the cache.", "penstock cache ls", "penstock cache why /data/a.bin")
    group.command(epilog=examples("penstock cache ls", "penstock cache ls --json"))(ls)
    group.command(epilog=examples("penstock cache why /data/a.bin"))(why)
    group.command(epilog=examples("penstock cache prune --to 10GiB", "penstock cache prune --to 0"))(prune)
    app.add_typer(group)


def pin(
    path: TreePath,
    newest: Annotated[
        int | None,
        typer.Option(
            "--newest",
            min=1,
            metavar="K",
            help="Keep the newest K of a pattern such as '/runs/*/step-*', per directory.",
        ),
    ] = None,
) -> None:
    """Keep what is cached of a path.

    Eviction leaves everything below it alone. A pin fetches nothing by itself: `penstock preload` does.

    With --newest, PATH is a pattern in which * and ? stand for a part of one component. Of the files, directories and
    checkpoints that match, the newest K in each directory stay until newer ones exist: what was written here is cached
    once it is uploaded, and is never fetched to be read again.
    """
    from penstock.cli import connection
    from penstock.cli.paths import tree_path

    path = tree_path(path)
    connection.control().pin(path, newest)
    if newest is not None:
        output.say(f"keeps the newest {newest} of {path} cached")
        return
    output.say(f"pinned {path}; `penstock preload {path}` brings it into the cache")
    if not _is_there(path):
        output.warn("note: nothing has that name yet; if something should, look for a slip, and `penstock unpin` it")


def _is_there(path: str) -> bool:
    from penstock.cli import connection
    from penstock.errors import NotFoundError, PenstockError

    try:
        connection.client().stat(path)
    except NotFoundError:
        return False
    except PenstockError:
        return True  # whoever reads it is told
    return True


def unpin(path: TreePath) -> None:
    """Let eviction have a pinned path, or pattern, again."""
    from penstock.cli import connection
    from penstock.cli.paths import tree_path

    path = tree_path(path)
    connection.control().unpin(path)
    output.say(f"unpinned {path}")


def ls(as_json: AsJson = False) -> None:
    """List what is cached, by object."""
    from penstock.cli import connection
    from penstock.units import format_size

    entries = _entries(connection.client())
    if as_json:
        output.print_json_array(entries)
        return
    output.say(output.styled(f"{'CACHED':>10}  {'SIZE':>10}  {'STATE':8}  {'LAST USE':19}  OBJECT", "bold"))
    for entry in entries:
        state = ("pinned" if entry["pinned"] else "whole") if entry["complete"] else "partial"
        output.say(
            f"{format_size(entry['present_bytes']):>10}  {format_size(entry['size']):>10}  {state:8}  "
            f"{output.moment(entry['last_use_ms'] / 1000):19}  {entry['source']}/{entry['key']}"
        )


def why(path: TreePath, as_json: AsJson = False) -> None:
    """Say whether a file is cached, and why."""
    from penstock.cli import connection
    from penstock.cli.paths import tree_path
    from penstock.units import format_size

    path = tree_path(path)
    known = connection.client().why(path)
    if as_json:
        output.print_json(known)
        return
    rows = [
        ("path", known["path"]),
        ("object", known["object"]),
        ("version", known["version"]),
        ("cached", f"{format_size(known['cached_bytes'])} of {format_size(known['size'])}"),
        ("because", known["reason"]),
    ]
    for name, text in rows:
        output.say(f"{output.styled(name.ljust(10), 'bold')} {text}")


def prune(
    to: Annotated[str, typer.Option("--to", metavar="SIZE", help="Most bytes that may stay, as in 10GiB.")],
    as_json: AsJson = False,
) -> None:
    """Shrink the cache now.

    Least recently used first; pinned objects and open files stay.
    """
    from penstock.cli import connection
    from penstock.units import format_size, parse_size

    size = parse_size(to)
    pruned = connection.control().prune(size)
    if as_json:
        output.print_json(pruned)
        return
    output.say(f"freed {format_size(pruned['freed_bytes'])}, {format_size(pruned['remaining_bytes'])} remain")


def _entries(client: "Client") -> Iterator[dict[str, Any]]:
    import json

    after: int | None = None
    while True:
        page = json.loads(client.core.cache_entries(after, PAGE_ENTRIES))
        yield from page
        if len(page) < PAGE_ENTRIES:
            return
        after = page[-1]["number"]
