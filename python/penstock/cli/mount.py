"""``mount``, ``umount``, ``mounts``: the tree as a directory, for programs that know nothing of Penstock."""

import os
import sys
from typing import Annotated, Any

import typer

from penstock.cli import output
from penstock.cli.examples import examples
from penstock.cli.options import AsJson

WATCH_INTERVAL_S = 1.0
"""How often a mount in the foreground is looked for."""

REASONS_MAX = 3
"""So many kernel mounts of one mount say why they are read the way they are; `--json` has all of them."""

Target = Annotated[str, typer.Argument(metavar="DIRECTORY", help="The directory that shows the tree.")]
Empty = Annotated[str, typer.Argument(metavar="DIRECTORY", help="An empty directory that will show it.")]
Foreground = Annotated[
    bool, typer.Option("--foreground", help="Stay here and unmount at Ctrl-C or SIGTERM: for containers.")
]
AllowOther = Annotated[bool, typer.Option("--allow-other", help="Let every user in, as far as owner and modes do.")]
Owner = Annotated[str | None, typer.Option(metavar="UID:GID", help="Whom files belong to; default: the node's user.")]
FileMode = Annotated[
    str | None, typer.Option(metavar="MODE", help="Rights of files.", show_default="0444; 0644 where they are written")
]
DirectoryMode = Annotated[
    str | None,
    typer.Option(metavar="MODE", help="Rights of directories.", show_default="0555; 0755 where files are written"),
]
Umask = Annotated[str | None, typer.Option(metavar="MODE", help="Rights taken from both.")]


def register(app: typer.Typer) -> None:
    """Adds the commands of this module."""
    app.command(
        epilog=examples(
            "penstock mount /mnt/lake",
            "penstock mount /mnt/data --path /data --owner 1000:1000 --allow-other",
            "penstock mount /mnt/lake --foreground",
        )
    )(mount)
    app.command(epilog=examples("penstock umount /mnt/lake", "penstock umount /mnt/lake --lazy"))(umount)
    app.command(epilog=examples("penstock mounts", "penstock mounts --json"))(mounts)


def mount(
    target: Empty,
    path: Annotated[str, typer.Option(metavar="PATH", help="The part of the tree that is shown.")] = "/",
    foreground: Foreground = False,
    allow_other: AllowOther = False,
    owner: Owner = None,
    file_mode: FileMode = None,
    directory_mode: DirectoryMode = None,
    umask: Umask = None,
    as_json: AsJson = False,
) -> None:
    """Show the tree as a directory, for every program.

    It stays until `penstock umount`, also over restarts of the node. Files are written there where they are attached
    with --writable; the rest is read-only.
    """
    from penstock.cli.paths import tree_path
    from penstock.policies.mounts import MountOptions, request

    options = MountOptions(
        owner=owner, file_mode=file_mode, directory_mode=directory_mode, umask=umask, allow_other=allow_other
    )
    show(request(absolute(target), tree_path(path), **options), foreground=foreground, as_json=as_json)


def show(body: dict[str, Any], *, foreground: bool, as_json: bool) -> None:
    """Mounts and says so; in the foreground, stays."""
    from penstock.cli import connection

    if foreground:
        _stay(body)
        return
    mounted = connection.control().mount(body)
    if as_json:
        output.print_json(mounted)
        return
    output.say(f"mounted {_what(mounted)} at {mounted['target']} ({_ways(mounted)})")
    if mounted["problem"]:
        output.warn(f"note: {mounted['problem']}")


def umount(
    target: Target,
    lazy: Annotated[
        bool, typer.Option("--lazy", help="Also while a process uses it: out of sight now, gone when that ends.")
    ] = False,
) -> None:
    """Take a mount away.

    Where a process uses it, this fails and names the process.
    """
    from penstock.cli import connection

    target = absolute(target)
    connection.control().umount(target, lazy=lazy)
    output.say(f"unmounted {target}")


def mounts(as_json: AsJson = False) -> None:
    """Show where the tree is mounted, and how it is read."""
    from penstock.cli import connection

    known = connection.control().mounts()
    if as_json:
        output.print_json(known)
        return
    if not known:
        output.say("nothing is mounted; `penstock mount /mnt/lake`")
        return
    rows = [(each["target"], _what(each), _ways(each), _state(each)) for each in known]
    output.table(["TARGET", "SHOWS", "WAY", "STATE"], rows)


def absolute(target: str) -> str:
    """A directory as it is asked for, from `/` on."""
    # Links are followed by who may touch a mount point; a dead mount would hold this command up, too.
    return os.path.abspath(target)  # noqa: PTH100


def _what(mounted: dict[str, Any]) -> str:
    return f"snapshot {mounted['snapshot']}" if mounted["snapshot"] else str(mounted["path"])


def _ways(mounted: dict[str, Any]) -> str:
    return ", ".join(sorted({each["way"] for each in mounted["kernel_mounts"] if each["way"]})) or "-"


def _state(mounted: dict[str, Any]) -> str:
    if mounted["problem"]:
        return f"{mounted['state']}: {mounted['problem']}"
    if any(not each["alive"] for each in mounted["kernel_mounts"]):
        return "dead, being mounted again"
    # A root with others in it only leads to them.
    telling = mounted["kernel_mounts"][1:] or mounted["kernel_mounts"]
    reasons = [f"{each['path']}: {each['why']}" for each in telling[:REASONS_MAX]]
    return "; ".join([mounted["state"], *reasons]) + ("; …" if len(telling) > REASONS_MAX else "")


def _stay(body: dict[str, Any]) -> None:
    """Mounts, waits for a signal, unmounts; ends with an error where the mount vanishes meanwhile."""
    import signal
    import threading

    from penstock.cli import connection
    from penstock.errors import BusyError, NotFoundError, UnavailableError

    told = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: told.set())
    control = connection.control()
    mounted = control.mount(body, reuse=True)
    target = mounted["target"]
    output.say(f"mounted {_what(mounted)} at {target}; Ctrl-C unmounts")
    sys.stdout.flush()
    while not told.wait(WATCH_INTERVAL_S):
        try:
            known = next((each for each in control.mounts() if each["target"] == target), None)
        except UnavailableError:
            raise UnavailableError(f"show the tree at {target}", "the node ended", "`penstock mount` again") from None
        if known is None:
            raise UnavailableError(f"show the tree at {target}", "somebody unmounted it", "`penstock mount` again")
    try:
        control.umount(target)
    except BusyError as error:
        output.warn(f"note: {error.reason}; unmounted all the same")
        control.umount(target, lazy=True)
    except NotFoundError:
        pass  # somebody was quicker
    output.say(f"unmounted {target}")
