"""The tree as an fsspec file system: ``penstock:///data/a.parquet`` works wherever fsspec URLs do.

Registered by entry point, so that pandas, pyarrow, DuckDB, datasets and the like find it by name. Where nothing is
attached as writable, what would write raises :class:`~penstock.errors.ReadOnlyError`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.core import has_magic
from fsspec.spec import AbstractFileSystem
from fsspec.utils import stringify_path, tokenize

from penstock.errors import (
    AlreadyExistsError,
    BusyError,
    CrossDeviceError,
    InvalidInputError,
    IsDirectoryError,
    NotDirectoryError,
    NotEmptyError,
    NotFoundError,
    UnsupportedError,
)
from penstock.policies.attachments import check_tree_path

if TYPE_CHECKING:
    from typing import Self

    from penstock.client import Client

__all__ = ["PenstockFileSystem"]

COPY_BYTES = 4 << 20
"""Read and written at a time when a file is copied."""


class PenstockFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """The tree of this machine's node. A file that is written appears when it is closed, whole or not at all.

    Args:
        home: the home of the node; default is that of the environment.
        start: start a node where none runs.
        options: what fsspec itself understands; listings are never kept here, for the node keeps them.
    """

    protocol = "penstock"
    root_marker = "/"
    async_impl = False
    cachable = True

    def __init__(self, home: str | None = None, start: bool = True, **options: Any) -> None:
        super().__init__(**{**options, "use_listings_cache": False})
        self._home = home
        self._start = start
        self._connected: Client | None = None

    @property
    def client(self) -> Client:
        """The client behind it, connected when first used."""
        if self._connected is None:
            from penstock.client import connect

            self._connected = connect(self._home, start=self._start)
        return self._connected

    @property
    def fsid(self) -> str:
        """Names the tree: the same home means the same files."""
        return f"penstock-{tokenize(self._home)}"

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        """The path in the tree: absolute, without a trailing slash."""
        if isinstance(path, list):
            return [cls._strip_protocol(each) for each in path]
        text = str(stringify_path(path))
        text = text.removeprefix("penstock://").removeprefix("penstock::")
        return "/" + text.strip("/")

    def unstrip_protocol(self, name: str) -> str:
        """The URL of a path: ``penstock:///data/a``."""
        return "penstock://" + str(self._strip_protocol(name))

    @classmethod
    def _parent(cls, path: str) -> str:
        return str(cls._strip_protocol(path)).rpartition("/")[0] or "/"

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Name, type, size, modification time and version of one path.

        Raises:
            NotFoundError: nothing has that name.
        """
        path = check_tree_path(self._strip_protocol(path))
        return _info(path, self.client.stat(path))

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """What is in a directory; a file is its own only entry."""
        path = check_tree_path(self._strip_protocol(path))
        try:
            found = [_info(_join(path, entry.name), entry) for entry in self.client.list(path)]
        except NotDirectoryError:
            found = [self.info(path)]
        return found if detail else [each["name"] for each in found]

    def find(
        self,
        path: str,
        maxdepth: int | None = None,
        withdirs: bool = False,
        detail: bool = False,
        **_: Any,
    ) -> Any:
        """Every file below a path, by one flat walk: no call a directory.

        Args:
            path: where to begin; a file finds itself.
            maxdepth: levels to go down, at least 1.
            withdirs: directories too.
            detail: a dictionary from name to info instead of a list of names.
        """
        path = check_tree_path(self._strip_protocol(path))
        if maxdepth is not None and maxdepth < 1:
            raise ValueError("maxdepth must be at least 1")
        found = {each["name"]: each for each in self._walked(path, maxdepth, withdirs=withdirs)}
        names = sorted(found)
        return {name: found[name] for name in names} if detail else names

    def _walked(self, path: str, maxdepth: int | None, *, withdirs: bool) -> Iterator[dict[str, Any]]:
        try:
            root = self.info(path)
        except FileNotFoundError:
            return
        if root["type"] == "file" or withdirs:
            yield root
        if root["type"] == "file":
            return
        for entry in self.client.walk(path):
            within = maxdepth is None or entry.name.count("/") < maxdepth
            if within and (withdirs or not entry.is_directory):
                yield _info(_join(path, entry.name), entry)

    def exists(self, path: str, **_: Any) -> bool:
        """Whether anything has that name. Failures other than its absence are raised, not taken for it."""
        try:
            self.info(path)
        except (FileNotFoundError, NotADirectoryError, InvalidInputError):
            return False
        return True

    def ukey(self, path: str) -> str:
        """The version of a file: it changes whenever the content does."""
        return str(self.info(path)["version"])

    def checksum(self, path: str) -> int:
        """The version as a number."""
        return int(tokenize(self.ukey(path)), 16)

    def modified(self, path: str) -> datetime:
        """When a file was last modified."""
        moment = self.info(path)["mtime"]
        if moment is None:
            raise UnsupportedError(f"date {path}", "directories have no modification time")
        return datetime.fromtimestamp(moment, UTC)

    def created(self, path: str) -> NoReturn:
        """Object stores keep no such time."""
        raise UnsupportedError(f"date {path}", "sources keep no time of creation", "use modified()")

    def open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        cache_options: dict[str, Any] | None = None,
        compression: str | None = None,
        **options: Any,
    ) -> Any:
        """Opens a file: ``rb`` or ``r`` to read, ``wb``, ``w``, ``xb`` or ``x`` to write it as a whole.

        ``ab`` or ``a`` append to it, ``r+b`` changes it. Left by an exception, a ``with`` block of a file that is
        written discards it.

        Args:
            path: of the tree, or its URL.
            mode: as of the built-in ``open``.
            block_size: means nothing here, as ``cache_options``.
            cache_options: means nothing here.
            compression: only to read; ``fsspec.open`` has it for both.
            options: ``encoding``, ``errors``, ``newline`` of text; ``durability`` of what is written.
        Raises:
            ReadOnlyError: it is to be written, and not attached as writable.
            UnsupportedError: compression of what is written.
        """
        if compression is not None and mode not in ("r", "rb", "rt"):
            reason = "who closes the compressed file would leave this one open, and it would be lost"
            raise UnsupportedError(f"open {path}", reason, "write by fsspec.open(url, mode, compression=...)")
        if "x" in mode and self.exists(path):
            # Said now where it can be; the close says it again, where somebody was quicker.
            raise AlreadyExistsError(f"open {path}", "something has that name", "write with mode 'wb' to replace it")
        if "b" not in mode and mode not in ("r", "rt") and options.get("autocommit", not self._intrans):
            # Of text, only the client's own files are discarded by an exception.
            known = ("encoding", "errors", "newline", "durability")
            text = {name: options[name] for name in known if name in options}
            return self.client.open(check_tree_path(self._strip_protocol(path)), mode, **text)
        return super().open(path, mode, block_size, cache_options, compression, **options)

    def _open(
        self, path: str, mode: str = "rb", autocommit: bool = True, durability: str | None = None, **_: Any
    ) -> Any:
        path = check_tree_path(self._strip_protocol(path))
        if mode == "rb":
            return self.client.open(path)
        writer: Any = self.client.open(path, mode, durability=durability)
        if autocommit:
            return writer
        held = _Held(writer)
        if "r" in mode:
            # Of these, fsspec takes none for one that is written.
            self.transaction.files.append(held)
        return held

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """Content of a file, or a range of it; negative offsets count from the end."""
        path = check_tree_path(self._strip_protocol(path))
        if start is None and end is None:
            return bytes(self._whole([path])[0])
        with self.client.open(path) as stream:
            first, last, _step = slice(start, end).indices(stream.size)
            return bytes(stream.pread(max(0, last - first), first))

    def cat_ranges(
        self,
        paths: list[str],
        starts: Iterable[int | None] | int | None,
        ends: Iterable[int | None] | int | None,
        max_gap: int | None = None,  # noqa: ARG002 - the core joins near ranges by itself
        on_error: str = "return",
        **_: Any,
    ) -> list[Any]:
        """Ranges of many files: one round trip a file, whatever the number of ranges.

        Returns:
            One ``bytes`` a range, in the same order; with ``on_error="return"`` an exception where a file failed.
        """
        if not isinstance(paths, list):
            raise TypeError("paths must be a list")
        lows = list(starts) if isinstance(starts, Iterable) else [starts] * len(paths)
        highs = list(ends) if isinstance(ends, Iterable) else [ends] * len(paths)
        if not len(paths) == len(lows) == len(highs):
            raise ValueError("paths, starts and ends must have the same length")
        by_path: dict[str, list[int]] = {}
        for index, path in enumerate(paths):
            by_path.setdefault(check_tree_path(self._strip_protocol(path)), []).append(index)
        results: list[Any] = [None] * len(paths)
        for path, indices in by_path.items():
            try:
                wanted = [(lows[index], highs[index]) for index in indices]
                for index, content in zip(indices, self._ranges(path, wanted), strict=True):
                    results[index] = content
            except OSError as error:
                if on_error == "raise":
                    raise
                for index in indices:
                    results[index] = error
        return results

    def _ranges(self, path: str, wanted: list[tuple[int | None, int | None]]) -> list[bytes]:
        plain = [(low or 0, high) for low, high in wanted if (low or 0) >= 0 and high is not None and high >= 0]
        if len(plain) == len(wanted):
            ranges = [(low, max(low, high or 0)) for low, high in plain]
            return [bytes(view) for view in self.client.read_ranges(path, ranges)]
        return [self.cat_file(path, low, high) for low, high in wanted]

    def cat(self, path: Any, recursive: bool = False, on_error: str = "raise", **_: Any) -> Any:
        """Content of one file, or a dictionary of many, which are read as one batch."""
        names = self.expand_path(path, recursive=recursive)
        single = isinstance(path, str) and names == [self._strip_protocol(path)] and not self.isdir(path)
        if single:
            return self.cat_file(names[0])
        names = [name for name in names if not self.isdir(name)]
        contents = self._whole(names, raising=on_error == "raise")
        pairs = zip(names, contents, strict=True)
        return {name: content for name, content in pairs if on_error != "omit" or not isinstance(content, Exception)}

    def _whole(self, paths: list[str], *, raising: bool = True) -> list[Any]:
        contents = self.client.read_many(paths, return_errors=not raising)
        return [content if isinstance(content, Exception) else bytes(content) for content in contents]

    def pipe_file(self, path: str, value: Any, mode: str = "overwrite", **_: Any) -> None:
        """Writes a file as a whole; with ``mode="create"`` only where nothing has the name."""
        with self.open(path, "xb" if mode == "create" else "wb") as stream:
            stream.write(value)

    def put_file(
        self, lpath: str, rpath: str, callback: Any = DEFAULT_CALLBACK, mode: str = "overwrite", **_: Any
    ) -> None:
        """Copies a local file into the tree; of a directory there is nothing to copy."""
        source = Path(lpath)
        if source.is_dir():
            self.makedirs(rpath, exist_ok=True)
            return
        with source.open("rb") as stream:
            callback.set_size(source.stat().st_size)
            self._fill(stream, rpath, "xb" if mode == "create" else "wb", callback)

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        """Copies a file within the tree; of a directory there is nothing to copy."""
        source, target = self._strip_protocol(path1), self._strip_protocol(path2)
        if source == target:
            raise InvalidInputError(f"copy {source}", "it would be copied onto itself", "choose another target")
        if self.isdir(source):
            self.makedirs(target, exist_ok=True)
            return
        with self.client.open(check_tree_path(source)) as stream:
            self._fill(stream, target, "wb", DEFAULT_CALLBACK)

    def _fill(self, stream: Any, path: str, mode: str, callback: Any) -> None:
        buffer = memoryview(bytearray(COPY_BYTES))
        with self.open(path, mode) as out:
            while size := stream.readinto(buffer):
                out.write(buffer[:size])
                callback.relative_update(size)

    def touch(self, path: str, truncate: bool = True, **_: Any) -> None:
        """Writes an empty file, with ``truncate=False`` only where nothing has the name.

        Raises:
            UnsupportedError: it is there and shall keep its content: its time cannot be changed in this version.
        """
        if not truncate and self.exists(path):
            raise UnsupportedError(f"touch {path}", "times cannot be changed in this version", "write the file again")
        with self.open(path, "wb" if truncate else "xb"):
            pass

    def rm_file(self, path: str) -> None:
        """Removes one file, from the tree at once and from its source.

        Raises:
            NotFoundError: nothing has that name.
            IsDirectoryError: it is a directory; see :meth:`rm`.
        """
        self.client.remove(check_tree_path(self._strip_protocol(path)))

    def _rm(self, path: str) -> None:
        self.rm_file(path)

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Removes files; with ``recursive`` directories too, by everything in them. Many at once.

        Raises:
            IsDirectoryError: one is a directory, without ``recursive``; nothing is removed then.
            NotFoundError: nothing has one of the names; others may be removed then.
        """
        from penstock.client.many import for_each

        files: dict[str, None] = {}
        directories: list[str] = []
        if recursive and maxdepth is None:
            path = self._without_sets(path)
        for name in self.expand_path(path, recursive=recursive, maxdepth=maxdepth) if path else ():
            if not self.isdir(name):
                files[name] = None
            elif recursive:
                directories.append(name)
            else:
                raise IsDirectoryError(f"remove {name}", "it is a directory", "give recursive=True")
        for _, error in for_each(self.rm_file, files):
            if error is not None:
                raise error
        for name in sorted(directories, key=len, reverse=True):
            with suppress(NotFoundError, BusyError):  # it went with its last file, or something is attached there
                self.client.rmdir(check_tree_path(name))

    def _without_sets(self, path: Any) -> list[str]:
        """Removes the sets at and below paths, each as a whole; the paths that are none themselves."""
        from penstock.client.sets import remove_below

        left: list[str] = []
        for name in self.expand_path(path):
            if not self.isdir(name):
                left.append(name)
                continue
            tree_path = check_tree_path(name)
            sets = list(remove_below(self.client, tree_path))
            if tree_path not in sets and (not sets or self.exists(name)):
                left.append(name)
        return left

    def mv(self, path1: str, path2: str, recursive: bool = False, maxdepth: int | None = None, **kwargs: Any) -> None:
        """Gives a file, or with ``recursive`` a directory, another name; into another attachment by a copy.

        Raises:
            IsDirectoryError: it is a directory, without ``recursive``.
            NotFoundError: nothing has the first name.
        """
        source, target = self._strip_protocol(path1), self._strip_protocol(path2)
        if source == target:
            return
        whole = maxdepth is None and not has_magic(source)
        if whole and (recursive or not self.isdir(source)):
            if self.isdir(target) or path2.endswith("/"):
                target = f"{target.rstrip('/')}/{source.rsplit('/', 1)[-1]}"
            with suppress(CrossDeviceError, NotEmptyError):
                self.client.rename(check_tree_path(source), check_tree_path(target))
                return
        super().mv(path1, path2, recursive=recursive, maxdepth=maxdepth, **kwargs)

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:  # noqa: ARG002
        """Makes nothing: a directory is there as soon as it has a file.

        Raises:
            AlreadyExistsError: a file has that name.
        """
        self.makedirs(path, exist_ok=True)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Makes nothing: a directory is there as soon as it has a file.

        Raises:
            AlreadyExistsError: a file has that name; or it is there, without ``exist_ok``.
        """
        path = check_tree_path(self._strip_protocol(path))
        try:
            is_directory = self.client.stat(path).is_directory
        except (NotFoundError, NotDirectoryError):
            return
        if not is_directory:
            raise AlreadyExistsError(f"make {path}", "a file has that name", "choose another name")
        if not exist_ok:
            raise AlreadyExistsError(f"make {path}", "the directory is there", "give exist_ok=True")

    def rmdir(self, path: str) -> None:
        """Removes an empty directory; one that is not there went with its last file.

        Raises:
            NotEmptyError: there are files in it.
            NotDirectoryError: it is a file.
        """
        with suppress(NotFoundError):
            self.client.rmdir(check_tree_path(self._strip_protocol(path)))


class _Held:
    """A file of a transaction: what is written appears when the transaction ends, or never."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self.closed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def close(self) -> None:
        """Nothing more is written; it appears with the transaction."""
        self.closed = True

    def commit(self) -> None:
        """Makes it appear."""
        self._writer.close()

    def discard(self) -> None:
        """Forgets it."""
        self.closed = True
        self._writer.discard()


def _info(path: str, entry: Any) -> dict[str, Any]:
    directory = entry.is_directory
    said = {"mode": entry.mode, "uid": entry.uid, "gid": entry.gid}
    return {
        "name": path,
        "type": "directory" if directory else "file",
        "size": 0 if directory else entry.size,
        "mtime": None if directory else entry.modified_ms / 1000,
        "version": entry.version,
        # Only what somebody has said: nobody takes the absence of an owner for root.
        **{name: value for name, value in said.items() if value is not None},
    }


def _join(path: str, name: str) -> str:
    return f"{path.rstrip('/')}/{name}"
