"""The tree as an fsspec file system: ``penstock:///data/a.parquet`` works wherever fsspec URLs do.

Registered by entry point, so that pandas, pyarrow, DuckDB, datasets and the like find it by name. Read-only in this
version: what would write raises :class:`~penstock.errors.ReadOnlyError`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NoReturn

from fsspec.spec import AbstractFileSystem
from fsspec.utils import stringify_path, tokenize

from penstock.errors import InvalidInputError, NotDirectoryError, ReadOnlyError, UnsupportedError
from penstock.policies.attachments import check_tree_path

if TYPE_CHECKING:
    from penstock.client import Client

__all__ = ["PenstockFileSystem"]


class PenstockFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """The tree of this machine's node, read-only.

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

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        if mode != "rb":
            self._refuse("open", path)
        return self.client.open(check_tree_path(self._strip_protocol(path)))

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

    def _refuse(self, action: str, path: Any) -> NoReturn:
        advice = "write to the source itself; reads see it after the freshness of the attachment"
        raise ReadOnlyError(f"{action} {path}", "attachments are read-only in this version", advice)

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:  # noqa: ARG002
        """Refused: the tree is read-only."""
        self._refuse("make", path)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Refused, unless the directory is there and may be."""
        if not (exist_ok and self.isdir(path)):
            self._refuse("make", path)

    def rmdir(self, path: str) -> None:
        """Refused: the tree is read-only."""
        self._refuse("remove", path)

    def rm_file(self, path: str) -> None:
        """Refused: the tree is read-only."""
        self._refuse("remove", path)

    def _rm(self, path: str) -> None:
        self._refuse("remove", path)

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:  # noqa: ARG002
        """Refused: the tree is read-only."""
        self._refuse("remove", path)

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:  # noqa: ARG002
        """Refused: the tree is read-only."""
        self._refuse("write", path2)

    def mv(self, path1: str, path2: str, *_: Any, **__: Any) -> None:  # noqa: ARG002
        """Refused: the tree is read-only."""
        self._refuse("move", path1)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:  # noqa: ARG002
        """Refused: the tree is read-only."""
        self._refuse("write", path)

    def put_file(self, lpath: str, rpath: str, *_: Any, **__: Any) -> None:  # noqa: ARG002
        """Refused: the tree is read-only."""
        self._refuse("write", rpath)

    def touch(self, path: str, truncate: bool = True, **_: Any) -> None:  # noqa: ARG002
        """Refused: the tree is read-only."""
        self._refuse("write", path)


def _info(path: str, entry: Any) -> dict[str, Any]:
    directory = entry.is_directory
    return {
        "name": path,
        "type": "directory" if directory else "file",
        "size": 0 if directory else entry.size,
        "mtime": None if directory else entry.modified_ms / 1000,
        "version": entry.version,
    }


def _join(path: str, name: str) -> str:
    return f"{path.rstrip('/')}/{name}"
