"""Copies files out of the tree: each appears whole, with its time, or not at all."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock.cli.paths import tree_path
from penstock.errors import (
    AlreadyExistsError,
    DiskError,
    InvalidInputError,
    IsDirectoryError,
    NoSpaceError,
    NotFoundError,
    ReadOnlyError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from penstock.client import Client

__all__ = ["Copy"]

BUFFER_BYTES = 4 << 20
SMALL_BYTES = 1 << 20
"""Files up to here travel in batches: one round trip for many of them."""
BATCH_FILES = 64


class Copy:
    """One ``cp``: many sources, one local target."""

    def __init__(self, client: Client, *, recursive: bool, force: bool) -> None:
        self._client = client
        self._recursive = recursive
        self._force = force
        self._files = 0
        self._bytes = 0

    def run(self, sources: list[str], target: str) -> str:
        """Copies everything and returns one line about it.

        Raises:
            ReadOnlyError: the target is in the tree, or a source is a local file.
            IsDirectoryError: a source is a directory and ``-r`` was not given.
            AlreadyExistsError: a local file is there and ``-f`` was not given.
        """
        self._refuse_writing(sources, target)
        begun = time.monotonic()
        local = Path(target).expanduser()
        if len(sources) > 1 and not local.is_dir():
            raise InvalidInputError(f"copy to {target}", "it is not a directory", "make it first, or copy one path")
        try:
            for source in sources:
                self._one(tree_path(source), local)
        finally:
            self._clear_progress()
        from penstock.units import format_count, format_duration, format_rate, format_size

        elapsed = time.monotonic() - begun
        rate = format_rate(self._bytes / elapsed) if elapsed > 0 else "-"
        copied = f"{format_count(self._files, 'file')}, {format_size(self._bytes)}"
        return f"copied {copied} in {format_duration(elapsed)} ({rate})"

    def _refuse_writing(self, sources: list[str], target: str) -> None:
        reason = "attachments are read-only in this version"
        advice = "write to the source with its own tools; reads see it after the freshness of the attachment"
        if target.startswith("penstock://"):
            raise ReadOnlyError(f"copy to {target}", reason, advice)
        for source in sources:
            if not source.startswith(("/", "penstock://")) or self._is_local_only(source):
                raise ReadOnlyError(f"copy {source} to {target}", f"it is a local file, and {reason}", advice)

    def _is_local_only(self, source: str) -> bool:
        if not source.startswith("/") or not Path(source).exists():
            return False
        try:
            self._client.stat(source)
        except NotFoundError:
            return True
        return False

    def _one(self, source: str, local: Path) -> None:
        entry = self._client.stat(source)
        name = source.rsplit("/", 1)[-1]
        target = local / name if local.is_dir() and name else local
        if not entry.is_directory:
            self._large(source, entry, target)
            return
        if not self._recursive:
            raise IsDirectoryError(f"copy {source}", "it is a directory", "add -r to copy everything below it")
        _make_directory(target)
        for batch in _batches(self._client.walk(source)):
            self._batch(source, batch, target)

    def _batch(self, source: str, batch: list[Any], target: Path) -> None:
        for entry in batch:
            if entry.is_directory:
                _make_directory(_inside(target, entry.name))
        files = [entry for entry in batch if not entry.is_directory]
        small = [entry for entry in files if entry.size <= SMALL_BYTES]
        for entry, content in zip(
            small, self._client.read_many([f"{source.rstrip('/')}/{entry.name}" for entry in small]), strict=True
        ):
            self._write(entry, _inside(target, entry.name), iter([memoryview(content)]))
        for entry in files:
            if entry.size > SMALL_BYTES:
                self._large(f"{source.rstrip('/')}/{entry.name}", entry, _inside(target, entry.name))

    def _large(self, source: str, entry: Any, target: Path) -> None:
        with self._client.open(source) as stream:
            self._write(entry, target, _pieces(stream))

    def _write(self, entry: Any, target: Path, pieces: Iterator[memoryview]) -> None:
        if target.exists() and not self._force:
            raise AlreadyExistsError(f"copy to {target}", "a file is there", "add -f to replace it")
        _make_directory(target.parent)
        part = target.with_name(f".{target.name[:200]}.{os.getpid()}.part")
        try:
            with part.open("wb") as out:
                for piece in pieces:
                    out.write(piece)
                    self._bytes += len(piece)
                    self._progress()
            os.utime(part, (entry.modified_ms / 1000,) * 2)
            part.replace(target)
        except OSError as error:
            if isinstance(error.errno, int) and not hasattr(error, "code"):
                kind = NoSpaceError if error.errno == NoSpaceError.errno else DiskError
                raise kind(f"write {target}", str(error.strerror), "check the disk and its rights") from None
            raise
        finally:
            part.unlink(missing_ok=True)
        self._files += 1

    def _progress(self) -> None:
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


def _pieces(stream: Any) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(BUFFER_BYTES))
    while size := stream.readinto(buffer):
        yield buffer[:size]


def _inside(target: Path, name: str) -> Path:
    """The local place of a walked name. Names of the tree hold no ``..``; this makes sure of it once more."""
    parts = name.split("/")
    if ".." in parts or "" in parts or "." in parts:
        raise InvalidInputError(f"copy {name}", "its name leaves the target directory", "report it")
    return target.joinpath(*parts)


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(f"make {directory}", str(error.strerror), "check the target and its rights") from None
