"""The only importer of the compiled module: everybody else imports its names from here."""

import io

from penstock._core import (
    VERSION,
    Core,
    Entry,
    File,
    Lease,
    Node,
    Remote,
    View,
    Writer,
    crc32c,
    end_connection,
    error_kinds,
)

# `isinstance(file, io.BufferedIOBase)` is how libraries ask whether something is a binary file.
io.BufferedIOBase.register(File)
io.BufferedIOBase.register(Writer)

__all__ = [
    "VERSION",
    "Core",
    "Entry",
    "File",
    "Lease",
    "Node",
    "Remote",
    "View",
    "Writer",
    "crc32c",
    "end_connection",
    "error_kinds",
]
