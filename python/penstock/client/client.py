"""What a program does with the tree."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from penstock._native import Core
from penstock.client.control import Control
from penstock.client.job import Job
from penstock.client.launch import running_pid, start_node
from penstock.home import locate

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from penstock._native import Entry, File, Lease, View
    from penstock.errors import PenstockError

__all__ = ["Client", "connect"]

_PAGE_ENTRIES = 8192


def connect(home: str | os.PathLike[str] | None = None, start: bool = True) -> Client:
    """A client of the node of a home; starts the node where none runs.

    Args:
        home: directory of everything; ``None`` takes ``PENSTOCK_HOME``, else the platform's.
        start: ``False`` starts nothing; the first use then fails where no node runs.
    """
    located = locate(home)
    if start and running_pid(located) is None:
        start_node(located, explicit=None if home is None else os.fspath(home))
    return Client(str(located.data_socket), str(located.control_socket))


class Client:
    """The tree of one node. Safe to share between threads and over fork; pickles as where it connects to."""

    def __init__(self, data_socket: str, control_socket: str) -> None:
        self.core = Core(data_socket, "python")
        self.control = Control(control_socket)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Client, (str(self.core.socket_path), self.control.path))

    def open(self, path: str, version: str | None = None) -> File:
        """Opens a file for reading, on the version it has now."""
        return self.core.open(path, version)

    def read_many(self, paths: Sequence[str]) -> list[View | PenstockError]:
        """Whole files in one call: a view or an error each."""
        return self.core.read_many(list(paths))

    def read_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[View]:
        """Half-open byte ranges of one file in one call."""
        return self.core.read_ranges(path, list(ranges))

    def stat(self, path: str) -> Entry:
        """Size, time and version of a path."""
        return self.core.stat(path)

    def list(self, path: str) -> Iterator[Entry]:
        """What is in a directory, as it comes."""
        after: str | None = None
        while True:
            page, after = self.core.list_page(path, after, _PAGE_ENTRIES)
            yield from page
            if after is None:
                return

    def walk(self, path: str) -> Iterator[Entry]:
        """Everything below a directory, as it comes; names are relative to it."""
        after: str | None = None
        while True:
            page, after = self.core.walk_page(path, after, _PAGE_ENTRIES)
            yield from page
            if after is None:
                return

    def local_path(self, path: str) -> Lease:
        """A local read-only file with the content, for as long as the lease lasts."""
        return self.core.local_path(path)

    def why(self, path: str) -> dict[str, Any]:
        """Whether a file is cached, and why or why not."""
        import json

        return dict(json.loads(self.core.why(path)))

    def preload(self, path: str, max_bytes_per_s: int | None = None) -> Job:
        """Brings everything below a path into the cache, as a job."""
        return Job(self.control, self.control.submit_job("preload", path, {"max_bytes_per_s": max_bytes_per_s}))

    def evict(self, path: str) -> Job:
        """Drops what is cached below a path, as a job."""
        return Job(self.control, self.control.submit_job("evict", path))

    def verify(self, path: str) -> Job:
        """Checks what is cached below a path, as a job."""
        return Job(self.control, self.control.submit_job("verify", path))

    def close(self) -> None:
        """Closes the connections; the next use connects again."""
        self.core.close()
