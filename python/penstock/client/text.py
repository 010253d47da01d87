"""Text in files that appear as a whole or not at all."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from penstock.client.whole import Whole

if TYPE_CHECKING:
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


class TextWriter(Whole, io.TextIOWrapper):
    """A text file open for writing, of which what is not closed in good order is discarded.

    That is after an exception in its ``with`` block, and when it is dropped; the built-in ``open`` keeps a half
    written file then. Everything else is as there.
    """

    def __init__(
        self, writer: Writer | Editor, *, encoding: str, errors: str | None = None, newline: str | None = None
    ) -> None:
        self._writer = writer
        super().__init__(writer, encoding=encoding, errors=errors, newline=newline)
