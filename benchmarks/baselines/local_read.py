"""Files of the local file system, read as Python reads them; the page cache is hot.

Library: ``open``. Checksums: none. Destination: memory of this process: one buffer for a large file, one ``bytes``
per small file, every one kept.
"""

from collections.abc import Sequence
from pathlib import Path

HOW_LARGE = "open(path, 'rb', buffering=0).readinto in a loop, page cache hot, one buffer"
HOW_SMALL = "open(path, 'rb').read() one after another, page cache hot, all kept"


def large(path: Path, buffer: memoryview) -> int:
    total = 0
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            total += count
    return total


def small(paths: Sequence[str]) -> list[bytes]:
    contents = []
    for path in paths:
        with open(path, "rb") as file:  # noqa: PTH123 - the shortest way is the baseline
            contents.append(file.read())
    return contents
