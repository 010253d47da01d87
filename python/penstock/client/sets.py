"""Sets: files that appear together, or not at all."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from penstock.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self

    from typing_extensions import Buffer

    from penstock._native import Core, Writer
    from penstock.client.client import Client

__all__ = ["SetFile", "SetInfo", "SetWriter", "each_file", "found", "remove_below"]

COPIED_AT_ONCE = 4 << 20
"""Bytes of a local file that are copied at a time."""


@dataclass(frozen=True)
class SetInfo:
    """A set as it is now.

    Attributes:
        path: the directory that it is shown as; of one that was not published, the directory that it was begun in.
        id: names the place of its bytes.
        state: ``staged`` on this node alone; ``uploading``; ``source``, where everybody sees it; ``conflict``;
            ``unpublished`` while it is being written, or when it was left behind.
        files: how many.
        size_bytes: of all of them.
        left_bytes: what the source has not got of that.
        created_ms: when it was published, or begun, milliseconds since the Unix epoch.
        durability: what was promised; empty for one that was not published.
        failure: why the last try to upload it failed, or what is in the way.
    """

    path: str
    id: str
    state: Literal["staged", "uploading", "source", "conflict", "unpublished"]
    files: int
    size_bytes: int
    left_bytes: int
    created_ms: int
    durability: str
    failure: str | None

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON has it."""
        return asdict(self)


@dataclass(frozen=True)
class SetFile:
    """A file of a set, as its manifest says.

    Attributes:
        path: in the set.
        size: bytes.
        modified_ms: milliseconds since the Unix epoch.
        version: of the object that has its bytes.
        crc32c: of the content, eight hexadecimal digits.
    """

    path: str
    size: int
    modified_ms: int
    version: str
    crc32c: str


class SetWriter:
    """A set that is being written: nobody sees anything of it before it is published.

    Leaving a ``with`` block publishes it, leaving that by an exception discards it. Threads may share it. It pickles:
    in another process of this machine it writes into the same set, which one of them publishes when all files are
    closed.

    Attributes:
        path: the directory that it will be shown as.
        id: names the place of its bytes.
    """

    def __init__(self, client: Client, path: str, id: str, durability: str | None = None) -> None:  # noqa: A002
        self.path = path
        self.id = id
        self._client = client
        self._durability = durability

    def __reduce__(self) -> tuple[Any, ...]:
        return (SetWriter, (self._client, self.path, self.id, self._durability))

    def __repr__(self) -> str:
        return f"<penstock SetWriter {self.path!r} {self.id}>"

    def open(self, name: str | os.PathLike[str], mode: str = "wb", **text: Any) -> Any:
        """Opens a file of the set for writing; it is in the set once it is closed without an error.

        Args:
            name: relative path in the set, such as ``model/part-1.bin``. A name that was written before is replaced.
            mode: ``wb``, or ``xb`` only where nothing has the name; ``w``, ``wt``, ``x``, ``xt`` for text.
            text: ``encoding`` (UTF-8 unless given), ``errors``, ``newline``.
        Returns:
            As :meth:`Client.open` in these modes.
        Raises:
            InvalidInputError: no path in a set; the set was published already.
            NoSpaceError: from ``write`` and ``close``: the stage or its disk is full.
            ValueError: another mode.
        Cost: as writing any file; ``close`` waits for no upload, whatever durability the set has.
        """
        if mode not in ("wb", "xb", "w", "wt", "x", "xt"):
            raise ValueError(f"open {name} of the set {self.path}: mode {mode!r} does not write a new content")
        writer: Writer = self._client.core.create(
            self._path_of(name), "xb" if mode.startswith("x") else "wb", None, (self.path, self.id)
        )
        if mode.endswith("b"):
            return writer
        from penstock.client.text import write_as_text

        return write_as_text(writer, text)  # type: ignore[arg-type]

    def write(self, name: str | os.PathLike[str], content: Buffer) -> None:
        """Writes a whole file of the set.

        Raises:
            As :meth:`open`.
        """
        with self.open(name) as file:
            file.write(content)

    def put(self, local: str | os.PathLike[str], name: str | os.PathLike[str] | None = None) -> None:
        """Copies a local file, or all files below a local directory, into the set.

        Args:
            local: path on this machine.
            name: what it is called in the set; ``None`` for the last part of its own path. ``"."`` puts what is in a
                directory into the set itself.
        Raises:
            OSError: the local files cannot be read.
            PenstockError: as :meth:`open`.
        """
        from pathlib import Path

        source = Path(local)
        base = source.resolve().name if name is None else os.fspath(name)
        if not source.is_dir():
            self._copy(source, base)
            return
        for directory, _, files in os.walk(source):
            for file in sorted(files):
                whole = Path(directory, file)
                inner = whole.relative_to(source).as_posix()
                self._copy(whole, inner if base in ("", ".") else f"{base}/{inner}")

    def publish(self) -> None:
        """Makes every file that was closed before appear, all at once.

        Raises:
            AlreadyExistsError: something has the name by now.
            InvalidInputError: nothing was written into the set; a name is that of a file and of a directory.
            TimedOutError: at durability ``source``: the source has not taken it. It is staged, seen on this node, and
                goes on being uploaded.
        Cost: one sync, and what is left of computing checksums.
        """
        self._client.core.publish_set(self.path, self.id, self._durability)

    def discard(self) -> None:
        """Gives the set up: nothing of it stays, here or in the source.

        Raises:
            InvalidInputError: it was published.
        """
        self._client.core.discard_set(self.path, self.id)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            try:
                self.publish()
            except InvalidInputError:
                self._discard_quietly()
                raise
            return
        self._discard_quietly()

    def _discard_quietly(self) -> None:
        from contextlib import suppress

        from penstock.errors import PenstockError

        # The error that is on its way says more; what is left is shown by `penstock ckpt ls` and removed by its gc.
        with suppress(PenstockError):
            self.discard()

    def _path_of(self, name: str | os.PathLike[str]) -> str:
        text = os.fspath(name)
        parts = text.split("/")
        if not text or any(part in ("", ".", "..") for part in parts):
            raise InvalidInputError(
                f"write {text!r} into the set {self.path}",
                "a name in a set is relative, without empty parts, '.' and '..'",
                "name it as in model/part-1.bin",
            )
        return f"{self.path}/{text}"

    def _copy(self, local: os.PathLike[str], name: str) -> None:
        import shutil
        from pathlib import Path

        with Path(local).open("rb") as source, self.open(name) as target:
            shutil.copyfileobj(source, target, COPIED_AT_ONCE)


def found(core: Core, path: str) -> list[SetInfo]:
    """The sets at and below a path, oldest first."""
    return [SetInfo(**one) for one in json.loads(core.sets(path))]


def remove_below(client: Client, path: str) -> Iterator[str]:
    """Removes the sets that were published at and below a path, each as a whole; says which, one by one."""
    for known in client.sets(path):
        is_there = known.path == path or known.path.startswith(f"{path.rstrip('/')}/")
        if is_there and known.state in ("staged", "uploading", "source"):
            client.remove_set(known.path)
            yield known.path


def each_file(core: Core, path: str) -> Iterator[SetFile]:
    """What the manifest of a set says, in the order of paths."""
    after = None
    while True:
        page = json.loads(core.set_files(path, after))
        for one in page["files"]:
            yield SetFile(**one)
        after = page["next"]
        if after is None:
            return
