"""A store that admits so many requests a second and refuses the rest."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from fault import answers, oracle
from fault.lake import attached
from fault.store import error

if TYPE_CHECKING:
    from fault.store import Fault, Question, Store

ADMITTED_PER_S = 100
SECONDS = 10
SECONDS_IN_SOAK = 60
WASTE_MAX = 1.2
REFUSED = range(50, 60)
SIZE = 9000
READERS = 4
SLOW_DOWN = answers.always(error(503, "SlowDown"))


class Gate:
    """Admits the first hundred requests of every second, as stores do, and counts. Early ones are refused however slow
    the machine is that asks.
    """

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.second = 0
        self.in_second = 0
        self.answered: Counter[str] = Counter()
        self.refused = 0

    def judge(self, question: Question) -> Fault | None:
        second = int(time.monotonic() - self.begun)
        if second != self.second:
            self.second, self.in_second = second, 0
        self.in_second += 1
        asked = self.answered.total() + self.refused
        if self.in_second > ADMITTED_PER_S or asked in REFUSED:
            self.refused += 1
            return SLOW_DOWN
        self.answered[question.kind] += 1
        return None


def read_everything(machine: Any, store: Store, seconds: int) -> None:
    files = seconds * ADMITTED_PER_S
    for number in range(files):
        store.put(f"{number % 7}/{number}", oracle.content(number, 1, 0, SIZE))
    with attached(machine, store) as lake:
        gate = Gate()
        store.judge = gate.judge

        def read(share: int) -> None:
            numbers = range(share, files, READERS)
            for first in range(0, len(numbers), 100):
                some = numbers[first : first + 100]
                views = lake.client.read_many([f"/data/{number % 7}/{number}" for number in some])
                for number, view in zip(some, views, strict=True):
                    assert len(view) == SIZE
                    oracle.check(number, 1, 0, bytes(view))

        with ThreadPoolExecutor(READERS) as pool:
            for done in [pool.submit(read, share) for share in range(READERS)]:
                done.result()
        useful = files + gate.answered["list"]
        asked = sum(gate.answered.values()) + gate.refused
        print(f"{asked} requests for {useful} useful ones, {gate.refused} refused, {gate.answered}")
        assert gate.refused >= len(REFUSED)
        assert asked <= WASTE_MAX * useful
        machine.until(lambda: lake.metric("source_throttled") == gate.refused)


def test_a_store_that_admits_100_requests_a_second_gives_everything_for_few_more(machine: Any, store: Store) -> None:
    read_everything(machine, store, SECONDS)


@pytest.mark.soak
def test_a_store_that_admits_100_requests_a_second_for_a_minute_gives_everything(machine: Any, store: Store) -> None:
    read_everything(machine, store, SECONDS_IN_SOAK)
