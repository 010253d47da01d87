"""Readers of a mount while what they read is evicted, detached, unmounted, or loses its node: who opens again goes on,
and no byte is ever wrong.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from fault import oracle
from integration.conftest import Machine
from mount.lake import KIB, MIB, WAYS, MountedLake
from mount.race import read_at

SIZES = [*([60 * KIB + 3] * 20), *([700 * KIB + 1] * 5), 3 * MIB + 5, 6 * MIB + 4097]
READERS = 3
READS = 40
"""Reads by each reader before and after something happens."""

GONE = {errno.ENOTCONN, errno.ECONNABORTED, errno.ENOENT, errno.ENODEV, errno.EIO}
"""What a program is told whose node or mount is not there; it opens again later. Where a mount is being made again
nothing is there for a moment.
"""


class Readers:
    """Threads that open, read and check at random until they are told to stop."""

    def __init__(self, roots: list[Path], allowed: set[int]) -> None:
        self.roots = roots
        self.allowed = allowed
        self.read = [0] * READERS
        self.failed: Counter[int] = Counter()
        self.wrong: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(READERS)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def go_on(self, machine: Machine) -> None:
        """Waits until each has read some more."""
        before = list(self.read)

        def have_read() -> bool:
            assert not self.wrong, self.wrong
            return all(now - then >= READS for now, then in zip(self.read, before, strict=True))

        machine.until(have_read, limit_s=60)

    def _run(self, index: int) -> None:
        chance = random.Random(index)
        while not self._stop.is_set():
            number = chance.randrange(len(SIZES))
            try:
                read_some(chance.choice(self.roots) / str(number), number, chance)
                self.read[index] += 1
            except OSError as failure:
                if failure.errno not in self.allowed:
                    self.wrong.append(f"{number}: {failure!r}")
                    return
                self.failed[failure.errno or 0] += 1
                self._stop.wait(0.01)
            except AssertionError as failure:
                self.wrong.append(str(failure))
                return


def read_some(path: Path, number: int, chance: random.Random) -> None:
    """Opens a file and reads it whole or in parts."""
    with path.open("rb", buffering=0) as file:
        if chance.random() < 0.3:
            found = file.readall()
            assert len(found) == SIZES[number], f"{number} has {len(found)} bytes"
            oracle.check(number, 1, 0, found)
            return
        for _ in range(4):
            start = chance.randrange(SIZES[number])
            found = read_at(file.fileno(), 20_000, start)
            assert len(found) == min(20_000, SIZES[number] - start)
            oracle.check(number, 1, start, found)


@pytest.fixture(scope="module")
def shown(guard: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[MountedLake, list[Path]]]:
    """A mount of the same objects in both ways, and a cache that all of them fit into."""
    machine = Machine(tmp_path_factory.mktemp("interrupted"))
    try:
        with MountedLake(machine) as lake:
            for number, size in enumerate(SIZES):
                lake.put(f"it/{number}", oracle.content(number, 1, 0, size))
            yield lake, [lake.attach("it", f"/{way}", way=way) for way in WAYS]
    finally:
        machine.close()


@contextmanager
def reading(machine: Machine, roots: list[Path], allowed: set[int]) -> Iterator[Readers]:
    """Readers that have read something before what is to come, and go on afterwards."""
    readers = Readers(roots, allowed)
    try:
        readers.go_on(machine)
        yield readers
        readers.go_on(machine)
    finally:
        readers.stop()
    assert not readers.wrong, readers.wrong


def test_eviction_is_not_noticed(shown: tuple[MountedLake, list[Path]]) -> None:
    lake, roots = shown
    before = lake.metrics()["cache_evicted_extents"]
    with reading(lake.machine, roots, set()) as readers:
        for path in ("/open", "/no-open/3", "/no-open", "/open/26"):
            lake.machine("evict", path)
            readers.go_on(lake.machine)
    assert lake.metrics()["cache_evicted_extents"] - before > len(SIZES)
    assert not readers.failed


def test_a_source_that_is_attached_again_is_read_on(shown: tuple[MountedLake, list[Path]]) -> None:
    lake, roots = shown
    with reading(lake.machine, roots, GONE | {errno.ESTALE}) as readers:
        for way in WAYS:
            lake.machine.control().detach(f"/{way}", lazy=True)
            lake.machine.until(readers.failed.total)
            readers.failed.clear()
            lake.attach("it", f"/{way}", way=way)
            readers.go_on(lake.machine)


def test_a_tree_that_is_mounted_again_is_read_on(shown: tuple[MountedLake, list[Path]]) -> None:
    lake, roots = shown
    with reading(lake.machine, roots, GONE) as readers:
        lake.machine("umount", str(lake.root), "--lazy")
        lake.machine.until(readers.failed.total)
        lake.machine("mount", str(lake.root))
        readers.go_on(lake.machine)


def test_a_node_that_is_killed_or_stopped_and_started_again_is_read_on(shown: tuple[MountedLake, list[Path]]) -> None:
    lake, roots = shown
    with reading(lake.machine, roots, GONE) as readers:
        lake.machine.kill()
        lake.machine.until(readers.failed.total)
        lake.machine("up")
        readers.go_on(lake.machine)
        lake.machine("down")
        lake.machine("up")


def test_a_mapping_of_a_small_file_outlives_everything(machine: Any) -> None:
    with MountedLake(machine) as lake:
        lake.put("it/small", oracle.content(1, 1, 0, 500_000))
        root = lake.attach("it", "/it", "0", "open")
        if lake.way("/it") != "passthrough":
            pytest.skip("needs the right to let the kernel read files of the cache")
        with (root / "small").open("rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
            steps: list[Callable[[], object]] = [
                lambda: lake.put("it/small", oracle.content(1, 2, 0, 500_001)),
                lambda: machine("evict", "/it"),
                lambda: lake.machine.control().detach("/it", lazy=True),
                lambda: machine("umount", str(lake.root), "--lazy"),
                machine.kill,
                lambda: machine("up"),
            ]
            with closing(mapping):
                for step in steps:
                    step()
                    mapping.madvise(mmap.MADV_DONTNEED)
                    oracle.check(1, 1, 0, mapping[:])
                    oracle.check(1, 1, 4096, os.pread(file.fileno(), 100_000, 4096))
        lake.attach("it", "/it", "0", "open")
        machine("mount", str(lake.root))
        oracle.check(1, 2, 0, (root / "small").read_bytes())
