"""``ckpt …``: checkpoints that appear as a whole: which there are, where each one is, and having them back."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli import output
from penstock.cli.examples import examples
from penstock.cli.group import command_group
from penstock.cli.options import AsJson, Timeout, TreePath, Wait

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from penstock.client import Client
    from penstock.client.sets import SetFile, SetInfo

LOOK_EVERY_S = 1.0
"""How often `watch` looks."""

LEFT_AFTER_S = 24 * 3600.0
"""What was begun so long ago and not published is taken for left behind."""

COPIED_AT_ONCE = 4 << 20

SHOWN_STATES = {
    "staged": "staged here",
    "uploading": "uploading",
    "source": "in the source",
    "conflict": "conflict",
    "unpublished": "not published",
}


def register(app: typer.Typer) -> None:
    """Adds the commands of this module."""
    group = command_group(
        "ckpt",
        "See, keep and restore whole checkpoints.",
        "penstock ckpt ls /runs/exp1",
        "penstock ckpt restore /runs/exp1/step-1000 ./step-1000 --verify",
    )
    group.command(epilog=examples("penstock ckpt ls /runs/exp1", "penstock ckpt ls /runs/exp1 --json"))(ls)
    group.command(epilog=examples("penstock ckpt watch /runs/exp1"))(watch)
    group.command(
        epilog=examples("penstock ckpt persist /runs/exp1", "penstock ckpt persist /runs/exp1 --timeout 10min")
    )(persist)
    group.command(
        epilog=examples(
            "penstock ckpt restore /runs/exp1/step-1000 ./step-1000",
            "penstock ckpt restore /runs/exp1/step-1000 --verify",
        )
    )(restore)
    group.command(
        epilog=examples("penstock ckpt gc /runs/exp1 --keep 3 --dry-run", "penstock ckpt gc /runs/exp1 --keep 3")
    )(gc)
    app.add_typer(group)


def ls(path: TreePath, as_json: AsJson = False) -> None:
    """Show the checkpoints at and below a path.

    Each is a set of files that was committed as a whole: how much it is, where it is, and what was promised when it was
    committed. KEPT are those that stay in the cache as the newest: `penstock pin --newest`. `not published` is what is
    being written, or what a program that ended left behind.
    """
    from penstock.cli import connection
    from penstock.cli.paths import tree_path

    path = tree_path(path)
    client = connection.client()
    found = client.sets(path)
    kept = {path for each in client.status()["kept_newest"] for path in each["kept"]}
    if as_json:
        output.print_json([{**each.as_dict(), "kept": each.path in kept} for each in found])
    elif not found:
        output.say(f"no checkpoint below {path} was committed as a whole")
    else:
        _table(found, kept)


def watch(path: TreePath) -> None:
    """Follow checkpoints until the source has them.

    Shows how much of each is in the source, and ends when all of what is published is.
    """
    from penstock.cli import connection
    from penstock.cli.backlog import pressure, summary
    from penstock.cli.paths import tree_path

    path = tree_path(path)
    client = connection.client()
    told = ""
    while True:
        found = [each for each in client.sets(path) if each.state in ("staged", "uploading")]
        line = "; ".join(f"{each.path} {_state(each)}" for each in found)
        if line:
            stage = client.status()["stage"]
            line = f"{line} ({pressure(stage)}{summary(stage)})"
        if sys.stdout.isatty():
            sys.stdout.write(f"\r{line}\x1b[K")
            sys.stdout.flush()
        elif line and line != told:
            print(line, flush=True)
        told = line
        if not found:
            break
        time.sleep(LOOK_EVERY_S)
    if sys.stdout.isatty():
        sys.stdout.write("\r\x1b[K")
    conflicts = [each for each in client.sets(path) if each.state == "conflict"]
    for each in conflicts:
        output.warn(f"{each.path} is in conflict: {each.failure}")
    if conflicts:
        raise typer.Exit(output.EXIT_FAILED)
    output.say(f"the source has every checkpoint below {path}")


def persist(path: TreePath, timeout: Timeout = None, wait: Wait = True) -> None:
    """Wait until the source has a checkpoint.

    As `penstock persist` of that path.
    """
    from penstock.cli.persist import persist as bring

    bring(path, timeout, wait)


def restore(
    path: TreePath,
    target: Annotated[
        Path | None, typer.Argument(metavar="[DIRECTORY]", help="A local directory that is new or empty.")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Read every byte and compare it with the manifest.")] = False,
    as_json: AsJson = False,
) -> None:
    """Copy a checkpoint to a local directory.

    With `--verify`, names, sizes and checksums are compared with what the manifest says, and nothing is left in the
    directory if they differ; without a directory, nothing is copied.
    """
    from penstock.cli import connection
    from penstock.cli.paths import tree_path
    from penstock.errors import InvalidInputError
    from penstock.units import format_count, format_size

    path = tree_path(path)
    if target is None and not verify:
        raise InvalidInputError(f"restore {path}", "nowhere to copy it to", "name a local directory, or add --verify")
    client = connection.client()
    files = list(client.set_files(path))
    _check_names(client, path, files)
    if target is not None:
        _check_target(path, target)
    with _cleaned(target) as made:
        for file in files:
            _restore_file(client, path, file, made, verify=verify)
    amount = {"files": len(files), "size_bytes": sum(file.size for file in files), "verified": verify}
    if as_json:
        output.print_json({"path": path, **amount})
        return
    what = f"{format_count(len(files), 'file')}, {format_size(sum(file.size for file in files))}"
    done = "verified" if target is None else f"restored into {target}{', verified' if verify else ''}"
    output.say(f"{path}: {done}: {what}")


def gc(
    path: TreePath,
    keep: Annotated[int, typer.Option("--keep", min=1, metavar="N", help="Checkpoints to keep, the newest.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
) -> None:
    """Remove old checkpoints, each as a whole.

    Of the checkpoints in each directory at and below the path, the newest stay. Only what was committed as a whole is
    removed, and what was begun more than a day ago and never published. Files that belong to no checkpoint stay.
    """
    from penstock.cli import connection
    from penstock.cli.paths import tree_path

    path = tree_path(path)
    client = connection.client()
    found = client.sets(path)
    old, left = to_remove(found, keep, time.time())
    verb = "would remove" if dry_run else "removed"
    for each in old:
        if not dry_run:
            client.remove_set(each.path)
        output.say(f"{verb} {each.path}, {_amount(each)}")
    for each in left:
        if not dry_run:
            client.core.discard_set(each.path, each.id, True)
        output.say(f"{verb} what was begun in {each.path} and never published, {_amount(each)}")
    if not old and not left:
        output.say("nothing to remove")


def to_remove(found: "Sequence[SetInfo]", keep: int, now_s: float) -> "tuple[list[SetInfo], list[SetInfo]]":
    """What `gc` removes: the checkpoints of each directory but the newest, and what was left behind."""
    by_directory: dict[str, list[SetInfo]] = {}
    for each in found:
        if each.state in ("staged", "uploading", "source"):
            by_directory.setdefault(each.path.rpartition("/")[0], []).append(each)
    newest_last: Callable[[SetInfo], tuple[int, str]] = lambda each: (each.created_ms, each.path)  # noqa: E731
    old = [each for sets in by_directory.values() for each in sorted(sets, key=newest_last)[:-keep]]
    left = [each for each in found if each.state == "unpublished" and now_s - each.created_ms / 1000 > LEFT_AFTER_S]
    return old, left


def _table(found: "Sequence[SetInfo]", kept: "set[str]") -> None:
    from penstock.units import format_duration, format_size

    rows = [
        (
            each.path,
            f"{each.files:,}",
            format_size(each.size_bytes),
            format_duration(max(0.0, time.time() - each.created_ms / 1000)),
            _state(each),
            each.durability or "-",
            "yes" if each.path in kept else "-",
        )
        for each in found
    ]
    titles = ["CHECKPOINT", "FILES", "SIZE", "AGE", "WHERE", "PROMISED", "KEPT"]
    output.table(titles, rows, right=["FILES", "SIZE", "AGE"])
    for each in found:
        if each.failure:
            output.warn(f"{each.path}: {each.failure}")


def _state(each: "SetInfo") -> str:
    shown = SHOWN_STATES[each.state]
    if each.state == "uploading" and each.size_bytes:
        return f"{shown} {100 * (each.size_bytes - each.left_bytes) // each.size_bytes} %"
    return shown


def _amount(each: "SetInfo") -> str:
    from penstock.units import format_count, format_size

    return f"{format_count(each.files, 'file')}, {format_size(each.size_bytes)}"


def _check_names(client: "Client", path: str, files: "Sequence[SetFile]") -> None:
    from penstock.errors import CorruptError

    shown = {entry.name: entry.size for entry in client.walk(path) if not entry.is_directory}
    told = {file.path: file.size for file in files}
    if shown != told:
        differ = sorted({name for name, _ in shown.items() ^ told.items()})
        raise CorruptError(f"restore {path}", f"it is not what its manifest says: {', '.join(differ[:3])} differ")


def _check_target(path: str, target: Path) -> None:
    from penstock.errors import AlreadyExistsError, NotDirectoryError

    if target.exists() and not target.is_dir():
        raise NotDirectoryError(f"restore {path} into {target}", "it is a file", "name a new directory")
    if target.is_dir() and any(target.iterdir()):
        raise AlreadyExistsError(f"restore {path} into {target}", "something is in it", "name a new directory")


class _cleaned:  # noqa: N801 - reads as the context manager that it is
    """A directory beside the target, which takes its place at the end: after a failure nothing is left."""

    def __init__(self, target: Path | None) -> None:
        self._target = target
        self._made = None if target is None else target.with_name(f".{target.name}.restoring")

    def __enter__(self) -> Path | None:
        import shutil

        if self._made is not None:
            shutil.rmtree(self._made, ignore_errors=True)
            self._made.mkdir(parents=True)
        return self._made

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        import shutil

        if self._made is None or self._target is None:
            return
        if kind is not None:
            shutil.rmtree(self._made, ignore_errors=True)
            return
        if self._target.is_dir():
            self._target.rmdir()
        self._made.rename(self._target)


def _restore_file(client: "Client", path: str, file: "SetFile", made: Path | None, *, verify: bool) -> None:
    """Copies a file of a set, and compares it with what the manifest says."""
    from contextlib import nullcontext

    from penstock._native import crc32c
    from penstock.errors import CorruptError, DiskError

    target = None if made is None else made / file.path
    try:
        if target is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
        total, size = 0, 0
        with client.open(f"{path}/{file.path}") as source, target.open("wb") if target else nullcontext() as copy:
            while chunk := source.read(COPIED_AT_ONCE):
                total, size = (crc32c(chunk, total) if verify else 0), size + len(chunk)
                if copy is not None:
                    copy.write(chunk)
    except OSError as error:
        raise DiskError(f"restore {path}/{file.path}", error.strerror or str(error)) from None
    if size != file.size or (verify and f"{total:08x}" != file.crc32c):
        raise CorruptError(
            f"restore {path}/{file.path}",
            f"its content is not what the manifest says: {size:,} bytes, CRC32C {total:08x}, and not "
            f"{file.size:,} bytes, {file.crc32c}",
        )
