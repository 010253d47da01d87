"""``snapshot …``: frozen states of paths, and mounting them."""

import sys
from typing import Annotated

import typer

from penstock.cli import mount as mounting
from penstock.cli import output
from penstock.cli.examples import examples
from penstock.cli.group import command_group
from penstock.cli.options import AsJson, TreePath

Name = Annotated[str, typer.Argument(metavar="NAME", help="As `penstock snapshot ls` shows it.")]

_SIGNS = {"added": "+", "removed": "-", "changed": "~"}


def register(app: typer.Typer) -> None:
    """Adds the commands of this module."""
    group = command_group(
        "snapshot",
        "Freeze paths, and mount what was frozen.",
        "penstock snapshot create /data/train --name train-v1",
        "penstock snapshot mount train-v1 /mnt/train",
    )
    group.command(epilog=examples("penstock snapshot create /data/train --name train-v1"))(create)
    group.command(epilog=examples("penstock snapshot ls", "penstock snapshot ls --json"))(ls)
    group.command(epilog=examples("penstock snapshot show train-v1", "penstock snapshot show train-v1 --files --json"))(
        show
    )
    group.command(epilog=examples("penstock snapshot diff train-v1 train-v2", "penstock snapshot diff train-v1"))(diff)
    group.command(epilog=examples("penstock snapshot rm train-v1"))(rm)
    group.command(
        epilog=examples(
            "penstock snapshot mount train-v1 /mnt/train",
            "penstock snapshot mount train-v1 /mnt/train --owner 1000:1000 --allow-other",
        )
    )(mount)
    app.add_typer(group)


def create(
    path: TreePath,
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="How to call it.")],
    as_json: AsJson = False,
) -> None:
    """Freeze a path: pin every version as it is now.

    Nothing is copied. Where a pinned version is gone from the source and the cache, reading it fails.
    """
    from penstock.cli import connection
    from penstock.cli.paths import tree_path
    from penstock.policies.snapshots import check_name
    from penstock.units import format_count, format_size

    made = connection.control().create_snapshot(tree_path(path), check_name(name))
    if as_json:
        output.print_json(made)
        return
    files, size = format_count(made["files"], "file"), format_size(made["size_bytes"])
    output.say(f"made snapshot {name} of {made['path']}: {files}, {size}")


def ls(as_json: AsJson = False) -> None:
    """Show every snapshot."""
    from penstock.cli import connection
    from penstock.units import format_size

    known = connection.control().snapshots()
    if as_json:
        output.print_json(known)
        return
    if not known:
        output.say("there is no snapshot; `penstock snapshot create PATH --name NAME`")
        return
    rows = [
        (each["name"], "", "", "", "", each["problem"])
        if each["problem"]
        else (
            each["name"],
            each["path"],
            f"{each['files']:,}",
            format_size(each["size_bytes"]),
            output.moment(each["created_ms"] / 1000),
            "",
        )
        for each in known
    ]
    output.table(["NAME", "PATH", "FILES", "SIZE", "MADE", "PROBLEM"], rows, right=["FILES", "SIZE"])


def show(
    name: Name,
    files: Annotated[bool, typer.Option("--files", help="Every file with size, time and version.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Read the whole document and check it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a snapshot says of itself."""
    from penstock.cli import connection
    from penstock.units import format_size

    control = connection.control()
    known = control.snapshot(name, check=check)
    if files and as_json:
        output.print_json_array(control.snapshot_files(name))
    elif files:
        for each in control.snapshot_files(name):
            size = format_size(each["size"])
            line = f"{size:>10}  {output.moment(each['modified_ms'] / 1000)}  {each['version']}  {each['path']}"
            sys.stdout.write(line + "\n")
    elif as_json:
        output.print_json(known)
    else:
        source = known["attachment"]["source"]
        rows = [
            ("path", known["path"]),
            ("made", output.moment(known["created_ms"] / 1000)),
            ("files", f"{known['files']:,}"),
            ("size", format_size(known["size_bytes"])),
            ("source", " ".join(f"{key}={value}" for key, value in source.items() if value is not None)),
            ("prefix", known["prefix"] or "-"),
            ("document", f"{known['file']} ({format_size(known['document_bytes'])}, checksum {known['checksum']})"),
        ]
        output.table(["SNAPSHOT", name], rows)


def diff(
    name: Name,
    other: Annotated[str | None, typer.Argument(metavar="[OTHER]", help="Default: the tree as it is now.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what is different in another snapshot.

    Without one, in the tree as it is now: its source is listed anew. `+` was added, `-` removed, `~` changed.
    """
    from penstock.cli import connection
    from penstock.units import format_count

    found = connection.control().snapshot_diff(name, other)
    if as_json:
        output.print_json(found)
        return
    for change, path in found["first"]:
        output.say(f"{_SIGNS[change]} {path}")
    total = found["added"] + found["removed"] + found["changed"]
    if total > len(found["first"]):
        output.say(f"… and {format_count(total - len(found['first']), 'file')} more")
    output.say(f"{found['added']:,} added, {found['removed']:,} removed, {found['changed']:,} changed")


def rm(name: Name) -> None:
    """Forget a snapshot.

    What is cached of it stays until it is evicted.
    """
    from penstock.cli import connection

    connection.control().remove_snapshot(name)
    output.say(f"removed snapshot {name}")


def mount(
    name: Name,
    target: mounting.Empty,
    foreground: mounting.Foreground = False,
    allow_other: mounting.AllowOther = False,
    owner: mounting.Owner = None,
    file_mode: mounting.FileMode = None,
    directory_mode: mounting.DirectoryMode = None,
    umask: mounting.Umask = None,
    as_json: AsJson = False,
) -> None:
    """Show a snapshot as a directory, for every program.

    Where the kernel can, it mounts an image: names and warm reads then never leave it.

    It stays until `penstock umount`, also over restarts of the node.
    """
    from penstock.policies.mounts import MountOptions, request

    options = MountOptions(
        owner=owner, file_mode=file_mode, directory_mode=directory_mode, umask=umask, allow_other=allow_other
    )
    body = request(mounting.absolute(target), snapshot=name, **options)
    mounting.show(body, foreground=foreground, as_json=as_json)
