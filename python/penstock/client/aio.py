"""The client for programs that run an event loop: the same calls, each in a thread of the loop's pool.

The core blocks without the GIL, so a call in a thread leaves the loop alone.
"""

from __future__ import annotations

import asyncio
import os
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, overload

from penstock.client.client import PAGE_ENTRIES, Client, connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence
    from types import TracebackType
    from typing import Self, Unpack

    from typing_extensions import Buffer

    from penstock._native import Entry, File, Lease, View, Writer
    from penstock.client.client import Durability, TreePath
    from penstock.client.conflicts import Conflict, Keep
    from penstock.client.job import Job
    from penstock.client.sets import SetInfo, SetWriter
    from penstock.policies.attachments import AttachOptions

__all__ = ["AsyncClient", "AsyncFile", "AsyncWriter", "connect_async"]


async def connect_async(home: str | os.PathLike[str] | None = None, start: bool = True) -> AsyncClient:
    """As :func:`penstock.connect`, without blocking the loop."""
    return AsyncClient(await asyncio.to_thread(connect, home, start))


class AsyncFile:
    """A file open for reading. Each call may wait for the source, and does so in a thread.

    Attributes:
        file: the file itself, for calls that need no waiting: ``size``, ``version``, ``seek``, ``tell``.
    """

    def __init__(self, file: File) -> None:
        self.file = file

    async def read(self, size: int | None = None) -> bytes:
        """Up to ``size`` bytes from the position on; all that are left without a size."""
        return await asyncio.to_thread(self.file.read, size)

    async def pread(self, size: int, offset: int) -> bytes:
        """Up to ``size`` bytes from ``offset`` on; the position stays, so many of these may run at once."""
        return await asyncio.to_thread(self.file.pread, size, offset)

    async def view(self, offset: int = 0, size: int | None = None) -> View:
        """Read-only bytes from ``offset`` on, not copied where all of the file is local."""
        return await asyncio.to_thread(self.file.view, offset, size)

    async def close(self) -> None:
        """Ends the lease; views stay valid."""
        self.file.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class AsyncWriter:
    """A file open for writing. What appears of it, and when: see :meth:`Client.open`.

    Attributes:
        file: the file itself, for calls that need no waiting: ``seek``, ``tell``, ``discard``.
    """

    def __init__(self, file: Writer) -> None:
        self.file = file

    async def write(self, data: Buffer) -> int:
        """Takes all bytes at the position; returns how many."""
        return await asyncio.to_thread(self.file.write, data)

    async def close(self) -> None:
        """Makes what was written the content of the file, as durable as declared."""
        await asyncio.to_thread(self.file.close)

    async def discard(self) -> None:
        """Drops everything that was written; the file stays what it was."""
        await asyncio.to_thread(self.file.discard)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await (self.close() if kind is None else self.discard())


class AsyncSetWriter:
    """A set that is being written: nobody sees anything of it before the block ends without an exception.

    Attributes:
        files: the set itself, for other processes and for ``open``.
    """

    files: SetWriter

    def __init__(self, client: Client, path: TreePath, durability: Durability | None) -> None:
        self._begin = partial(client.commit, path, durability=durability)

    async def write(self, name: str, content: Buffer) -> None:
        """Writes a whole file of the set."""
        await asyncio.to_thread(self.files.write, name, content)

    async def put(self, local: str | os.PathLike[str], name: str | None = None) -> None:
        """Copies a local file, or all files below a local directory, into the set."""
        await asyncio.to_thread(self.files.put, local, name)

    async def open(self, name: str, mode: str = "wb") -> AsyncWriter:
        """Opens a file of the set for writing bytes."""
        return AsyncWriter(await asyncio.to_thread(self.files.open, name, mode))

    async def __aenter__(self) -> Self:
        self.files = await asyncio.to_thread(self._begin)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.files.__exit__, kind, error, trace)


