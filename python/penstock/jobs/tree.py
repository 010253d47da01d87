"""What jobs need of the tree: a narrow view of the client, so that a job can be tried on a tree that is not real."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from penstock.errors import PenstockError

__all__ = ["Entry", "Tree"]


class Entry(Protocol):
    """One name with its attributes."""

    @property
    def name(self) -> str:
        """Path below the walked directory; the last component after a stat."""

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""

    @property
    def size(self) -> int:
        """Bytes; 0 for a directory."""


class Tree(Protocol):
    """A connection to the core, used by one thread at a time."""

    def stat(self, path: str) -> Entry:
        """What is at a path."""

    def walk_page(self, path: str, after: str | None, limit: int) -> tuple[Sequence[Entry], str | None]:
        """Some entries below a path and where to go on; the last page has ``None``."""

    def prefetch(self, paths: list[str]) -> Sequence[tuple[int, int] | PenstockError]:
        """Brings files into the cache: (size, bytes fetched) or the error of each."""

    def evict(self, paths: list[str]) -> Sequence[int | PenstockError]:
        """Drops files from the cache: bytes freed or the error of each."""

    def verify(self, paths: list[str]) -> Sequence[tuple[int, int, int] | PenstockError]:
        """Checks cached pages: (pages, bad pages, repaired pages) or the error of each."""

    def cached_bytes(self, path: str) -> int:
        """Bytes of a file that are in the cache now."""

    def keep(self) -> None:
        """Makes what was brought or dropped so far survive a crash of the node."""

    def close(self) -> None:
        """Ends the connection; calls under way fail."""
