"""A reader of a mount in a process of its own, which checks every byte while somebody overwrites the objects.

Run as ``python race.py ROOT TABLE INDEX SEED FRESHNESS``; reads until its standard input ends, then tells what it saw
as one line of JSON.
"""

from __future__ import annotations

import errno
import functools
import json
import mmap
import os
import random
import select
import signal
import sys
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fault import oracle

KIB = 1 << 10
MIB = 1 << 20
SMALL = 60
"""Objects that are fetched whole when they are opened, where the cache has room."""

LARGE = 6
"""Objects that are partly cached while they change."""

OBJECTS = SMALL + LARGE
READERS = 3
SMALL_SIZES = [0, 128, 4095, 4096, 10_007, 65_535, 65_536, 100_003, 300 * KIB]
HELD_MAX = 8


def size_of(number: int, version: int) -> int:
    """Versions differ in size, so that a size of one with bytes of another is seen."""
    if number < SMALL:
        size = SMALL_SIZES[(number + 4 * version) % len(SMALL_SIZES)]
        return size + version % 31 if size else 0
    return MIB + 1 + (version * 37 + number) % 20 * 100_003


def key_of(number: int, version: int | None = None) -> str:
    """Where an object is; with a version, where that one is that never changes, in a directory that only it is in."""
    return f"{number % 5}/{number}" if version is None else f"{number}/{version}/it"


@functools.lru_cache(maxsize=256)
def small_content(number: int, version: int) -> bytes:
    return oracle.content(number, version, 0, size_of(number, version))


@functools.lru_cache(maxsize=16)
def large_content(number: int, version: int) -> bytes:
    return oracle.content(number, version, 0, size_of(number, version))


class Table:
    """Numbers that the writer and its readers share: one word each, written by one of them."""

    def __init__(self, path: Path) -> None:
        words = 3 * OBJECTS + READERS
        with path.open("r+b" if path.exists() else "w+b") as file:
            file.truncate(8 * words)
            self._mapping = mmap.mmap(file.fileno(), 8 * words)
        table = memoryview(self._mapping).cast("Q")
        self.begun = table[:OBJECTS]
        """The latest version that may be there."""
        self.there = table[OBJECTS : 2 * OBJECTS]
        """The latest version that is there."""
        self.due = table[2 * OBJECTS : 3 * OBJECTS]
        """The oldest version that an open may still see."""
        self.checked = table[3 * OBJECTS :]
        """Reads that each reader has checked."""


def read_at(fd: int, length: int, start: int) -> bytes:
    """All that is there; a read may end before what cannot be had any more, and the next one says so."""
    found = b""
    while piece := os.pread(fd, length - len(found), start + len(found)):
        found += piece
    return found


@dataclass
class Held:
    """A handle, or a mapping whose handle is closed, of which the version may be known."""

    number: int
    oldest: int
    source: int | mmap.mmap
    version: int | None = None
    is_counted: bool = False

    def read(self, start: int, length: int) -> bytes:
        if isinstance(self.source, int):
            return read_at(self.source, length, start)
        return self.source[start : start + length]

    def close(self) -> None:
        if isinstance(self.source, int):
            os.close(self.source)
        else:
            self.source.close()


