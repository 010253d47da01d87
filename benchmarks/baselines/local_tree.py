"""Files of a directory, local or mounted, read as programs read them: the same code on both sides.

Library: ``os``. Checksums: none. Destination: one buffer of this process.
"""

import mmap
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HOW_SMALL = "open, readv into one buffer, close, one file after another, one thread"
HOW_LARGE = "open, readinto of 1 MiB in a loop, one thread"
HOW_RANDOM = "pread of 4 KiB at random offsets of one open file, one thread"
HOW_MAPPED = "mmap, one byte of every page, one thread"
HOW_WALK = "os.walk and os.stat of every file"

PAGE_BYTES = 4096


def small(directory: Path, names: Sequence[str], buffer: bytearray) -> int:
    total, base = 0, f"{directory}/"
    for name in names:
        descriptor = os.open(base + name, os.O_RDONLY)
        total += os.readv(descriptor, [buffer])
        os.close(descriptor)
    return total


def small_in_threads(directory: Path, names: Sequence[str], size: int, threads: int) -> int:
    def one(name: str) -> int:
        with open(f"{directory}/{name}", "rb", buffering=0) as file:  # noqa: PTH123 - the shortest way
            return len(file.read(size))

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(one, names))


def large(path: Path, buffer: memoryview) -> int:
    total = 0
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            total += count
    return total


def scattered(path: Path, offsets: Sequence[int], length: int) -> int:
    descriptor = os.open(path, os.O_RDONLY)
    total = 0
    try:
        for offset in offsets:
            total += len(os.pread(descriptor, length, offset))
    finally:
        os.close(descriptor)
    return total


def mapped(path: Path) -> int:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapping:
        return len(mapping[::PAGE_BYTES])


def walk(directory: Path) -> int:
    found = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            found += os.stat(f"{parent}/{name}").st_size > 0  # noqa: PTH116 - the shortest way
    return found
