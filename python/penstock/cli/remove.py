"""Removes files of the tree, many at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.errors import (
    BusyError,
    DiskError,
    InvalidInputError,
    IsDirectoryError,
    NotEmptyError,
    NotFoundError,
    PenstockError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from penstock.client import Client

__all__ = ["Remove"]


class Remove:
    """One ``rm``. A file that fails stops no other.

    Attributes:
        failed: how many paths could not be removed; each was reported.
    """

    def __init__(self, client: Client, *, recursive: bool, report: Callable[[PenstockError], None]) -> None:
        self._client = client
        self._recursive = recursive
        self._report = report
        self._removed = 0
        self._sets = 0
        self._directories: list[str] = []
        self.failed = 0

    def run(self, paths: list[str]) -> str:
        """Removes everything and returns one line about it.

        Raises:
            InvalidInputError: that would be all of the tree; nothing is removed then.
        """
        from penstock.client.many import for_each
        from penstock.units import format_count

        if "/" in paths:
            raise InvalidInputError("remove /", "that is everything that is attached", "name what is to go")
        files = (file for path in paths for file in self._files(path))
        for file, error in for_each(self._client.remove, files):
            if error is None:
                self._removed += 1
            else:
                self._fail(error if isinstance(error, PenstockError) else DiskError(f"remove {file}", repr(error)))
        for directory in sorted(self._directories, key=lambda path: path.count("/"), reverse=True):
            self._remove_directory(directory)
        failed = f"; {self.failed:,} failed" if self.failed else ""
        sets = format_count(self._sets, "set") if self._sets else ""
        removed = format_count(self._removed, "file") if self._removed or not sets else ""
        return f"removed {' and '.join(filter(None, (sets, removed)))}{failed}"

    def _files(self, path: str) -> Iterator[str]:
        """The files that a path means; why it means none is reported."""
        try:
            if not self._client.stat(path).is_directory:
                yield path
                return
            if not self._recursive:
                raise IsDirectoryError(f"remove {path}", "it is a directory", "add -r to remove everything below it")
            if self._remove_sets(path):
                return
            self._directories.append(path)
            for entry in self._client.walk(path):
                name = f"{path.rstrip('/')}/{entry.name}"
                if entry.is_directory:
                    self._directories.append(name)
                else:
                    yield name
        except PenstockError as error:
            self._fail(error)

    def _remove_sets(self, path: str) -> bool:
        """Removes the sets at and below a path, each as a whole; says whether the path is one itself."""
        from penstock.client.sets import remove_below

        is_set = False
        for removed in remove_below(self._client, path):
            self._sets += 1
            is_set = is_set or removed == path
        return is_set

    def _remove_directory(self, path: str) -> None:
        try:
            self._client.rmdir(path)
        except (NotFoundError, BusyError):
            pass  # it went with its last file, or is where something is attached
        except NotEmptyError as error:
            if not self.failed:  # otherwise what is in it was reported
                self._fail(error)
        except PenstockError as error:
            self._fail(error)

    def _fail(self, error: PenstockError) -> None:
        self.failed += 1
        self._report(error)
