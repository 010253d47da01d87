"""Files of the local file system, written as a careful program writes them: synced, and their directory too.

Library: ``os``. Checksums: none. Destination: new files; each is written, synced, closed, and its directory synced.
"""

import os
from pathlib import Path

HOW = "os.open, os.write, os.fsync, os.close, fsync of the directory"


def one(path: Path, pieces: list[memoryview]) -> None:
    """One file of these pieces."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        for piece in pieces:
            os.write(file, piece)
        os.fsync(file)
    finally:
        os.close(file)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
