"""``conflicts …``: what a source did not take because of somebody else's version, and settling that."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli import output
from penstock.cli.examples import examples
from penstock.cli.group import command_group
from penstock.cli.options import AsJson, TreePath

if TYPE_CHECKING:
    from collections.abc import Sequence

    from penstock.client import Client, Conflict
    from penstock.client.conflicts import InSource, Keep

Operation = Annotated[
    str | None, typer.Option("--operation", metavar="ID", help="Which one of the path; default: the newest.")
]
Every = Annotated[bool, typer.Option("--all", help="Every one of the path.")]

COPIED_AT_ONCE = 1 << 20


def register(app: typer.Typer) -> None:
    """Adds the commands of this module."""
    group = command_group(
        "conflicts",
        "Look at conflicts, and settle them.",
        "penstock conflicts ls",
        "penstock conflicts keep-mine /runs/exp1/model.bin",
    )
    group.command(epilog=examples("penstock conflicts ls", "penstock conflicts ls /runs/exp1 --json"))(ls)
    group.command(
        epilog=examples(
            "penstock conflicts show /runs/exp1/model.bin",
            "penstock conflicts show /runs/exp1/model.bin --output mine.bin",
        )
    )(show)
    group.command("keep-mine", epilog=examples("penstock conflicts keep-mine /runs/exp1/model.bin"))(keep_mine)
    group.command(
        "keep-theirs",
        epilog=examples(
            "penstock conflicts keep-theirs /runs/exp1/model.bin",
            "penstock conflicts keep-theirs /runs/exp1/model.bin --all",
        ),
    )(keep_theirs)
    app.add_typer(group)


def ls(
    path: Annotated[str, typer.Argument(metavar="[PATH]", help="At or below it; default: everywhere.")] = "/",
    as_json: AsJson = False,
) -> None:
    """Show what is in conflict.

    Each is a file that was written here, or a removal, whose source had another version when it arrived there. What was
    written is kept on this machine until one of both is chosen.
    """
    from penstock.cli import connection
    from penstock.cli.paths import tree_path

    path = tree_path(path)
    client = connection.client()
    found = client.conflicts(path)
    if as_json:
        output.print_json([each.as_dict() for each in found])
        return
    if not found:
        output.say("nothing is in conflict" if path == "/" else f"nothing below {path} is in conflict")
    else:
        rows = [
            (
                each.path,
                _size(each),
                output.moment(each.written_ms / 1000),
                _in_source(each.source),
                each.operation,
                each.reason,
            )
            for each in found
        ]
        output.table(["PATH", "OURS", "WRITTEN", "SOURCE HAS", "OPERATION", "WHY"], rows, right=["OURS"])
    elsewhere = client.status()["stage"]["conflicts"] - len(found) if path == "/" else 0
    if elsewhere > 0:
        output.warn(f"{elsewhere:,} more are of sources that are not attached: attach them again to settle those")


def show(
    path: TreePath,
    operation: Operation = None,
    save_as: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Write what is kept into a new local file.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the conflicts of a path, newest first.

    With `--output`, write what was written here into a local file, to look at it, compare it or save it.
    """
    from penstock.cli import connection
    from penstock.cli.paths import tree_path

    path = tree_path(path)
    client = connection.client()
    found = _of_path(client, path, operation)
    if save_as is not None:
        written = _save(client, found[0], save_as)
        if not as_json:
            output.say(f"wrote {written} into {save_as}")
            return
    if as_json:
        output.print_json([each.as_dict() for each in found])
        return
    for each in found:
        rows = [
            ("operation", each.operation),
            ("ours", _size(each)),
            ("written", output.moment(each.written_ms / 1000)),
            ("source has", _in_source(each.source)),
            ("its version", (each.source.version if each.source else None) or "-"),
            ("why", f"{each.reason} [{each.code}]"),
        ]
        output.table(["CONFLICT", each.path], rows)


