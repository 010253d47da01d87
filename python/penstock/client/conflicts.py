"""What a source did not take because of somebody else's version, and how that is settled."""

from __future__ import annotations

import io
import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import BufferedReader

    from typing_extensions import Buffer

    from penstock._native import Core

__all__ = ["Conflict", "InSource", "Keep", "each_conflict", "open_content", "settle"]

Keep: TypeAlias = Literal["mine", "theirs"]
"""Whose content stays: what was written here, or what the source has."""

PAGE_CONFLICTS = 256
"""Conflicts of one round trip: each may be a request to the source."""


@dataclass(frozen=True)
class InSource:
    """What a source has under a name.

    Attributes:
        state: ``file``, ``nothing``, or ``unknown`` where the source does not say.
        size: bytes of a file.
        modified_ms: of a file, milliseconds since the Unix epoch.
        version: of a file.
        reason: why it is unknown.
    """

    state: Literal["file", "nothing", "unknown"]
    size: int | None = None
    modified_ms: int | None = None
    version: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Conflict:
    """A file that was written here, or a removal, that would have replaced a version nobody here has seen.

    Attributes:
        path: where it was written.
        operation: its name, which tells it from others of the same path.
        size: bytes that are kept; ``None`` for a removal.
        written_ms: when it was written, milliseconds since the Unix epoch.
        code: ``conflict``; ``corrupt`` when its bytes are lost.
        reason: what is in the way.
        source: what the source has now; ``None`` where it was not asked.
    """

    path: str
    operation: str
    size: int | None
    written_ms: int
    code: str
    reason: str
    source: InSource | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as ``--json`` prints them."""
        return asdict(self)


def each_conflict(core: Core, path: str, *, below: bool, look: bool) -> Iterator[Conflict]:
    """The conflicts of a path, oldest first, as they come.

    Args:
        core: of whose node.
        path: absolute path in the tree.
        below: those of everything below it as well.
        look: ask the sources what they have now.
    Raises:
        NotFoundError: nothing is attached there; without ``below``, nothing of the path is in conflict.
    """
    after: str | None = None
    while True:
        page = json.loads(core.conflicts_page(path, below, look, after, PAGE_CONFLICTS))
        yield from map(_conflict, page["conflicts"])
        after = page["next"]
        if after is None:
            return


def settle(core: Core, path: str, keep: Keep, operation: str | None, *, every: bool) -> list[Conflict]:
    """Settles one conflict of a path, or every one: see :meth:`Client.resolve_conflict`.

    The node is told which one by its operation: asked again after its restart, it must not take another one.
    """
    known = list(each_conflict(core, path, below=False, look=False))[::-1]
    if operation is not None:
        # One that is not there is refused by the node, which says what is.
        known = [each for each in known if each.operation == operation]
        chosen = [(operation, known[0] if known else None)]
    else:
        chosen = [(each.operation, each) for each in (known if every else known[:1])]
    settled = []
    for number, (name, conflict) in enumerate(chosen):
        # The newest of ours is what stays: the others would only be replaced by it.
        text = core.resolve_conflict(path, name, keep == "mine" and number == 0)
        if text is not None:
            conflict = _conflict(json.loads(text))
        if conflict is not None:
            settled.append(conflict)
    return settled


def open_content(core: Core, path: str, operation: str | None) -> BufferedReader:
    """What is kept of a conflict, the newest one of the path unless another is named."""
    if operation is None:
        *_, newest = each_conflict(core, path, below=False, look=False)
        operation = newest.operation
    return io.BufferedReader(_Content(core.conflict_content(path, operation)))


class _Content(io.RawIOBase):
    """A file behind a descriptor whose position is somebody else's."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        read = os.preadv(self._descriptor, [buffer], self._at)
        self._at += read
        return read

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: os.fstat(self._descriptor).st_size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()


def _conflict(known: dict[str, Any]) -> Conflict:
    source = known.pop("source")
    if source is not None:
        source.pop("code", None)
        source = InSource(**source)
    return Conflict(**known, source=source)
