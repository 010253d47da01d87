"""Files that are read and written at the same time."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from penstock.client.whole import Whole

if TYPE_CHECKING:
    from penstock._native import Writer

__all__ = ["Editor"]

BUFFER_BYTES = 128 * 1024
"""Read and written at a time: less costs a call each."""


class Editor(Whole, io.BufferedRandom):
    """A binary file to read and write, of which what is not closed in good order is discarded.

    That is after an exception in its ``with`` block, and when it is dropped. Everything else is as the built-in
    ``open`` has it.
    """

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        io.BufferedRandom.__init__(self, writer, BUFFER_BYTES)  # type: ignore[arg-type]  # it has what a raw file needs
