"""Readers in processes of their own that check every byte while somebody overwrites the objects.

Run as ``python race.py HOME SEED``; reads until its standard input ends, then tells what it saw as one line of JSON.
"""

from __future__ import annotations

import json
import random
import select
import sys
from collections import Counter
from typing import Any

import penstock
from fault import oracle
from penstock.errors import StaleVersionError

KIB = 1024
SMALL = 96
"""Objects that are fetched whole."""

LARGE = 6
"""Objects that are partly cached while they change."""

OBJECTS = SMALL + LARGE
BATCH = 64


def size_of(number: int, version: int) -> int:
    """Versions differ in size, so that a size of one with bytes of another is seen."""
    step = (version * 37 + number) % 11
    return 8 * KIB + step * 4 * KIB + step if number < SMALL else 9 * KIB * KIB + step * 100_003


def key_of(number: int) -> str:
    return f"{number % 5}/{number}"


def path_of(number: int) -> str:
    return f"/data/{key_of(number)}"


class Reader:
    """Reads at random in every way, and checks."""

    def __init__(self, home: str, seed: str) -> None:
        self.client: Any = penstock.connect(home, start=False)
        self.chance = random.Random(seed)
        self.checked = 0
        self.stale = 0
        self.versions: Counter[str] = Counter()
        self.tokens: dict[str, int] = {}

    def report(self) -> dict[str, Any]:
        """What it saw."""
        return {"checked": self.checked, "stale": self.stale, "versions": self.versions, "tokens": self.tokens}

    def step(self) -> None:
        """One call of a random kind."""
        way = self.chance.choices([self.batch, self.ranges, self.pread, self.readinto], [30, 4, 4, 3])[0]
        try:
            way()
        except StaleVersionError:
            self.stale += 1

    def batch(self) -> None:
        numbers = self.chance.sample(range(SMALL), BATCH)
        found = self.client.read_many([path_of(number) for number in numbers], return_errors=True)
        for number, view in zip(numbers, found, strict=True):
            if isinstance(view, StaleVersionError):
                self.stale += 1
            elif isinstance(view, Exception):
                raise view
            else:
                self.whole(number, bytes(view))

    def ranges(self) -> None:
        number = self.chance.randrange(OBJECTS)
        cuts = sorted(self.chance.randrange(size_of(number, 0)) for _ in range(8))
        spans = [(start, min(start + 9000, start + end)) for start, end in zip(cuts[::2], cuts[1::2], strict=True)]
        version = None
        for (start, _), view in zip(spans, self.client.read_ranges(path_of(number), spans), strict=True):
            version = self.part(number, version, start, bytes(view))

    def pread(self) -> None:
        number = self.chance.randrange(OBJECTS)
        with self.client.open(path_of(number)) as file:
            version = None
            for _ in range(4):
                start = self.chance.randrange(size_of(number, 0))
                version = self.part(number, version, start, file.pread(self.chance.choice([100, 5000, 70_000]), start))
            self.pinned(number, version, file)

    def readinto(self) -> None:
        number = self.chance.randrange(OBJECTS)
        buffer = bytearray(self.chance.choice([4096, 30_000, 300_000]))
        with self.client.open(path_of(number)) as file:
            file.seek(self.chance.randrange(size_of(number, 0)))
            version = None
            for _ in range(3):
                start = file.tell()
                count = file.readinto(buffer)
                version = self.part(number, version, start, bytes(buffer[:count]))
            self.pinned(number, version, file)

    def whole(self, number: int, found: bytes) -> None:
        version = oracle.version_in(found, 0)
        assert len(found) == size_of(number, version), f"object {number} version {version} has {len(found)} bytes"
        self.part(number, version, 0, found)

    def part(self, number: int, version: int | None, start: int, found: bytes) -> int | None:
        if len(found) < 4 * oracle.HEADER_BYTES:
            return version
        claimed = oracle.version_in(found, start)
        assert version in (None, claimed), f"object {number}: version {claimed} after {version} on one handle"
        oracle.check(number, claimed, start, found)
        self.checked += 1
        self.versions[f"{number}/{claimed}"] += 1
        return claimed

    def pinned(self, number: int, version: int | None, file: Any) -> None:
        """What the handle says of itself belongs to the bytes it gave."""
        if version is None:
            return
        assert file.size == size_of(number, version), f"object {number} version {version} is told to have {file.size}"
        known = self.tokens.setdefault(f"{number}/{file.version}", version)
        assert known == version, f"object {number}: token {file.version} was version {known}, now {version}"


def main(home: str, seed: str) -> None:
    reader = Reader(home, seed)
    while not select.select([sys.stdin], [], [], 0)[0]:
        reader.step()
    print(json.dumps(reader.report()), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
