"""A client of a tree that is not real: files in a dictionary, one writable attachment, errors on demand."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from penstock.errors import (
    AlreadyExistsError,
    IsDirectoryError,
    NotDirectoryError,
    NotEmptyError,
    NotFoundError,
    PenstockError,
)


@dataclass
class Entry:
    name: str
    size: int = 0
    is_directory: bool = False
    modified_ms: int = 1_000_000_000_000
    version: str | None = "v1"
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None


class File(io.BytesIO):
    @property
    def size(self) -> int:
        return len(self.getbuffer())

    def pread(self, size: int, offset: int) -> bytes:
        return bytes(self.getbuffer()[offset : offset + size])


class Writer(io.BytesIO):
    """Commits when it is closed, or left in order by its ``with`` block."""

    def __init__(self, tree: FakeTree, path: str) -> None:
        super().__init__()
        self._tree, self._path = tree, path

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def close(self) -> None:
        if not self.closed:
            with self._tree.lock:
                self._tree.files[self._path] = self.getvalue()
            super().close()

    def discard(self) -> None:
        super().close()

    def __del__(self) -> None:
        """Forgotten without being closed, it is discarded."""


class FakeTree:
    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.failing: dict[str, PenstockError] = {}
        self.calls: list[str] = []
        self.durability: str | None = None
        self.lock = threading.Lock()
        self.attached: list[dict[str, Any]] = [
            {"path": "/data", "source": {"kind": "s3", "bucket": "b", "endpoint": None}, "prefix": "lake/"}
        ]

    def attachments(self) -> Sequence[dict[str, Any]]:
        return self.attached

    def stat(self, path: str) -> Entry:
        if path in self.files:
            return Entry(path.rsplit("/", 1)[-1], len(self.files[path]))
        if path == "/" or any(name.startswith(path.rstrip("/") + "/") for name in self.files):
            return Entry(path, is_directory=True, version=None)
        raise NotFoundError(f"stat {path}", "no such file")

    def list(self, path: str) -> Iterator[Entry]:
        self.calls.append(f"list {path}")
        if path in self.files:
            raise NotDirectoryError(f"list {path}", "it is a file")
        self.stat(path)
        root = path.rstrip("/") + "/"
        names = sorted({name[len(root) :].split("/")[0] for name in self.files if name.startswith(root)})
        return iter([self._entry(root + name, name) for name in names])

    def walk(self, path: str) -> Iterator[Entry]:
        self.calls.append(f"walk {path}")
        root = path.rstrip("/") + "/"
        names = {name[len(root) :] for name in self.files if name.startswith(root)}
        above = {name.rsplit("/", index + 1)[0] for name in names for index in range(name.count("/"))}
        return iter([self._entry(root + name, name) for name in sorted(names | above)])

    def open(self, path: str, mode: str = "rb", durability: str | None = None, **text: Any) -> Any:
        self.durability = durability
        if path in self.failing:
            raise self.failing[path]
        if "r" in mode:
            self.stat(path)
            return File(self.files[path])
        if "x" in mode and path in self.files:
            raise AlreadyExistsError(f"write {path}", "something has that name")
        writer = Writer(self, path)
        return writer if "b" in mode else io.TextIOWrapper(writer, **text)

    def remove(self, path: str) -> None:
        if path in self.failing:
            raise self.failing[path]
        if self.stat(path).is_directory:
            raise IsDirectoryError(f"remove {path}", "it is a directory")
        with self.lock:
            del self.files[path]

    def rename(self, source: str, target: str, *, replace: bool = True) -> None:
        if not replace and target in self.files:
            raise AlreadyExistsError(f"rename {source}", "something has that name")
        self.stat(source)
        with self.lock:
            moved = [name for name in self.files if name == source or name.startswith(source + "/")]
            for name in moved:
                self.files[target + name[len(source) :]] = self.files.pop(name)

    def sets(self, path: str) -> list[Any]:
        return []

    def rmdir(self, path: str) -> None:
        if self.stat(path).is_directory:
            raise NotEmptyError(f"remove {path}", "something is in it")
        raise NotDirectoryError(f"remove {path}", "it is a file")

    def read_many(self, paths: Sequence[str], return_errors: bool = False) -> Sequence[bytes | PenstockError]:
        self.calls.append(f"read_many {len(paths)}")
        missing = NotFoundError("open", "no such file")
        contents = [self.failing.get(path) or self.files.get(path, missing) for path in paths]
        for content in contents:
            if isinstance(content, PenstockError) and not return_errors:
                raise content
        return contents

    def read_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> Sequence[bytes]:
        self.calls.append(f"read_ranges {path} {len(ranges)}")
        self.stat(path)
        return [self.files[path][start:end] for start, end in ranges]

    def _entry(self, path: str, name: str) -> Entry:
        if path in self.files:
            return Entry(name, len(self.files[path]))
        return Entry(name, is_directory=True, version=None)
