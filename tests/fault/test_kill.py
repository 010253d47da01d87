"""A node that is killed while it fills: whatever the next one serves is right."""

from __future__ import annotations

import os
import random
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import penstock
from fault import oracle
from fault.lake import MIB
from penstock.errors import PenstockError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence

KILLS = 15
KILLS_IN_SOAK = 200
SIZES = [*([70_003] * 40), *([700_001] * 20), 3 * MIB + 1, 9 * MIB + 7, 17 * MIB, 24 * MIB + 4097]
LONGEST_LIFE_S = 0.5
"""From the first read to the kill: filling everything takes longer."""


class Readers:
    """Threads that read everything in random order and every way until the node is gone, and check what they get."""

    def __init__(self, home: Any, seed: int) -> None:
        self.wrong: list[str] = []
        self.checked = 0
        self._threads = [
            threading.Thread(target=self._run, args=(home, random.Random(f"{seed}/{number}"))) for number in range(4)
        ]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _run(self, home: Any, chance: random.Random) -> None:
        client = penstock.connect(home, start=False)
        try:
            while True:
                self.checked += read_something(client, chance)
        except AssertionError as error:
            self.wrong.append(str(error))
        except UnavailableError:
            # The node is gone, as it shall be.
            return
        except PenstockError as error:
            self.wrong.append(repr(error))


def path_of(number: int) -> str:
    return f"/data/{number % 4}/{number}"


def read_something(client: Any, chance: random.Random) -> int:
    """One read of a random kind; how many pieces were checked."""
    number = chance.randrange(len(SIZES))
    size = SIZES[number]
    start = chance.randrange(size)
    end = min(size, start + chance.choice([100, 70_000, 2 * MIB]))
    kind = chance.randrange(3)
    if kind == 0:
        numbers = chance.sample(range(60), 12)
        for each, found in zip(numbers, client.read_many([path_of(each) for each in numbers]), strict=True):
            assert len(found) == SIZES[each]
            oracle.check(each, 1, 0, bytes(found))
        return len(numbers)
    if kind == 1:
        [found] = client.read_ranges(path_of(number), [(start, end)])
        oracle.check(number, 1, start, bytes(found))
        return 1
    with client.open(path_of(number)) as file:
        oracle.check(number, 1, start, file.pread(end - start, start))
    return 1


def check_everything(client: Any, numbers: Sequence[int]) -> None:
    for number in numbers:
        with client.open(path_of(number)) as file:
            assert file.size == SIZES[number]
            oracle.check(number, 1, 0, file.read())


def kill_again_and_again(machine: Any, kills: int) -> None:
    seed = int(os.environ.get("TEST_SEED", time.time_ns() % 1_000_000))
    print(f"seed {seed}: set TEST_SEED to see it again")
    chance = random.Random(seed)
    remote = machine.remote({})
    for number, size in enumerate(SIZES):
        remote.put_object("bucket", f"{number % 4}/{number}", oracle.content(number, 1, 0, size))
    client = penstock.connect(machine.home.name)
    client.attach("s3://bucket", "/data", endpoint=remote.endpoint, credentials="anonymous", freshness="1h")
    for _ in range(kills):
        readers = Readers(machine.home.name, chance.randrange(1 << 30))
        machine.until(lambda readers=readers: readers.checked or readers.wrong)
        time.sleep(chance.random() * LONGEST_LIFE_S)
        machine.kill()
        readers.join()
        assert not readers.wrong, readers.wrong
        client = penstock.connect(machine.home.name)
        check_everything(client, chance.sample(range(len(SIZES)), 6))
        assert client.status()["metrics"]["cache_corrupt_pages"] == 0
        [freed] = client.core.evict([path_of(chance.randrange(60, len(SIZES)))])
        assert isinstance(freed, int)
    before = remote.counters()["bytes_out"]
    check_everything(client, range(len(SIZES)))
    client.verify("/data").wait()
    status = machine.control().status()["metrics"]
    assert status["cache_corrupt_pages"] == 0
    assert remote.counters()["bytes_out"] - before <= sum(SIZES), "nothing is fetched twice by one node"
    client.close()


@pytest.mark.timeout(240)
def test_a_node_killed_while_it_fills_is_followed_by_one_that_serves_right_bytes(machine: Any) -> None:
    kill_again_and_again(machine, KILLS)


@pytest.mark.soak
def test_a_node_killed_hundreds_of_times_is_followed_by_one_that_serves_right_bytes(machine: Any) -> None:
    kill_again_and_again(machine, KILLS_IN_SOAK)
