"""Copies files out of the tree, into it and within it: each appears whole or not at all."""

from __future__ import annotations

import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from penstock.cli.places import Place, Places, check_apart
from penstock.errors import (
    AlreadyExistsError,
    DiskError,
    InvalidInputError,
    IsDirectoryError,
    NoSpaceError,
    NotFoundError,
    PenstockError,
    PermissionDeniedError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from penstock.client import Client

__all__ = ["Copy"]

BUFFER_BYTES = 4 << 20
SMALL_BYTES = 1 << 20
"""Files of the tree up to here travel in batches: one round trip for many of them."""
BATCH_FILES = 64

Report = Callable[[PenstockError], None]
"""Told of each file that could not be copied."""


class _File(NamedTuple):
    """One file to be copied."""

    source: Place
    target: Place
    size: int
    modified_s: float
    content: Any = None
    """Its bytes where they are here already."""


class Copy:
    """One ``cp``: many sources, one target. A file that fails stops no other.

    Attributes:
        failed: how many files or directories could not be copied; each was reported.
    """

    def __init__(self, client: Client, *, recursive: bool, force: bool, report: Report) -> None:
        self._client = client
        self._places = Places(client)
        self._recursive = recursive
        self._force = force
        self._report = report
        self._counting = threading.Lock()
        self._files = 0
        self._bytes = 0
        self.failed = 0

    def run(self, sources: list[str], target: str) -> str:
        """Copies everything and returns one line about it.

        Raises:
            InvalidInputError: everything is local; something would be copied onto or into itself; or several sources
                have a target that is no directory. Nothing was copied then.
        """
        begun = time.monotonic()
        pairs = self._pairs(sources, target)
        try:
            self._copy_all(file for source, place in pairs for file in self._files_of(source, place))
        finally:
            self._clear_progress()
        from penstock.units import format_count, format_duration, format_rate, format_size

        elapsed = time.monotonic() - begun
        rate = format_rate(self._bytes / elapsed) if elapsed > 0 else "-"
        copied = f"{format_count(self._files, 'file')}, {format_size(self._bytes)}"
        failed = f"; {self.failed:,} failed" if self.failed else ""
        return f"copied {copied} in {format_duration(elapsed)} ({rate}){failed}"

    def _pairs(self, sources: list[str], text: str) -> list[tuple[Place, Place]]:
        """Each source with the name that it gets."""
        target = self._places.target(text)
        into = text.endswith("/") or self._is_directory(target)
        if len(sources) > 1 and not into:
            # A directory of the tree is there as soon as it has a file.
            if not target.in_tree or self._is_there(target):
                advice = "make it first, or copy one path"
                raise InvalidInputError(f"copy to {text}", "it is not a directory", advice)
            into = True
        pairs: list[tuple[Place, Place]] = []
        for each in sources:
            source = self._places.source(each, target)
            action = f"copy {each} to {text}"
            if not source.in_tree and not target.in_tree:
                advice = "give one path where something is attached, as in /data/a or penstock:///data/a"
                raise InvalidInputError(action, "both are on the local disk", advice)
            place = target / source.name if into and source.name else target
            check_apart(self._places.identity(source), self._places.identity(place), action)
            if place in (other for _, other in pairs):
                raise InvalidInputError(action, f"two of them would be {place.path}", "copy them one by one")
            pairs.append((source, place))
        return pairs

    def _is_directory(self, place: Place) -> bool:
        if not place.in_tree:
            return Path(place.path).is_dir()
        try:
            return bool(self._client.stat(place.path).is_directory)
        except NotFoundError:
            return False

    def _is_there(self, place: Place) -> bool:
        try:
            self._client.stat(place.path)
        except NotFoundError:
            return False
        return True

    def _files_of(self, source: Place, target: Place) -> Iterator[_File]:
        """Every file of one source; what it cannot have is reported."""
        try:
            if source.in_tree:
                yield from self._tree_files(source, target)
            else:
                yield from self._local_files(source, target)
        except PenstockError as error:
            self._fail(error)

    def _tree_files(self, source: Place, target: Place) -> Iterator[_File]:
        entry = self._client.stat(source.path)
        if not entry.is_directory:
            yield _File(source, target, entry.size, entry.modified_ms / 1000)
            return
        self._check_recursive(source)
        _make_directory(target)
        for batch in _batches(self._client.walk(source.path)):
            yield from self._read_small(list(self._placed(source, batch, target)))

    def _placed(self, source: Place, batch: list[Any], target: Place) -> Iterator[_File]:
        for entry in batch:
            try:
                place = _inside(target, entry.name)
                if entry.is_directory:
                    _make_directory(place)
                else:
                    yield _File(source / entry.name, place, entry.size, entry.modified_ms / 1000)
            except PenstockError as error:
                self._fail(error)

    def _read_small(self, files: list[_File]) -> Iterator[_File]:
        small = [file for file in files if file.size <= SMALL_BYTES]
        contents = self._client.read_many([file.source.path for file in small], return_errors=True)
        for file, content in zip(small, contents, strict=True):
            if isinstance(content, PenstockError):
                self._fail(content)
            else:
                yield file._replace(content=content)
        yield from (file for file in files if file.size > SMALL_BYTES)

    def _local_files(self, source: Place, target: Place) -> Iterator[_File]:
        facts = _local_facts(source)
        if stat.S_ISREG(facts.st_mode):
            yield _File(source, target, facts.st_size, facts.st_mtime)
            return
        if not stat.S_ISDIR(facts.st_mode):
            raise _not_copied(source)
        self._check_recursive(source)
        for above, directories, names in os.walk(source.path, onerror=self._fail_to_list):
            inner = os.path.relpath(above, source.path)
            place = target if inner == "." else target / inner
            linked = [name for name in directories if os.path.islink(f"{above}/{name}")]  # noqa: PTH114
            for name in sorted([*names, *linked]):
                try:
                    file = Place(False, f"{above}/{name}")
                    facts = _local_facts(file)
                    if not stat.S_ISREG(facts.st_mode):
                        raise _not_copied(file)
                    yield _File(file, place / name, facts.st_size, facts.st_mtime)
                except PenstockError as error:
                    self._fail(error)

    def _check_recursive(self, source: Place) -> None:
        if not self._recursive:
            raise IsDirectoryError(f"copy {source.path}", "it is a directory", "add -r to copy everything below it")

    def _copy_all(self, files: Iterator[_File]) -> None:
        from penstock.client.many import for_each

        for file, error in for_each(self._copy, files):
            if error is None:
                continue
            self._fail(error if isinstance(error, PenstockError) else _local_error(file.source, error))

    def _copy(self, file: _File) -> None:
        if file.content is not None:
            self._write(file, iter([memoryview(file.content)]))
        elif file.source.in_tree:
            with self._client.open(file.source.path) as stream:
                self._write(file, _pieces(stream, file.size))
        else:
            with _open_local(file.source) as stream:
                self._write(file, _pieces(stream, file.size))

    def _write(self, file: _File, pieces: Iterator[memoryview]) -> None:
        if file.target.in_tree:
            self._write_tree(file, pieces)
        else:
            self._write_local(file, Path(file.target.path), pieces)
        with self._counting:
            self._files += 1

    def _write_tree(self, file: _File, pieces: Iterator[memoryview]) -> None:
        try:
            with self._client.open(file.target.path, "wb" if self._force else "xb") as out:
                for piece in pieces:
                    out.write(piece)
                    self._count(len(piece))
        except AlreadyExistsError:
            raise _is_taken(file.target.path) from None

    def _write_local(self, file: _File, target: Path, pieces: Iterator[memoryview]) -> None:
        if target.exists() and not self._force:
            raise _is_taken(str(target))
        _make_directory(Place(False, str(target.parent)))
        part = target.with_name(f".{target.name[:200]}.{os.getpid()}.{threading.get_ident()}.part")
        try:
            with part.open("wb") as out:
                for piece in pieces:
                    out.write(piece)
                    self._count(len(piece))
            os.utime(part, (file.modified_s,) * 2)
            part.replace(target)
        except OSError as error:
            if isinstance(error, PenstockError):
                raise
            kind = NoSpaceError if error.errno == NoSpaceError.errno else DiskError
            raise kind(f"write {target}", str(error.strerror), "check the disk and its rights") from None
        finally:
            part.unlink(missing_ok=True)

    def _fail(self, error: PenstockError) -> None:
        self._clear_progress()
        with self._counting:
            self.failed += 1
        self._report(error)

    def _fail_to_list(self, error: OSError) -> None:
        self._fail(DiskError(f"list {error.filename}", str(error.strerror), "check its rights"))

    def _count(self, size: int) -> None:
        with self._counting:
            self._bytes += size
            if sys.stderr.isatty():
                from penstock.units import format_count, format_size

                sys.stderr.write(f"\r{format_count(self._files, 'file')}, {format_size(self._bytes)}\x1b[K")
                sys.stderr.flush()

    def _clear_progress(self) -> None:
        if sys.stderr.isatty():
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _batches(entries: Iterator[Any]) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for entry in entries:
        batch.append(entry)
        if len(batch) >= BATCH_FILES:
            yield batch
            batch = []
    if batch:
        yield batch


def _pieces(stream: Any, size: int) -> Iterator[memoryview]:
    # One byte more than the file has, so that one read sees its end.
    buffer = memoryview(bytearray(min(BUFFER_BYTES, size + 1)))
    while taken := stream.readinto(buffer):
        yield buffer[:taken]


def _inside(target: Place, name: str) -> Place:
    """The place of a walked name. Names of the tree hold no ``..``; this makes sure of it once more."""
    parts = name.split("/")
    if ".." in parts or "" in parts or "." in parts:
        raise InvalidInputError(f"copy {name}", "its name leaves the target directory", "report it")
    return target / name


def _make_directory(place: Place) -> None:
    """Makes a local directory; one of the tree is there as soon as it has a file."""
    if place.in_tree:
        return
    try:
        Path(place.path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(f"make {place.path}", str(error.strerror), "check the target and its rights") from None


def _local_facts(place: Place) -> os.stat_result:
    try:
        return os.stat(place.path)  # noqa: PTH116 - not a path of ours
    except OSError as error:
        raise _local_error(place, error) from None


def _open_local(place: Place) -> Any:
    try:
        return open(place.path, "rb", buffering=0)  # noqa: PTH123 - the caller closes it
    except OSError as error:
        raise _local_error(place, error) from None


def _local_error(place: Place, error: Exception) -> PenstockError:
    action = f"copy {place.path}"
    if isinstance(error, FileNotFoundError):
        return NotFoundError(action, "there is no such local file", "paths of the tree begin with / or penstock://")
    if isinstance(error, PermissionError):
        return PermissionDeniedError(action, "it cannot be read", "check its rights")
    return DiskError(action, getattr(error, "strerror", None) or repr(error), "check the disk and its rights")


def _not_copied(place: Place) -> UnsupportedError:
    if Path(place.path).is_dir():
        return UnsupportedError(
            f"copy {place.path}", "it is a link to a directory", "copy where it leads to by its name"
        )
    return UnsupportedError(f"copy {place.path}", "it is neither a file nor a directory", "leave it out")


def _is_taken(target: str) -> AlreadyExistsError:
    return AlreadyExistsError(f"copy to {target}", "a file is there", "add -f to replace it")