class Reader:
    """Reads at random in every way, and checks."""

    def __init__(self, root: Path, table: Table, index: int, chance: random.Random) -> None:
        self.root = root
        self.table = table
        self.index = index
        self.chance = chance
        self.immutable = False
        """Whether each version has a name of its own."""
        self.counts: Counter[str] = Counter()
        self.versions: Counter[str] = Counter()
        self.nodes: dict[str, int] = {}
        self.held: list[Held] = []

    def report(self) -> dict[str, Any]:
        """What it saw."""
        return {"counts": self.counts, "versions": self.versions, "nodes": self.nodes}

    def step(self) -> None:
        """One use of a file, of a random kind."""
        ways = [self.whole, self.parts, self.map if self.immutable else self.map_apart, self.hold, self.look_again]
        way = self.chance.choices(ways, [4, 5, 4 if self.immutable else 0.5, 3, 24])[0]
        try:
            way()
        except OSError as failure:
            if failure.errno != errno.ESTALE:
                raise
            self.counts["stale"] += 1

    def open(self, number: int) -> Held:
        """Opens an object; what it may see is known from what was there before."""
        oldest = self.table.due[number]
        if self.immutable:
            oldest = self.chance.randint(max(1, self.table.there[number] - 5), self.table.there[number])
        path = self.root / key_of(number, oldest if self.immutable else None)
        try:
            fd = os.open(path, os.O_RDONLY)
        except OSError as failure:
            if failure.errno == errno.ESTALE:
                self.counts["stale opens"] += 1
            raise
        self.counts["opens"] += 1
        return Held(number, oldest, fd, oldest if self.immutable else None)

    def any_number(self) -> int:
        """Small ones are many, and large ones take long."""
        large = self.chance.random() < 0.15
        return self.chance.randrange(SMALL, OBJECTS) if large else self.chance.randrange(SMALL)

    def whole(self) -> None:
        held = self.open(self.any_number())
        try:
            pieces, length = [], self.chance.choice([32 * KIB, 100_000, 4 * MIB])
            while piece := os.read(held.source, length) if isinstance(held.source, int) else b"":
                pieces.append(piece)
            found = b"".join(pieces)
            self.check(held, 0, found, reads=len(pieces))
            if found:
                assert len(found) == size_of(held.number, held.version or 0), f"{held} has {len(found)} bytes"
        finally:
            held.close()

    def parts(self) -> None:
        held = self.open(self.any_number())
        try:
            for _ in range(6):
                self.part(held)
            self.know(held)
        finally:
            held.close()

    def map(self) -> None:
        """Only where nothing is overwritten: a page of a mapping that cannot be had any more ends the process."""
        self.keep(self.mapped())

    def map_apart(self) -> None:
        """In a process of its own, which such a page may end."""
        child = os.fork()
        if child == 0:
            os._exit(self.outcome_of_mapping())
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert ended in (0, errno.ESTALE, -signal.SIGBUS), f"reading a mapping ended with {ended}"
        self.counts["stale"] += ended == errno.ESTALE
        self.counts["stale mappings"] += ended == -signal.SIGBUS

    def outcome_of_mapping(self) -> int:
        try:
            self.mapped()
        except OSError as failure:
            return failure.errno or 1
        except Exception:
            traceback.print_exc()
            return 1
        return 0

    def mapped(self) -> Held:
        """An object as a mapping whose handle is closed, where it is not empty."""
        held = self.open(self.any_number())
        kind = self.chance.choice([mmap.MAP_SHARED, mmap.MAP_PRIVATE])
        assert isinstance(held.source, int)
        if size := os.fstat(held.source).st_size:
            held.source, fd = mmap.mmap(held.source, size, flags=kind, prot=mmap.PROT_READ), held.source
            os.close(fd)
            for _ in range(3):
                self.part(held)
        return held

    def hold(self) -> None:
        held = self.open(self.any_number())
        self.keep(held)
        self.part(held)

    def keep(self, held: Held) -> None:
        self.held.append(held)
        if len(self.held) > HELD_MAX:
            self.held.pop(self.chance.randrange(HELD_MAX)).close()

    def look_again(self) -> None:
        """What is held since long is still what it was, or says that it cannot be had."""
        if not self.held:
            return
        held = self.chance.choice(self.held)
        try:
            self.part(held)
        except OSError:
            self.held.remove(held)
            held.close()
            raise

    def part(self, held: Held) -> None:
        size = size_of(held.number, held.version) if held.version else size_of(held.number, max(1, held.oldest))
        start = self.chance.randrange(size + 1)
        length = self.chance.choice([200, 4096, 70_000])
        found = held.read(start, length)
        self.check(held, start, found)
        if held.version:
            wanted = min(length, size_of(held.number, held.version) - start)
            assert len(found) == max(0, wanted), f"{held}: {len(found)} bytes at {start} instead of {wanted}"

    def check(self, held: Held, start: int, found: bytes, reads: int = 1) -> None:
        """Every byte is of one version, which is the handle's, was there, and was not too old when it was opened."""
        self.table.checked[self.index] = self.counts["checked"] = self.counts["checked"] + reads
        if len(found) < 4 * oracle.HEADER_BYTES:
            return
        number, version = held.number, oracle.version_in(found, start)
        begun = self.table.begun[number]
        assert held.version in (None, version), f"object {number}: version {version} after {held.version} on one handle"
        assert held.oldest <= version <= begun, f"object {number}: version {version}, not {held.oldest} to {begun}"
        content = small_content if number < SMALL else large_content
        if content(number, version)[start : start + len(found)] != found:
            oracle.check(number, version, start, found)
        if not held.is_counted:
            held.version, held.is_counted = version, True
            self.versions[f"{number}/{version}"] += 1

    def know(self, held: Held) -> None:
        """What the kernel says of a handle belongs to the bytes it gave."""
        if held.version is None or not isinstance(held.source, int):
            return
        told = os.fstat(held.source)
        assert told.st_size == size_of(held.number, held.version), f"{held} is told to have {told.st_size} bytes"
        known = self.nodes.setdefault(f"{held.number}/{told.st_ino}", held.version)
        assert known == held.version, f"object {held.number}: node {told.st_ino} was {known}, now {held.version}"


def main(root: str, table: str, index: str, seed: str, freshness: str) -> None:
    reader = Reader(Path(root), Table(Path(table)), int(index), random.Random(seed))
    reader.immutable = freshness == "immutable"
    while not select.select([sys.stdin], [], [], 0)[0]:
        reader.step()
    print(json.dumps(reader.report()), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