def keep_mine(path: TreePath, operation: Operation = None, every: Every = False) -> None:
    """Make what was written here the newest content.

    It is uploaded on condition of what the source has at this moment, which is asked; where a removal is in conflict,
    that is removed. Returns once this is safe on this machine: `penstock persist` waits for the upload. With `--all`,
    the newest is kept of several, and the older ones are given up.
    """
    settled = _settle(path, "mine", operation, every)
    for number, each in enumerate(settled):
        if number > 0:
            _say_discarded(each)
        elif each.size is None:
            output.say(f"{each.path}: kept the removal, written {_when(each)}; {_instead(each)} will be removed")
        else:
            output.say(f"{each.path}: kept ours, {_size(each)}, written {_when(each)}; it replaces {_instead(each)}")


def keep_theirs(path: TreePath, operation: Operation = None, every: Every = False) -> None:
    """Give up what was written here.

    The source keeps what it has. What is given up is gone for good: `penstock conflicts show --output FILE` saves it
    before.
    """
    for each in _settle(path, "theirs", operation, every):
        _say_discarded(each)


def _settle(path: str, keep: "Keep", operation: str | None, every: bool) -> "Sequence[Conflict]":
    from penstock.cli import connection
    from penstock.cli.paths import tree_path
    from penstock.client.conflicts import each_conflict
    from penstock.errors import InvalidInputError

    path = tree_path(path)
    if every and operation is not None:
        raise InvalidInputError(f"settle the conflict of {path}", "one operation is not all", "leave one of both out")
    client = connection.client()
    settled = client.resolve_conflict(path, keep, operation, every=every)
    if not settled:
        output.say(f"{path}: settled; the node was restarted meanwhile")
    left = [each for each in each_conflict(client.core, path, below=True, look=False) if each.path == path]
    if left:
        output.warn(f"{len(left):,} more of {path} in conflict: `penstock conflicts show {path}`")
    return settled


def _of_path(client: "Client", path: str, operation: str | None) -> "list[Conflict]":
    """The conflicts of exactly a path, newest first, at least one; of one operation where it is given."""
    from penstock.errors import NotFoundError

    found = [each for each in client.conflicts(path) if each.path == path]
    if operation is not None:
        found = [each for each in found if each.operation == operation]
    if not found:
        what = "nothing" if operation is None else f"nothing of operation {operation}"
        raise NotFoundError(
            f"show the conflict of {path}", f"{what} is in conflict there", f"`penstock conflicts ls {path}`"
        )
    return found[::-1]


def _save(client: "Client", conflict: "Conflict", target: Path) -> str:
    """Writes what is kept into a new file; how much that is. A file that is there is left alone."""
    import shutil

    from penstock.errors import AlreadyExistsError, DiskError
    from penstock.units import format_size

    action = f"write what is kept of {conflict.path} into {target}"
    with client.open_conflict(conflict.path, conflict.operation) as content:
        try:
            with target.open("xb") as file:
                shutil.copyfileobj(content, file, COPIED_AT_ONCE)
                return format_size(file.tell())
        except FileExistsError:
            raise AlreadyExistsError(action, "a file has that name", "name another one") from None
        except OSError as error:
            raise DiskError(action, error.strerror or str(error)) from None


def _say_discarded(conflict: "Conflict") -> None:
    what = "the removal" if conflict.size is None else f"ours, {_size(conflict)}"
    sys.stdout.write(f"{conflict.path}: discarded {what}, written {_when(conflict)}\n")


def _instead(conflict: "Conflict") -> str:
    match conflict.source:
        case None:
            return "what was written later here"
        case source if source.state == "nothing":
            return "nothing"
        case source:
            return f"what the source has, {_in_source(source)}"


def _in_source(source: "InSource | None") -> str:
    from penstock.units import format_size

    match source:
        case None:
            return "-"
        case source if source.state == "nothing":
            return "nothing"
        case source if source.state == "unknown":
            return f"unknown ({source.reason})"
        case source:
            return f"{format_size(source.size or 0)}, {output.moment((source.modified_ms or 0) / 1000)}"


def _size(conflict: "Conflict") -> str:
    from penstock.units import format_size

    return "removal" if conflict.size is None else format_size(conflict.size)


def _when(conflict: "Conflict") -> str:
    return output.moment(conflict.written_ms / 1000)
