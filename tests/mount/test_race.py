"""The byte oracle through the kernel: processes check every byte they read while the objects are overwritten."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any

import pytest

from fault import oracle
from mount.lake import MIB, MountedLake
from mount.race import OBJECTS, READERS, SMALL, Table, key_of, size_of

CHECKED_READS = 20_000
"""For each of five cases; a hundred thousand in all."""

CHECKED_READS_IN_SOAK = 1_000_000
LONGEST_S = 60.0
LONGEST_IN_SOAK_S = 6000.0
MARGIN_S = 5.0
"""For a machine that is busy elsewhere between an answer and its use."""

CACHE_BYTES = 32 * MIB
READS_BETWEEN_WRITES = 20
KEPT_MAX = 5_000
"""So many versions of half a megabyte are kept at most, where each has a key of its own."""
PAUSE_S = 0.005
TESTS = Path(__file__).parents[1]
FRESHNESS = {"0": 0.0, "1s": 1.0 + MARGIN_S, "immutable": None}
"""How old a change may be that an open does not see; `None` where nothing that was there is changed."""


class Writer:
    """Overwrites objects at random and says what readers may see."""

    def __init__(self, lake: MountedLake, table: Table, seed: int, unseen_s: float | None, wanted: int) -> None:
        self.lake = lake
        self.table = table
        self.chance = random.Random(seed)
        self.unseen_s = unseen_s
        # What is never overwritten stays where it is: a soak of it must not fill the disk.
        self.between = READS_BETWEEN_WRITES if unseen_s is not None else max(READS_BETWEEN_WRITES, wanted // KEPT_MAX)
        self.unseen: deque[tuple[float, int, int]] = deque()
        self.steps = 0
        for number in range(OBJECTS):
            self.write(number)

    def write(self, number: int) -> None:
        version = self.table.begun[number] + 1
        self.table.begun[number] = version
        key = key_of(number, version if self.unseen_s is None else None)
        self.lake.put(f"race/{key}", oracle.content(number, version, 0, size_of(number, version)))
        self.table.there[number] = version
        if self.unseen_s is not None:
            self.unseen.append((time.monotonic() + self.unseen_s, number, version))
        self.look()

    def look(self) -> None:
        """From now on opens must see what was written long enough ago."""
        while self.unseen and self.unseen[0][0] <= time.monotonic():
            _, number, version = self.unseen.popleft()
            self.table.due[number] = version

    def step(self) -> None:
        """Mostly small objects; a large one is still being read when it changes."""
        self.steps += 1
        large = self.chance.random() < 0.2
        self.write(self.chance.randrange(SMALL, OBJECTS) if large else self.chance.randrange(SMALL))

    def follow(self, checked: int) -> None:
        """Writes as often as fits what was read: the processors are the readers'."""
        while self.steps * self.between < checked:
            self.step()
        self.look()
        time.sleep(PAUSE_S)


CASES = [("0", "open"), ("1s", "open"), ("1s", "no-open"), ("immutable", "open"), ("immutable", "no-open")]
"""Freshness and way. What is not opened cannot be asked for at each open."""


def race(machine: Any, freshness: str, way: str, wanted: int, longest_s: float) -> None:
    seed = int(os.environ.get("TEST_SEED", time.time_ns() % 1_000_000))
    print(f"seed {seed}: set TEST_SEED to see it again")
    shared = machine.directory / "table"
    table = Table(shared)
    shared.chmod(0o666)
    with MountedLake(machine, f"cache.size={CACHE_BYTES}") as lake:
        writer = Writer(lake, table, seed, FRESHNESS[freshness], wanted)
        root = lake.attach("race", "/race", freshness, way)
        command = [*machine.as_another, sys.executable, str(TESTS / "mount" / "race.py"), str(root), str(shared)]
        readers = [
            machine.spawn(*command, f"{index}", f"{seed}/{index}", freshness, stdin=True, PYTHONPATH=f"{TESTS}")
            for index in range(READERS)
        ]
        deadline = time.monotonic() + longest_s
        while not done(lake, table, wanted) and time.monotonic() < deadline:
            writer.follow(sum(table.checked))
            assert all(reader.poll() is None for reader in readers), (failures(readers), lake.metrics())
        reports = [reader.communicate("stop\n", timeout=60) for reader in readers]
        assert all(reader.returncode == 0 for reader in readers), reports
        late = time.monotonic() >= deadline
        judge(lake, table, [json.loads(said) for said, _ in reports], wanted // 20 if late else wanted)
        if freshness == "immutable":
            assert not any(json.loads(said)["counts"].get("stale") for said, _ in reports), "nothing was overwritten"
        machine.until(lambda: all(sees_latest(machine, root, number, table.there[number]) for number in range(OBJECTS)))


def done(lake: MountedLake, table: Table, wanted: int) -> bool:
    """Whether enough was read, written and evicted."""
    enough = sum(table.checked) >= wanted and sum(table.there) > OBJECTS + wanted // 300
    return enough and lake.metrics()["cache_evicted_extents"] > 0


def failures(readers: list[Any]) -> list[tuple[int, str]]:
    return [(reader.poll(), reader.communicate()[1]) for reader in readers if reader.poll() is not None]


def judge(lake: MountedLake, table: Table, reports: list[dict[str, Any]], wanted: int) -> None:
    counts: Counter[str] = sum((Counter(report["counts"]) for report in reports), Counter())
    seen: Counter[str] = sum((Counter(report["versions"]) for report in reports), Counter())
    metrics = lake.metrics()
    print(f"{dict(counts)}, {sum(table.there)} written, {lake.way('/race')}")
    names = (
        "kernel_opens",
        "kernel_lent_opens",
        "kernel_reads",
        "stale_versions",
        "cache_evicted_extents",
        "uncached_bytes",
    )
    print({name: metrics[name] for name in names})
    assert counts["checked"] >= wanted
    assert metrics["cache_evicted_extents"] > 0
    several = Counter(name.split("/")[0] for name in seen)
    assert sum(count > 1 for count in several.values()) > SMALL // 2, "few objects were seen in two versions"
    assert any(count > 1 for number, count in several.items() if int(number) >= SMALL)
    nodes: dict[str, int] = {}
    for report in reports:
        for node, version in report["nodes"].items():
            assert nodes.setdefault(node, version) == version, f"node {node} names two versions"


def sees_latest(machine: Any, root: Path, number: int, version: int) -> bool:
    """Whether an open sees the version that was written last, and all of it is right."""
    names = [root / key_of(number), root / key_of(number, version)]
    command = [*machine.as_another, "sh", "-c", 'cat "$1" 2> /dev/null || cat "$2"', "sh", *map(str, names)]
    # A file that changed after its name was looked up is stale, once.
    found = subprocess.run(command, capture_output=True, timeout=60)
    return found.returncode == 0 and found.stdout == oracle.content(number, version, 0, size_of(number, version))


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("freshness", "way"), CASES)
def test_readers_of_a_mount_see_whole_versions_while_objects_are_overwritten(
    machine: Any, freshness: str, way: str
) -> None:
    race(machine, freshness, way, CHECKED_READS, LONGEST_S)


@pytest.mark.soak
@pytest.mark.parametrize(("freshness", "way"), CASES)
def test_readers_of_a_mount_see_whole_versions_a_million_times(machine: Any, freshness: str, way: str) -> None:
    race(machine, freshness, way, CHECKED_READS_IN_SOAK, LONGEST_IN_SOAK_S)