class AsyncClient:
    """The tree of one node, for an event loop. What each call does, takes and raises: see :class:`Client`.

    Attributes:
        client: the synchronous client behind it.
    """

    def __init__(self, client: Client) -> None:
        self.client = client

    @overload
    async def open(self, path: TreePath, mode: Literal["rb"] = "rb", *, version: str | None = None) -> AsyncFile: ...

    @overload
    async def open(
        self, path: TreePath, mode: Literal["wb", "xb", "ab"], *, durability: Durability | None = None
    ) -> AsyncWriter: ...

    async def open(
        self, path: TreePath, mode: str = "rb", *, version: str | None = None, durability: str | None = None
    ) -> AsyncFile | AsyncWriter:
        """Opens a file for reading one version of it, for writing a new one, or for appending to it; bytes only."""
        if mode not in ("rb", "wb", "xb", "ab"):
            raise ValueError(f"open {os.fspath(path)}: mode {mode!r} is none of rb, wb, xb, ab")
        opened = partial(self.client.open, path, mode, version=version, durability=durability)
        file: Any = await asyncio.to_thread(opened)
        return AsyncFile(file) if mode == "rb" else AsyncWriter(file)

    async def read_many(self, paths: Iterable[TreePath], *, return_errors: bool = False) -> list[Any]:
        """Whole files in one call; what is missing is fetched in parallel."""
        return await asyncio.to_thread(self.client.read_many, paths, return_errors=return_errors)

    async def read_ranges(self, path: TreePath, ranges: Sequence[tuple[int, int]]) -> list[View]:
        """Byte ranges of one file in one call, all of one version."""
        return await asyncio.to_thread(self.client.read_ranges, path, ranges)

    async def stat(self, path: TreePath) -> Entry:
        """Kind, size, time and version of a path."""
        return await asyncio.to_thread(self.client.stat, path)

    async def remove(self, path: TreePath) -> None:
        """Removes a file."""
        await asyncio.to_thread(self.client.remove, path)

    async def rename(self, source: TreePath, target: TreePath, *, replace: bool = True) -> None:
        """Gives a file or a directory another name in its attachment."""
        await asyncio.to_thread(self.client.rename, source, target, replace=replace)

    async def mkdir(self, path: TreePath) -> None:
        """Makes a directory that stays while it is empty."""
        await asyncio.to_thread(self.client.mkdir, path)

    async def rmdir(self, path: TreePath) -> None:
        """Removes an empty directory."""
        await asyncio.to_thread(self.client.rmdir, path)

    async def persist(self, path: TreePath, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Waits until the source has everything that was written at or below a path before."""
        await asyncio.to_thread(self.client.persist, path, timeout)

    def commit(self, path: TreePath, *, durability: Durability | None = None) -> AsyncSetWriter:
        """Begins a set when it is entered with ``async with``: see :meth:`Client.commit`."""
        return AsyncSetWriter(self.client, path, durability)

    async def sets(self, path: TreePath = "/") -> Sequence[SetInfo]:
        """The sets at and below a path, oldest first, and what was begun there and not published."""
        return await asyncio.to_thread(self.client.sets, path)

    async def remove_set(self, path: TreePath) -> None:
        """Removes a set as a whole."""
        await asyncio.to_thread(self.client.remove_set, path)

    async def conflicts(self, path: TreePath = "/") -> Sequence[Conflict]:
        """What was written at or below a path and would have replaced a version that nobody here has seen."""
        return await asyncio.to_thread(self.client.conflicts, path)

    async def resolve_conflict(
        self, path: TreePath, keep: Keep, operation: str | None = None, *, every: bool = False
    ) -> Sequence[Conflict]:
        """Settles a conflict; returns what was settled, newest first."""
        return await asyncio.to_thread(partial(self.client.resolve_conflict, path, keep, operation, every=every))

    async def list(self, path: TreePath = "/") -> AsyncIterator[Entry]:
        """What is in a directory, in a stable order, as it comes."""
        async for entry in self._pages(self.client.core.list_page, path):
            yield entry

    async def walk(self, path: TreePath = "/") -> AsyncIterator[Entry]:
        """Everything below a directory, parents before children; names are relative to it."""
        async for entry in self._pages(self.client.core.walk_page, path):
            yield entry

    async def local_path(self, path: TreePath) -> Lease:
        """The whole file as a local, read-only one, for software that maps files by name."""
        return await asyncio.to_thread(self.client.local_path, path)

    async def preload(self, path: TreePath, max_bytes_per_s: int | None = None) -> Job:
        """Brings everything below a path into the cache, as a job; wait for it with :meth:`wait`."""
        return await asyncio.to_thread(self.client.preload, path, max_bytes_per_s)

    async def wait(self, job: Job, timeout_s: float | None = None) -> dict[str, Any]:
        """Waits until a job has ended."""
        return await asyncio.to_thread(job.wait, timeout_s)

    async def attach(self, url: str, path: TreePath, **options: Unpack[AttachOptions]) -> dict[str, Any]:
        """Puts a bucket, a prefix of it or a directory at a path of the tree."""
        return await asyncio.to_thread(self.client.attach, url, path, **options)

    async def detach(self, path: TreePath) -> None:
        """Takes the attachment at exactly that path out of the tree."""
        await asyncio.to_thread(self.client.detach, path)

    async def close(self) -> None:
        """Closes the connections."""
        self.client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _pages(self, page_of: Callable[..., Any], path: TreePath) -> AsyncIterator[Entry]:
        path = os.fspath(path)
        after: str | None = None
        while True:
            page, after = await asyncio.to_thread(page_of, path, after, PAGE_ENTRIES)
            for entry in page:
                yield entry
            if after is None:
                return
