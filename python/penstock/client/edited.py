"""Files that are read and written at the same time."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from penstock._native import Writer

__all__ = ["Editor"]

BUFFER_BYTES = 128 * 1024
"""Read and written at a time: less costs a call each."""


class Editor(io.BufferedRandom):
    """A binary file to read and write, of which what is not closed in good order is discarded.

    That is after an exception in its ``with`` block, and when it is dropped. Everything else is as the built-in
    ``open`` has it.
    """

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        super().__init__(writer, BUFFER_BYTES)  # type: ignore[arg-type]  # it has what a raw file needs

    def close(self) -> None:
        """Makes what it holds the content of the file. Later calls do nothing.

        Raises:
            PenstockError: it is not, unless the message says otherwise.
        Cost: as closing a file that is only written.
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
        """Drops everything that was changed; the file stays what it was. Later calls do nothing."""
        self._writer.discard()

    def __enter__(self) -> Self:
        super().__enter__()
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
            # Never begun, or detached: the raw file is somebody else's.
            return
        if not is_over:
            self.discard()
            warnings.warn(
                f"unclosed file {self._writer.name!r}: what was changed in it is discarded",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )
