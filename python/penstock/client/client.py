"""What a program does with the tree."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

from penstock._native import Core
from penstock.client.control import Control
from penstock.client.job import Job
from penstock.client.launch import start_node
from penstock.client.modes import checked_mode
from penstock.errors import InvalidInputError, PenstockError, UnavailableError
from penstock.home import locate

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from io import BufferedReader, TextIOWrapper
    from typing import Self, TypedDict, Unpack

    from penstock._native import Entry, File, Lease, View, Writer
    from penstock.client.conflicts import Conflict, Keep
    from penstock.client.edited import Editor
    from penstock.client.sets import SetFile, SetInfo, SetWriter
    from penstock.client.text import TextWriter
    from penstock.policies.attachments import AttachOptions

    class TextOptions(TypedDict, total=False):
        """How bytes become text, as the built-in ``open`` has it."""

        encoding: str | None
        errors: str | None
        newline: str | None


__all__ = ["Client", "connect"]

TreePath: TypeAlias = "str | os.PathLike[str]"
"""An absolute path in the tree."""

Durability: TypeAlias = Literal["local", "source"]
"""What a successful close promises: synced on this node, or accepted by the source."""

PAGE_ENTRIES = 8192
"""Entries of one round trip of a listing: bounds the memory of a huge directory."""


def connect(home: str | os.PathLike[str] | None = None, start: bool = True) -> Client:
    """A client of the node of a home; starts the node where none runs.

    Args:
        home: directory of everything; ``None`` takes ``PENSTOCK_HOME``, else the platform's.
        start: ``False`` starts nothing; the first use then fails where no node runs.
    Raises:
        PenstockError: the node cannot start; the message is the node's own.
    Cost: one round trip; a start takes about a second.
    """
    located = locate(home)
    client = Client(str(located.data_socket), str(located.control_socket))
    # Outside of the except clause: why no node answered is no part of why none could be started.
    if start and (located.node_is_dying() or not _answers(client)):
        start_node(located, explicit=None if home is None else os.fspath(home))
    return client


def _answers(client: Client) -> bool:
    try:
        client.core.ping()
    except UnavailableError:
        return False
    return True


class Client:
    """The tree of one node.

    Has no threads and no runtime: it may cross a fork, be pickled (as where it connects to) and be shared between
    threads. After a restart of the node the next call connects again. Every method raises
    :class:`~penstock.errors.PenstockError` of the kind that says what the caller can do.
    """

    def __init__(self, data_socket: str, control_socket: str) -> None:
        self.core = Core(data_socket, "python")
        self.control = Control(control_socket)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Client, (os.fspath(self.core.socket_path), self.control.path))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<penstock Client {os.fspath(self.core.socket_path)!r}>"

    @overload
    def open(self, path: TreePath, mode: Literal["rb"] = "rb", *, version: str | None = None) -> File: ...

    @overload
    def open(
        self, path: TreePath, mode: Literal["r", "rt"], *, version: str | None = None, **text: Unpack[TextOptions]
    ) -> TextIOWrapper: ...

    @overload
    def open(
        self, path: TreePath, mode: Literal["wb", "xb", "ab"], *, durability: Durability | None = None
    ) -> Writer: ...

    @overload
    def open(
        self,
        path: TreePath,
        mode: Literal["r+b", "rb+", "w+b", "wb+", "x+b", "xb+", "a+b", "ab+"],
        *,
        durability: Durability | None = None,
    ) -> Editor: ...

    @overload
    def open(
        self,
        path: TreePath,
        mode: Literal["w", "wt", "x", "xt", "a", "at", "r+", "w+", "x+", "a+"],
        *,
        durability: Durability | None = None,
        **text: Unpack[TextOptions],
    ) -> TextWriter: ...

    @overload
    def open(
        self,
        path: TreePath,
        mode: str,
        *,
        version: str | None = None,
        durability: str | None = None,
        **text: Unpack[TextOptions],
    ) -> Any: ...

    def open(
        self,
        path: TreePath,
        mode: str = "rb",
        *,
        version: str | None = None,
        durability: str | None = None,
        **text: Unpack[TextOptions],
    ) -> File | TextIOWrapper | Writer | Editor | TextWriter:
        """Opens a file: for reading one version of it, or for writing a new one.

        What is read is of one version. What is written appears as a whole at ``close``, for every reader of this node
        at once; when a ``with`` block is left by an exception, and when the file is dropped or ``discard`` is called,
        nothing of it appears. What is appended or changed in part goes on from the version that was there at ``open``,
        and takes the place of no other.

        Args:
            path: absolute path in the tree.
            mode: as the built-in ``open`` has them. ``rb`` reads bytes, ``r`` or ``rt`` text; ``wb`` and ``w`` write
                a new content; ``xb`` and ``x`` only where nothing has the name; ``ab`` and ``a`` behind what is
                there; ``r+b`` and ``r+`` change what is there. With a ``+``, it can be read as well.
            version: to read exactly this one; ``None`` takes what is there now.
            durability: what a successful close of a written file means. ``local``: it is synced on this node and
                survives a crash of the machine; the upload follows. ``source``: the source has it. ``None`` is what
                the attachment says.
            text: ``encoding`` (UTF-8 unless given), ``errors``, ``newline``, as the built-in ``open`` has them.
        Returns:
            To read, a binary file with everything that ``io.BufferedReader`` has, and ``pread``, ``pread_into``,
            ``view``; to write, one with everything that ``io.BufferedWriter`` has, and ``discard``; for both, an
            ``io.BufferedRandom`` with ``discard``; or an ``io.TextIOWrapper`` around any of them.
        Raises:
            NotFoundError: no such file, or nothing is attached there.
            AlreadyExistsError: mode ``x``, and something has the name.
            ReadOnlyError: the attachment was not made writable.
            IsDirectoryError: it is a directory. Where only the source can tell, this and what else keeps a file from
                being written is raised by ``write``, or by ``close`` of a file of at most 256 KiB.
            NoSpaceError: from ``write`` and ``close``: the stage or its disk is full.
            StaleVersionError: ``version`` is not there any more; later, from reads: the file changed before all of
                it had arrived; from ``close``, of what goes on from what was there: it was changed here meanwhile.
            UnavailableError: from ``write`` and ``close``: the node was restarted meanwhile; write the file again.
            UnsupportedError: durability ``replicated``.
            ValueError: another mode or durability, or an option that the mode does not have.
            TypeError: an unknown text option.
        Cost: to read, one round trip where the content is cached; reads then need none. To write, one round trip; up
            to 256 KiB, another one and one sync at ``close``; a larger file is written to the local disk by this
            process. To go on from what is there, two round trips; up to 64 MiB, all of it is brought here. Of a larger
            file only what is written is held here, and the source copies the rest by itself.
        """
        from penstock.client import text as texts

        name = os.fspath(path)
        opened = checked_mode(name, mode, version, durability, has_text_options=bool(text))
        if not opened.writes:
            file = self.core.open(name, version)
            return texts.read_as_text(file, text) if opened.is_text else file
        raw = self.core.create(name, opened.core, durability)
        writer = texts.edited(raw) if opened.both else raw
        return texts.write_as_text(writer, text) if opened.is_text else writer

    def remove(self, path: TreePath) -> None:
        """Removes a file. It is gone for every reader of this node; the source follows, as durable as a close is.

        Raises:
            NotFoundError: nothing has that name.
            IsDirectoryError: it is a directory; see :meth:`rmdir`.
            ReadOnlyError: the attachment was not made writable.
        Cost: one round trip and one sync; one to the source where the file is not known here.
        """
        self.core.remove(os.fspath(path))

    def rename(self, source: TreePath, target: TreePath, *, replace: bool = True) -> None:
        """Gives a file or a directory another name in its attachment, at once for every reader of this node.

        Args:
            source: absolute path in the tree.
            target: absolute path in the same attachment.
            replace: take the place of a file, or of an empty directory, that has the name.
        Raises:
            NotFoundError: nothing has the first name.
            AlreadyExistsError: something has the second one, without ``replace``.
            IsDirectoryError, NotDirectoryError: a file cannot take the place of a directory, nor the other way round.
            NotEmptyError: the directory that has the second name is not empty.
            CrossDeviceError: another attachment, more than 100,000 files, or more than 256 MiB of objects without an
                ETag that are not on this machine: copy them, then remove them.
            ReadOnlyError: the attachment was not made writable.
        Cost: one sync. A store cannot rename: it copies behind what it has, and nothing of that passes this machine.
        """
        self.core.rename(os.fspath(source), os.fspath(target), replace)

    def mkdir(self, path: TreePath) -> None:
        """Makes a directory that stays while it is empty; files need none.

        It is an object without content whose key ends in ``/``.

        Raises:
            AlreadyExistsError: something has that name.
            ReadOnlyError: the attachment was not made writable.
        Cost: one sync; at most two round trips to the source.
        """
        self.core.make_directory(os.fspath(path))

    def rmdir(self, path: TreePath) -> None:
        """Removes an empty directory.

        Raises:
            NotEmptyError: something is in it.
            NotFoundError: nothing has that name.
            NotDirectoryError: it is a file.
            BusyError: something is attached there or below.
            ReadOnlyError: the attachment was not made writable.
        Cost: one sync; some round trips to the source where it is not known what is in it.
        """
        self.core.remove_directory(os.fspath(path))

    def commit(self, path: TreePath, *, durability: Durability | None = None) -> SetWriter:
        """Begins a set: files that appear together as the directory ``path``, or not at all.

        ``with client.commit("/runs/exp1/step-1000") as files: files.write("a.bin", content)`` publishes at the end of
        the block; left by an exception, nothing of it ever appears. A published set does not change; :meth:`remove_set`
        removes it as a whole.

        Args:
            path: absolute path in the tree that nothing has.
            durability: what publishing promises. ``local``: every file is synced on this node; the upload follows,
                the manifest last. ``source``: the source has all of it. ``None`` is what the attachment says.
        Raises:
            AlreadyExistsError: something has the name.
            ReadOnlyError: the attachment was not made writable.
            InvalidInputError: no set can have that name.
            UnsupportedError: durability ``replicated``.
            ValueError: another durability.
        Cost: one round trip; one to the source where the path is not known here.
        """
        import json

        from penstock.client.sets import SetWriter

        name = os.fspath(path)
        if durability not in (None, "local", "source"):
            self.core.create(name, "wb", durability).discard()  # says why not
        return SetWriter(self, name, json.loads(self.core.begin_set(name)), durability)

    def sets(self, path: TreePath = "/") -> Sequence[SetInfo]:
        """The sets at and below a path, oldest first, and what was begun there and not published.

        Raises:
            NotFoundError: nothing is attached there.
        Cost: that of :meth:`walk`, and a listing or two of each directory that has sets.
        """
        from penstock.client.sets import found

        return found(self.core, os.fspath(path))

    def set_files(self, path: TreePath) -> Iterator[SetFile]:
        """What the manifest of a set says of its files: path, size, version, checksum.

        Raises:
            NotFoundError: there is no set of that path.
        Cost: one round trip for thousands of files.
        """
        from penstock.client.sets import each_file

        return each_file(self.core, os.fspath(path))

    def remove_set(self, path: TreePath) -> None:
        """Removes a set as a whole: it is gone for everybody at once, its bytes follow.

        Raises:
            NotFoundError: there is no set of that path.
            ReadOnlyError: the attachment was not made writable.
        Cost: one sync; one round trip to the source where the set is not known here.
        """
        self.core.remove_set(os.fspath(path))

    def persist(self, path: TreePath, timeout: float | None = None) -> None:
        """Waits until the source has everything that was written or removed at or below a path before.

        Args:
            path: absolute path in the tree.
            timeout: seconds; ``None`` waits for as long as it takes. Uploads go on afterwards all the same.
        Raises:
            TimedOutError: the time is over; the message names what the source has not got, and why.
            ConflictError: somebody else changed an object in the source; both contents are kept.
            NotFoundError: nothing is attached there.
        Cost: none where nothing waits.
        """
        self.core.persist(os.fspath(path), timeout)

    def conflicts(self, path: TreePath = "/") -> Sequence[Conflict]:
        """What was written at or below a path and would have replaced a version that nobody here has seen.

        Args:
            path: absolute path in the tree.
        Returns:
            One :class:`Conflict` each, oldest first, with what the source has now. A path that was written several
            times may have several.
        Raises:
            NotFoundError: nothing is attached there.
        Cost: one request to the source for each, many at the same time.
        """
        from penstock.client.conflicts import each_conflict

        return [*each_conflict(self.core, os.fspath(path), below=True, look=True)]

    def open_conflict(self, path: TreePath, operation: str | None = None) -> BufferedReader:
        """Opens what was written here and is kept of a conflict, to read it.

        Args:
            path: absolute path in the tree.
            operation: which conflict of the path; ``None`` for the newest.
        Returns:
            A binary file. It stays readable when the conflict is settled.
        Raises:
            NotFoundError: nothing of the path is in conflict, or nothing of that operation.
            InvalidInputError: it is a removal.
            CorruptError: its bytes are lost.
        Cost: one round trip, two without an operation; no request to the source.
        """
        from penstock.client.conflicts import open_content

        return open_content(self.core, os.fspath(path), operation)

    def resolve_conflict(
        self, path: TreePath, keep: Keep, operation: str | None = None, *, every: bool = False
    ) -> Sequence[Conflict]:
        """Settles a conflict. It is settled durably when this returns: at each moment one of both is.

        Args:
            path: absolute path of the file in the tree.
            keep: ``mine`` makes what was written here the newest content of the path, as if it were written now: it
                is uploaded on condition of what the source has at this moment, or removes that. ``theirs`` gives up
                what was written here.
            operation: which conflict of the path; ``None`` for the newest.
            every: settle the older ones of the path as well; with ``mine``, the newest is what stays of them.
        Returns:
            What was settled, newest first.
        Raises:
            NotFoundError: nothing of the path is in conflict, or nothing of that operation; nothing is attached there.
            ReadOnlyError: to keep ours, the attachment has to be writable.
            UnavailableError: to keep ours, the source has to say what it has. It is away; both are kept.
            CorruptError: to keep ours, its bytes must not be lost.
            ValueError: ``keep`` is something else, or both an operation and ``every`` are given.
        Cost: two round trips and a sync or two; one request to the source to keep ours.
        """
        from penstock.client.conflicts import settle

        name = os.fspath(path)
        if keep not in ("mine", "theirs"):
            raise ValueError(f"settle the conflict of {name}: keep is 'mine' or 'theirs', not {keep!r}")
        if every and operation is not None:
            raise ValueError(f"settle the conflict of {name}: one operation is not every one")
        return settle(self.core, name, keep, operation, every=every)

    def read_many(self, paths: Iterable[TreePath], *, return_errors: bool = False) -> list[Any]:
        """Whole files in one call; what is missing is fetched in parallel.

        Args:
            paths: absolute paths in the tree.
            return_errors: put the error of a file in its place instead of raising the first one.
        Returns:
            One read-only :class:`View` a file, in the same order. A view is a buffer: ``memoryview``, ``bytes`` and
            ``numpy.frombuffer`` take it; it stays valid as long as it is kept.
        Raises:
            PenstockError: of the first file that failed, unless ``return_errors``.
            TypeError: one path instead of several.
        Cost: one round trip for up to a thousand cached files, one copy of each byte.
        """
        if isinstance(paths, str):
            raise TypeError(f"read_many takes a list of paths, not one path: {paths!r}")
        contents = self.core.read_many([os.fspath(path) for path in paths])
        if not return_errors:
            for content in contents:
                if isinstance(content, PenstockError):
                    raise content
        return list(contents)

    def read_ranges(self, path: TreePath, ranges: Sequence[tuple[int, int]]) -> list[View]:
        """Byte ranges of one file in one call, all of one version.

        Args:
            path: absolute path in the tree.
            ranges: half-open (start, end) offsets in bytes; any order, may overlap; clipped to the file.
        Returns:
            One read-only view a range, in the same order.
        Raises:
            NotFoundError: no such file.
            ValueError: a range ends before it starts, or has a negative offset.
        Cost: one round trip to the node; one conditional GET a run of missing pages.
        """
        return self.core.read_ranges(os.fspath(path), list(ranges))

    def stat(self, path: TreePath) -> Entry:
        """Kind, size in bytes, modification time in milliseconds and version of a path.

        Raises:
            NotFoundError: nothing has that name.
        Cost: one round trip; no request to the source while what is known is fresh, or after a listing.
        """
        return self.core.stat(os.fspath(path))

    def list(self, path: TreePath = "/") -> Iterator[Entry]:
        """What is in a directory, in a stable order, as it comes: a million entries need little memory.

        Raises:
            NotFoundError: no such directory.
            NotDirectoryError: it is a file.
        Cost: one round trip for thousands of entries; none to the source while the listing is fresh.
        """
        return self._pages(self.core.list_page, path)

    def walk(self, path: TreePath = "/") -> Iterator[Entry]:
        """Everything below a directory, parents before children; names are relative to it.

        Raises:
            NotFoundError: no such directory.
            NotDirectoryError: it is a file.
        Cost: as :meth:`list`; the first time few parallel listings of the source, not one a directory.
        """
        return self._pages(self.core.walk_page, path)

    def local_path(self, path: TreePath) -> Lease:
        """The whole file as a local, read-only one, for software that maps files by name.

        Returns:
            A lease: an ``os.PathLike`` and a context manager. The path is there until it ends.
        Raises:
            NotFoundError: no such file.
            UnsupportedError: it is larger than the cache; :meth:`open` reads it.
        Cost: fetches what is missing of the file.
        """
        return self.core.local_path(os.fspath(path))

    def why(self, path: TreePath) -> dict[str, Any]:
        """Whether a file is served from the cache, and why or why not."""
        import json

        return dict(json.loads(self.core.why(os.fspath(path))))

    def preload(self, path: TreePath, max_bytes_per_s: int | None = None) -> Job:
        """Brings everything below a path into the cache, as a job of the node that survives restarts.

        Args:
            path: a file or directory of the tree.
            max_bytes_per_s: average rate at most; ``None`` is as fast as foreground reads leave room for.
        Returns:
            The job, which goes on without this process; :meth:`Job.wait` waits for it.
        Raises:
            NotFoundError: nothing is attached at the path. A file that is not there fails the job.
            InvalidInputError: the rate is none.
        """
        if max_bytes_per_s is not None and max_bytes_per_s < 1:
            reason = f"max_bytes_per_s is {max_bytes_per_s}: at that rate it never ends"
            raise InvalidInputError(f"preload {os.fspath(path)}", reason, "leave it out for no limit")
        return self._job("preload", path, {"max_bytes_per_s": max_bytes_per_s})

    def evict(self, path: TreePath) -> Job:
        """Drops what is cached below a path, as a job of the node."""
        return self._job("evict", path)

    def verify(self, path: TreePath) -> Job:
        """Checks what is cached below a path against its checksums, as a job of the node."""
        return self._job("verify", path)

    def jobs(self) -> Sequence[Job]:
        """Every job that the node knows, oldest first."""
        return [Job(self.control, known) for known in self.control.jobs()]

    def pin(self, path: TreePath, *, newest: int | None = None) -> None:
        """Keeps everything below a path in the cache once it is there; fetches nothing by itself.

        Args:
            path: of a file or directory.
            newest: keep so many of those that match, the newest in each directory, until newer ones exist; ``path`` is
                then a pattern such as ``/runs/exp1/step-*``.
        """
        self.control.pin(os.fspath(path), newest)

    def unpin(self, path: TreePath) -> None:
        """Lets eviction have a pinned path again, or the newest of a pattern."""
        self.control.unpin(os.fspath(path))

    def attach(self, url: str, path: TreePath, **options: Unpack[AttachOptions]) -> dict[str, Any]:
        """Puts a bucket, a prefix of it or a directory at a path of the tree, until it is detached.

        Args:
            url: ``s3://bucket/prefix``, ``file:///directory`` or ``memory://name``.
            path: absolute path in the tree.
            options: ``endpoint``, ``region``, ``virtual_host``, ``credentials`` (a reference, never a secret),
                ``freshness``, ``way``, ``writable``, ``durability``, ``single_writer``, ``posix`` (listings show the
                mode, owner and time that every file was given, for one request per new version), ``probe``.
        Returns:
            The attachment as :meth:`attachments` shows it.
        Raises:
            AlreadyExistsError: something is attached at that path.
            PermissionDeniedError: the source refuses us; the message says why and what to do.
        """
        from penstock.policies.attachments import request

        return self.control.attach(request(url, os.fspath(path), **options))

    def detach(self, path: TreePath) -> None:
        """Takes the attachment at exactly that path out of the tree; open files go on.

        Raises:
            NotFoundError: nothing is attached at that path.
        """
        self.control.detach(os.fspath(path))

    def attachments(self) -> Sequence[dict[str, Any]]:
        """Every attachment with its health."""
        return self.control.attachments()

    def status(self) -> dict[str, Any]:
        """What the node does: cache, sources, jobs, memory."""
        return self.control.status()

    def close(self) -> None:
        """Closes the connections. Open files whose content is complete stay readable; the next use connects again."""
        self.core.close()

    def _job(self, kind: str, path: TreePath, options: dict[str, Any] | None = None) -> Job:
        return Job(self.control, self.control.submit_job(kind, os.fspath(path), options))

    def _pages(self, page_of: Any, path: TreePath) -> Iterator[Entry]:
        path = os.fspath(path)
        page, after = page_of(path, None, PAGE_ENTRIES)
        return self._rest(page_of, path, page, after)

    def _rest(self, page_of: Any, path: str, page: Any, after: str | None) -> Iterator[Entry]:
        yield from page
        while after is not None:
            page, after = page_of(path, after, PAGE_ENTRIES)
            yield from page
