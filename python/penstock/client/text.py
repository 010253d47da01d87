"""Text in files that appear as a whole or not at all."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from penstock._native import File, Writer
    from penstock.client.client import TextOptions
    from penstock.client.edited import Editor

__all__ = ["TextWriter", "read_as_text", "write_as_text"]


def read_as_text(file: File, options: TextOptions) -> io.TextIOWrapper:
    """The text of a file that is read; UTF-8 unless another encoding is given."""
    wrapped: dict[str, Any] = {**options, "encoding": options.get("encoding") or "utf-8"}
    return io.TextIOWrapper(file, **wrapped)


def edited(writer: Writer) -> Editor:
    """What is written, to be read as well."""
    from penstock.client.edited import Editor

    return Editor(writer)


def write_as_text(writer: Writer | Editor, options: TextOptions) -> TextWriter:
    """Text that is written to a file, which is discarded where it cannot be text; UTF-8 unless encoded otherwise."""
    wrapped: dict[str, Any] = {**options, "encoding": options.get("encoding") or "utf-8"}
    try:
        return TextWriter(writer, **wrapped)
    except BaseException:
        writer.discard()
        raise


class TextWriter(io.TextIOWrapper):
    """A text file open for writing, of which what is not closed in good order is discarded.

    That is after an exception in its ``with`` block, and when it is dropped; the built-in ``open`` keeps a half
    written file then. Everything else is as there.
    """

    def __init__(
        self, writer: Writer | Editor, *, encoding: str, errors: str | None = None, newline: str | None = None
    ) -> None:
        self._writer = writer
        super().__init__(writer, encoding=encoding, errors=errors, newline=newline)

    def close(self) -> None:
        """Makes the text the content of the file. Later calls do nothing.

        Raises:
            PenstockError: the text was not written, unless the message says otherwise.
        Cost: as closing a binary file.
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
        except ValueError:
            # Detached, or never begun: the binary file is somebody else's.
            return
        if not is_over:
            self.discard()
            warnings.warn(
                f"unclosed file {self._writer.name!r}: what was written to it is discarded",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )
