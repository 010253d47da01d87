"""A source that answers wrongly: asked again within the deadline, then an error; nothing wrong returned or cached."""

from __future__ import annotations

import itertools
import re
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
PATIENT = ("deadlines.foreground=24s",)
"""For a store that is wrong once: a third of it is what its silence costs, the rest is there for a busy machine."""

RESIGNED = ("deadlines.foreground=9s", "source.max_attempts=3")
"""For a store that stays wrong."""

LIMIT_S = 100.0
"""Whatever is asked for has ended by then: some deadlines, since each wait that brought something begins anew."""

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
    """A store that is wrong once for one node and always for another, and what every way of reading then brought."""

    def __init__(self, directory: Path, store: Store) -> None:
        self.store = store
        self.machines: dict[str, Machine] = {}
        self.clients: dict[str, Any] = {}
        self.directory = directory

    def run(self) -> None:
        for number, (fault, way) in enumerate(CASES):
            # A directory each: what is fetched ahead must not use the faults up.
            for mode in ("once", "always"):
                self.store.put(f"{mode}/{fault}/{way}/it", oracle.content(number, 1, 0, SIZE[way]))
        self.start("once", PATIENT)
        self.start("always", RESIGNED)
        self.store.judge = self.judge
        with ThreadPoolExecutor(2 * len(CASES)) as pool:
            running = {
                (mode, fault, way): pool.submit(self.attempt, mode, fault, way)
                for fault, way in CASES
                for mode in ("once", "always")
            }
            self.outcomes = {case: each.result(LIMIT_S) for case, each in running.items()}
        self.store.recover()

    def start(self, mode: str, settings: tuple[str, ...]) -> None:
        machine = self.machines[mode] = Machine(self.directory / mode)
        machine.directory.mkdir()
        machine("up", *(part for setting in settings for part in ("--set", setting)))
        client = self.clients[mode] = penstock.connect(machine.home.name)
        client.attach("s3://bucket", "/data", endpoint=self.store.endpoint, credentials="anonymous", freshness="1h")

    def close(self) -> None:
        for client in self.clients.values():
            client.close()
        for machine in self.machines.values():
            machine.close()

    def judge(self, question: Question) -> Fault | None:
        if question.kind != "read":
            return None
        mode, fault, _, _ = question.key.split("/")
        if mode == "once" and self.store.faulty[question.key]:
            return None
        return WRONG[fault]

    def attempt(self, mode: str, fault: str, way: str) -> bytes | PenstockError:
        try:
            return self.read(mode, fault, way)
        except PenstockError as error:
            return error

    def read(self, mode: str, fault: str, way: str) -> bytes:
        return WAYS[way](self.clients[mode], f"/data/{mode}/{fault}/{way}/it", SIZE[way])

    def metric(self, mode: str, name: str) -> int:
        return int(self.machines[mode].control().status()["metrics"][name])


@pytest.fixture(scope="module")
def trouble(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trouble]:
    with Store() as store:
        made = Trouble(tmp_path_factory.mktemp("trouble"), store)
        try:
            made.run()
            yield made
        finally:
            made.close()


@pytest.mark.parametrize(("fault", "way"), CASES)
def test_a_wrong_answer_is_asked_for_again_and_the_right_bytes_are_returned(
    trouble: Trouble, fault: str, way: str
) -> None:
    found = trouble.outcomes["once", fault, way]
    assert trouble.store.faulty[f"once/{fault}/{way}/it"] == 1, "the fault was never met"
    assert isinstance(found, bytes), found
    assert len(found) == SIZE[way]
    oracle.check(CASES.index((fault, way)), 1, 0, found)


@pytest.mark.parametrize(("fault", "way"), CASES)
def test_answers_that_stay_wrong_are_an_error_in_time_and_nothing_of_them_is_kept(
    trouble: Trouble, fault: str, way: str
) -> None:
    found = trouble.outcomes["always", fault, way]
    assert isinstance(found, CorruptError | TimedOutError | UnavailableError), found
    assert f"/data/always/{fault}/{way}/it" in str(found)
    assert found.advice, f"it does not say what to do now: {found}"
    again = trouble.read("always", fault, way)
    assert len(again) == SIZE[way]
    oracle.check(CASES.index((fault, way)), 1, 0, again)


def test_what_was_tried_again_and_what_was_given_up_is_counted(trouble: Trouble) -> None:
    assert trouble.metric("once", "source_retries") >= len(CASES)
    told = [str(found) for (mode, *_), found in trouble.outcomes.items() if mode == "always"]
    # Who waited until the deadline says so for itself: what it waited for may still have been under way.
    given_up = [one for one in told if not re.search("did not (deliver|answer)", one)]
    assert given_up
    assert trouble.metric("always", "source_failures") >= len(given_up)
