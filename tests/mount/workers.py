"""What processes of their own do with files of a mount; imported by them, whichever way they were started."""

from __future__ import annotations

import hashlib
from pathlib import Path


class Samples:
    """A data set of files, as a training script writes it."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[int, str]:
        return index, digest_of(self.paths[index])


class OpenSamples(Samples):
    """The same with files that are opened once, before there are workers."""

    def __init__(self, paths: list[Path]) -> None:
        super().__init__(paths)
        self.streams = [path.open("rb", buffering=0) for path in paths]

    def __getitem__(self, index: int) -> tuple[int, str]:
        self.streams[index].seek(0)
        return index, hashlib.sha256(self.streams[index].readall()).hexdigest()

    def close(self) -> None:
        for stream in self.streams:
            stream.close()


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
