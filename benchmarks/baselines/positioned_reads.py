"""Random 4 KiB reads on one open file of the local file system by ``os.pread``; the page cache is hot.

Library: ``os.pread``. Checksums: none. Destination: a new ``bytes`` per read.
"""

import os
from collections.abc import Sequence
from pathlib import Path

HOW = "os.pread(fd, 4096, offset) in a loop on one open file, page cache hot"


def run(path: Path, offsets: Sequence[int], length: int) -> int:
    descriptor = os.open(path, os.O_RDONLY)
    total = 0
    try:
        for offset in offsets:
            total += len(os.pread(descriptor, length, offset))
    finally:
        os.close(descriptor)
    return total
