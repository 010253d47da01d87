"""Files that appear as a whole or not at all: what those of text and those to read and write have in common."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from penstock._native import Writer
    from penstock.client.edited import Editor

__all__ = ["Whole"]


class Whole:
    """A buffer over a file that is written, of which what is not closed in good order is discarded.

    That is after an exception in its ``with`` block, and when it is dropped; the built-in ``open`` keeps a half
    written file then. To be put before a class of ``io``.
    """

    _writer: Writer | Editor
    closed: bool
    flush: Callable[[], None]

    def close(self) -> None:
        """Makes what was written the content of the file. Later calls do nothing.

        Raises:
            PenstockError: it is not, unless the message says otherwise.
        Cost: as closing a binary file that is only written.
        """
        if self.closed:
            return
        try:
            self.flush()
        except BaseException:
            # What is missing must not be committed.
            self._writer.discard()
            raise
        self._writer.close()

    def discard(self) -> None:
        """Drops everything that was written; the file stays what it was. Later calls do nothing."""
        self._writer.discard()

    def __enter__(self) -> Self:
        super().__enter__()  # type: ignore[misc]  # of the class behind
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def __del__(self) -> None:
        try:
            is_over = self.closed
        except (AttributeError, ValueError):
            # Never begun, or detached: the file behind is somebody else's.
            return
        if not is_over:
            self.discard()
            warnings.warn(
                f"unclosed file {self._writer.name!r}: what was written to it is discarded",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )
