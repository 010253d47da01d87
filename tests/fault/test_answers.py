"""A source that answers wrongly: asked again within the deadline, then an error; nothing wrong returned or cached."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import penstock
from fault import oracle
from fault.answers import WRONG
from fault.store import Fault, Question, Store
from integration.conftest import Machine
from penstock.errors import CorruptError, PenstockError, TimedOutError, UnavailableError

KIB = 1024
DEADLINE_S = 3.0
SIZE = {"open": 100 * KIB + 17, "large": 3 * KIB * KIB + 5, "many": 70 * KIB + 3, "ranges": 2500 * KIB, "local": 90_001}


def open_and_read(client: Any, path: str, size: int) -> bytes:
    with client.open(path) as file:
        return bytes(file.read())


def open_and_pread(client: Any, path: str, size: int) -> bytes:
    with client.open(path) as file:
        pieces = [file.pread(500_000, offset) for offset in range(0, size, 500_000)]
    return b"".join(pieces)


def read_many(client: Any, path: str, size: int) -> bytes:
    return bytes(client.read_many([path])[0])


def read_ranges(client: Any, path: str, size: int) -> bytes:
    cuts = [0, 70_000, 1_200_345, size]
    return b"".join(map(bytes, client.read_ranges(path, list(itertools.pairwise(cuts)))))


def local_path(client: Any, path: str, size: int) -> bytes:
    with client.local_path(path) as lease, Path(lease).open("rb") as file:
        return file.read()


WAYS: dict[str, Callable[[Any, str, int], bytes]] = {
    "open": open_and_read,
    "large": open_and_pread,
    "many": read_many,
    "ranges": read_ranges,
    "local": local_path,
}
CASES = [(fault, way) for fault in WRONG for way in WAYS]


class Trouble:
    """A node with a store that is wrong for some time, and what every way of reading then brought."""

    def __init__(self, machine: Machine, store: Store) -> None:
        self.store = store
        for number, (fault, way) in enumerate(CASES):
            # A directory each: what is fetched ahead must not use the faults up.
            for mode in ("once", "always"):
                store.put(f"{mode}/{fault}/{way}/it", oracle.content(number, 1, 0, SIZE[way]))
        machine("up", "--set", f"deadlines.foreground={DEADLINE_S}s")
        self.client = penstock.connect(machine.home.name)
        self.client.attach("s3://bucket", "/data", endpoint=store.endpoint, credentials="anonymous", freshness="1h")
        store.judge = self.judge
        with ThreadPoolExecutor(2 * len(CASES)) as pool:
            running = {
                (mode, fault, way): pool.submit(self.attempt, mode, fault, way)
                for fault, way in CASES
                for mode in ("once", "always")
            }
            self.outcomes = {case: each.result() for case, each in running.items()}
        self.metrics = machine.control().status()["metrics"]
        store.recover()

    def judge(self, question: Question) -> Fault | None:
        if question.kind != "read":
            return None
        mode, fault, _, _ = question.key.split("/")
        if mode == "once" and self.store.faulty[question.key]:
            return None
        return WRONG[fault]

    def attempt(self, mode: str, fault: str, way: str) -> tuple[bytes | PenstockError, float]:
        begun = time.monotonic()
        try:
            found: bytes | PenstockError = self.read(mode, fault, way)
        except PenstockError as error:
            found = error
        return found, time.monotonic() - begun

    def read(self, mode: str, fault: str, way: str) -> bytes:
        return WAYS[way](self.client, f"/data/{mode}/{fault}/{way}/it", SIZE[way])


@pytest.fixture(scope="module")
def trouble(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trouble]:
    machine = Machine(tmp_path_factory.mktemp("trouble"))
    try:
        with Store() as store:
            made = Trouble(machine, store)
            yield made
            made.client.close()
    finally:
        machine.close()


@pytest.mark.parametrize(("fault", "way"), CASES)
def test_a_wrong_answer_is_asked_for_again_and_the_right_bytes_are_returned(
    trouble: Trouble, fault: str, way: str
) -> None:
    found, _ = trouble.outcomes["once", fault, way]
    assert trouble.store.faulty[f"once/{fault}/{way}/it"] == 1, "the fault was never met"
    assert isinstance(found, bytes), found
    assert len(found) == SIZE[way]
    oracle.check(CASES.index((fault, way)), 1, 0, found)


@pytest.mark.parametrize(("fault", "way"), CASES)
def test_answers_that_stay_wrong_are_an_error_in_time_and_nothing_of_them_is_kept(
    trouble: Trouble, fault: str, way: str
) -> None:
    found, took_s = trouble.outcomes["always", fault, way]
    assert isinstance(found, CorruptError | TimedOutError | UnavailableError), found
    assert f"/data/always/{fault}/{way}/it" in str(found)
    assert found.advice, f"it does not say what to do now: {found}"
    assert took_s < DEADLINE_S * 2 + 5
    again = trouble.read("always", fault, way)
    assert len(again) == SIZE[way]
    oracle.check(CASES.index((fault, way)), 1, 0, again)


def test_what_was_tried_again_and_what_was_given_up_is_counted(trouble: Trouble) -> None:
    assert trouble.metrics["source_retries"] >= len(CASES)
    assert trouble.metrics["source_failures"] >= len(CASES)
