"""Maps a file, reads its first page, and reads another one once it is told to.

Run as ``python mapping.py PATH OFFSET LENGTH``. Says ``mapped`` when it has the first page; after a line on its
standard input it prints the bytes at the offset in hexadecimal, unless reading them ends it.
"""

from __future__ import annotations

import mmap
import sys
from pathlib import Path


def main(path: str, offset: str, length: str) -> None:
    with Path(path).open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapping:
        mapping.madvise(mmap.MADV_RANDOM)
        print("mapped", mapping[:8].hex(), flush=True)
        sys.stdin.readline()
        print(mapping[int(offset) : int(offset) + int(length)].hex(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
