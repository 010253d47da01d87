"""Sentence 6: what cannot be met returns an error within its deadline: a kind, what it was doing to what, why, what
to do now. Nothing is dropped silently; back-pressure comes before out-of-space.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import penstock
from fault import answers, oracle
from fault.lake import MIB, Lake, attached
from fault.store import error
from penstock import config, errors

if TYPE_CHECKING:
    from collections.abc import Callable

    from fault.store import Store

HASTY = ("deadlines.foreground=4s",)
"""For troubles that only the deadline ends."""

PATIENT = ("deadlines.foreground=60s", "source.max_attempts=3")
"""For what ends otherwise, or goes well: a busy machine has the time it needs."""

LIMIT_S = 100.0
PATH = "/data/1/it"
CRATES = Path(__file__).parents[2] / "crates"


@pytest.fixture
def lake(machine: Any, store: Store) -> Iterator[Lake]:
    with attached(machine, store, *PATIENT) as made:
        made.put(1, 1, 3 * MIB)
        yield made


def no_store(lake: Lake) -> None:
    lake.store.close()


def silence(lake: Lake) -> None:
    lake.store.answer_all(answers.silent)


def refusal(lake: Lake) -> None:
    lake.store.answer_all(answers.always(error(403, "AccessDenied")))


def overload(lake: Lake) -> None:
    lake.store.answer_all(answers.always(error(503, "SlowDown")))


def pages(lake: Lake) -> None:
    lake.store.answer_all(answers.html_page)


def no_node(lake: Lake) -> None:
    lake.machine.kill()


TROUBLES: dict[Callable[[Lake], None], tuple[tuple[str, ...], Any]] = {
    no_store: (PATIENT, errors.UnavailableError),
    silence: (HASTY, errors.TimedOutError),
    refusal: (PATIENT, errors.PermissionDeniedError),
    overload: (HASTY, (errors.RateLimitedError, errors.TimedOutError)),
    pages: (PATIENT, (errors.CorruptError, errors.UnavailableError)),
    no_node: (PATIENT, errors.UnavailableError),
}
CALLS: dict[str, Callable[[Any], object]] = {
    "open": lambda client: client.open(PATH).read(),
    "read_many": lambda client: client.read_many([PATH]),
    "read_ranges": lambda client: client.read_ranges(PATH, [(0, 100)]),
    "local_path": lambda client: client.local_path(PATH),
    "stat": lambda client: client.stat(PATH),
    "list": lambda client: list(client.list("/data/1")),
    "walk": lambda client: list(client.walk("/data")),
}


def outcome(client: Any, name: str) -> Any:
    """What a call ends with."""
    try:
        return CALLS[name](client)
    except errors.PenstockError as failure:
        return failure


@pytest.mark.parametrize("trouble", TROUBLES)
def test_contract_6_what_cannot_be_met_is_an_error_in_time_that_says_what_why_and_what_now(
    machine: Any, store: Store, trouble: Callable[[Lake], None]
) -> None:
    settings, kinds = TROUBLES[trouble]
    with attached(machine, store, *settings) as lake, ThreadPoolExecutor(len(CALLS)) as pool:
        lake.put(1, 1, 3 * MIB)
        trouble(lake)
        running = {name: pool.submit(outcome, lake.client, name) for name in CALLS}
        outcomes = {name: each.result(LIMIT_S) for name, each in running.items()}
    for name, told in outcomes.items():
        assert isinstance(told, errors.PenstockError), f"{name}: {told!r}"
        assert isinstance(told, kinds), f"{name}: {told!r}"
        assert told.code != "internal"
        assert "/data" in told.action or "node" in f"{told.action}{told.reason}", f"{name} does not say to what: {told}"
        assert told.reason, f"{name} does not say why: {told}"
        assert told.advice, f"{name} does not say what to do now: {told}"
        assert "\n" not in str(told)


def test_contract_6_in_a_batch_each_failure_stands_in_its_place_and_the_rest_is_right(lake: Lake) -> None:
    for number in range(2, 12):
        lake.put(number, 1, 50_000)
    paths = [f"/data/{number}/it" for number in range(1, 14)]
    lake.store.judge = lambda question: answers.cut if question.key in ("3/it", "7/it") else None
    found = lake.client.read_many(paths, return_errors=True)
    assert len(found) == len(paths)
    for path, one in zip(paths, found, strict=True):
        number = int(path.split("/")[2])
        if number in (3, 7):
            assert isinstance(one, errors.UnavailableError | errors.TimedOutError)
            assert path in one.action
        elif number in (12, 13):
            assert isinstance(one, errors.NotFoundError)
        else:
            oracle.check(number, 1, 0, bytes(one))
    with pytest.raises(errors.PenstockError):
        lake.client.read_many(paths)


def test_contract_6_a_listing_that_breaks_off_is_an_error_and_never_a_shorter_listing(
    machine: Any, store: Store
) -> None:
    for number in range(2500):
        store.put(f"many/{number:05}", b"x")
    with attached(machine, store, *PATIENT) as lake:
        for entries in (lambda: lake.client.list("/data/many"), lambda: lake.client.walk("/data")):
            known = store.asked["list"]
            # The first page comes, what follows does not.
            store.judge = lambda question: answers.server_error if store.asked["list"] > known else None  # noqa: B023
            with pytest.raises(errors.PenstockError):
                list(entries())
            assert store.asked["list"] > known + 1
        store.recover()
        assert sum(1 for _ in lake.client.list("/data/many")) == 2500
        assert sum(1 for entry in lake.client.walk("/data") if entry.is_file) == 2500


def test_contract_6_an_object_larger_than_cache_and_memory_waits_and_arrives_whole(machine: Any, store: Store) -> None:
    with attached(machine, store, "memory.budget=16MiB", "cache.size=1MiB") as lake:
        path = lake.put(1, 1, 48 * MIB)
        with lake.client.open(path) as file:
            start = 0
            while piece := file.read(5_000_000):
                oracle.check(1, 1, start, piece)
                start += len(piece)
        assert start == 48 * MIB
        assert lake.metric("memory_used_bytes") <= 16 * MIB
        assert lake.metric("cache_bytes") <= 1 * MIB


def test_contract_6_every_kind_of_error_has_a_code_an_errno_and_a_class() -> None:
    for code, errno in penstock._core.error_kinds():
        made = errors.error_from(code=code, message="m", action="a", reason="r", advice=None)
        assert (made.code, made.errno) == (code, errno)
        assert type(made) is not errors.PenstockError


def test_contract_6_every_setting_that_an_advice_names_exists() -> None:
    known = {key for key, *_ in config.key_documentation()}
    sections = "|".join(sorted({key.partition(".")[0] for key in known}))
    told = re.compile(rf"(?:raise|set|lower|or) ((?:{sections})\.[a-z_.]*[a-z_])")
    named = {
        name
        for path in [*CRATES.glob("*/src/**/*.rs"), *Path(penstock.__file__).parent.rglob("*.py")]
        for line in path.read_text().splitlines()
        if '"' in line and not line.strip().startswith(("//", "#"))
        for name in told.findall(line)
    }
    assert named, "no advice names a setting"
    assert named <= known
