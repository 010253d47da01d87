"""The tree that jobs of a node work on: a connection to its own data socket, like any other client's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from penstock._native import Core
from penstock.errors import NotFoundError

if TYPE_CHECKING:
    from pathlib import Path

    from penstock.errors import PenstockError
    from penstock.jobs.tree import Entry

__all__ = ["CoreTree"]


class CoreTree:
    """One connection of one thread. What it asks has background priority: foreground reads go first."""

    def __init__(self, socket: Path) -> None:
        self._core = Core(str(socket), "jobs")

    def stat(self, path: str) -> Entry:
        """What is at a path."""
        return self._core.stat(path)

    def walk_page(self, path: str, after: str | None, limit: int) -> tuple[Sequence[Entry], str | None]:
        """Some entries below a path and where to go on."""
        return self._core.walk_page(path, after, limit)

    def prefetch(self, paths: list[str]) -> Sequence[tuple[int, int] | PenstockError]:
        """Brings files into the cache: (size, bytes fetched) or the error of each."""
        return self._core.prefetch(paths)

    def evict(self, paths: list[str]) -> Sequence[int | PenstockError]:
        """Drops files from the cache: bytes freed or the error of each."""
        return self._core.evict(paths)

    def verify(self, paths: list[str]) -> Sequence[tuple[int, int, int] | PenstockError]:
        """Checks cached pages: (pages, bad pages, repaired pages) or the error of each."""
        return self._core.verify(paths)

    def cached_bytes(self, path: str) -> int:
        """Bytes of a file that are in the cache now. Asks no source: who watches a job must not wait for one."""
        try:
            return int(json.loads(self._core.why(path, known_only=True))["cached_bytes"])
        except NotFoundError:
            return 0

    def keep(self) -> None:
        """Has the index of the cache written: what was brought or dropped so far is so after a crash of the node."""
        self._core.cache_entries(None, 1)

    def close(self) -> None:
        """Ends the connection."""
        self._core.close()
