"""The power goes while a cache fills: what the disk had not been told to keep is gone, and nothing wrong is served."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import penstock
from fault import disk, oracle
from fault.disk import PAGE_BYTES
from fault.lake import MIB, Lake, attached

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fault.store import Question, Store

SYNCED_AFTER_S = 30.0
"""What was filled longer ago may have been synced by the node, and would not be lost."""

SIZES = [70_003, 700_001, 3 * MIB + 1, 9 * MIB + 7]
ROUNDS = 4
PARTLY_READ = 12 * MIB


def nothing(extent: Path, chance: random.Random) -> int:
    return 0


def its_end(extent: Path, chance: random.Random) -> int:
    """The file has its length, but nothing in it from some page on."""
    size = extent.stat().st_size
    return disk.zero(extent, chance.randrange(0, size, PAGE_BYTES), size)


def single_pages(extent: Path, chance: random.Random) -> int:
    """Holes in the middle: the kernel writes in any order."""
    offsets = range(0, extent.stat().st_size, PAGE_BYTES)
    chosen = chance.sample(offsets, min(3, len(offsets)))
    return sum(disk.zero(extent, offset, offset + PAGE_BYTES) for offset in chosen)


def its_length(extent: Path, chance: random.Random) -> int:
    """The file is as short as it was some time before, and lacks a page at least: none of it is believed."""
    content = extent.read_bytes()
    present = [offset for offset in range(0, len(content), PAGE_BYTES) if any(content[offset : offset + PAGE_BYTES])]
    disk.cut(extent, chance.randrange(min(present[-1] + PAGE_BYTES, len(content))))
    return len(present)


LOSSES: list[Callable[[Path, random.Random], int]] = [nothing, its_end, single_pages, its_length]


def fill(lake: Lake, first: int) -> dict[int, tuple[str, int]]:
    """Brings objects of every size whole, and a part of some; waits until the index has them. Paths and sizes."""
    objects = {}
    for number in range(first, first + ROUNDS * len(SIZES)):
        size = SIZES[number % len(SIZES)]
        objects[number] = lake.put(number, 1, size), size
    whole = [path for path, _ in objects.values()]
    assert lake.client.core.prefetch(whole) == [(size, size) for _, size in objects.values()]
    for number in range(first + 1000, first + 1000 + len(LOSSES)):
        objects[number] = lake.put(number, 1, PARTLY_READ), PARTLY_READ
        with lake.client.open(objects[number][0]) as file:
            oracle.check(number, 1, 4 * MIB, file.pread(MIB, 4 * MIB))
    disk.await_index(lake.machine, lambda turn: lake.client.core.prefetch([lake.put(first + 5000 + turn, 1, 10)]))
    return objects


def fill_and_lose_power(lake: Lake) -> dict[int, tuple[str, int]]:
    """Fills and kills in so short a time that nothing was synced; on a machine too busy for that, again."""
    first = len(LOSSES) * len(SIZES)
    while True:
        begun = time.monotonic()
        objects = fill(lake, first)
        lake.machine.kill()
        if time.monotonic() - begun < SYNCED_AFTER_S:
            return objects
        first += 10_000
        lake.machine("up")


def test_pages_that_a_power_failure_took_are_found_and_fetched_again(machine: Any, store: Store) -> None:
    seed = int(os.environ.get("TEST_SEED", time.time_ns() % 1_000_000))
    print(f"seed {seed}: set TEST_SEED to see it again")
    chance = random.Random(seed)
    with attached(machine, store) as lake:
        objects = fill_and_lose_power(lake)
        lost = {number: take(lake, number, chance) for number in objects}
        assert sum(lost.values()) > len(SIZES) * ROUNDS
        asked: Counter[str] = Counter()

        def note(question: Question) -> None:
            asked[question.key] += question.kind == "read"

        store.judge = note
        disk.up_after_a_crash(machine)
        check_everything(lake, objects)
        assert lake.metric("cache_corrupt_pages") == sum(lost.values())
        for number, (_, size) in objects.items():
            is_asked = lost[number] > 0 or size == PARTLY_READ
            assert (asked[f"{number}/it"] > 0) == is_asked, (
                f"object {number} of {size} bytes, {lost[number]} pages lost"
            )
        assert lake.metric("verified_pages") > 0, "what was not lost is verified and kept"
        # Yet another boot: what was fetched again was kept, and is right.
        machine("down")
        machine("up")
        check_everything(lake, objects)
        assert lake.metric("cache_corrupt_pages") == 0
        assert lake.metric("source_read_requests") == 0


def take(lake: Lake, number: int, chance: random.Random) -> int:
    """Has the extent of an object lose something; how many pages that makes unbelievable."""
    loss = LOSSES[number // len(SIZES) % len(LOSSES)] if number % 10_000 < 1000 else LOSSES[number % len(LOSSES)]
    return loss(disk.extent_of(lake.machine, number), chance)


def check_everything(lake: Lake, objects: dict[int, tuple[str, int]]) -> None:
    penstock.connect(lake.machine.home.name)
    for number, (path, size) in objects.items():
        disk.whole(lake.client, path, number, size)
