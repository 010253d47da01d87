"""Sentence 3: changes made directly in the source are seen by opens after at most ``freshness``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from fault import oracle
from fault.lake import attached
from penstock.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable

    from fault.lake import Lake
    from fault.store import Store

FRESHNESS_S = 1.0
SIZE = 50_000


def by_open(lake: Lake, path: str) -> bytes:
    with lake.client.open(path) as file:
        return bytes(file.read())


def by_batch(lake: Lake, path: str) -> bytes:
    return bytes(lake.client.read_many([path])[0])


def by_ranges(lake: Lake, path: str) -> bytes:
    return b"".join(map(bytes, lake.client.read_ranges(path, [(0, 1 << 30)])))


WAYS = [by_open, by_batch, by_ranges]


def version_seen(lake: Lake, path: str, read: Callable[[Lake, str], bytes]) -> int:
    """The version that a read gives now; every byte of it was checked."""
    found = read(lake, path)
    version = oracle.version_in(found, 0)
    oracle.check(1, version, 0, found)
    return version


def after_freshness(look: Callable[[], bool]) -> bool:
    """Looks again and again; what the first look saw that began later than ``freshness`` after this was called."""
    changed = time.monotonic()
    while True:
        begun = time.monotonic()
        seen = look()
        if seen or begun - changed > FRESHNESS_S:
            return seen


def test_contract_3_changes_in_the_source_are_seen_after_at_most_freshness(machine: Any, store: Store) -> None:
    with attached(machine, store, freshness=f"{FRESHNESS_S}s") as lake:
        path = lake.put(1, 1, SIZE)
        assert {version_seen(lake, path, read) for read in WAYS} == {1}
        lake.put(1, 2, SIZE + 2)
        for read in WAYS:
            assert after_freshness(lambda read=read: version_seen(lake, path, read) == 2)
        assert lake.client.stat(path).size == SIZE + 2


def test_contract_3_a_deletion_in_the_source_is_seen_after_at_most_freshness(machine: Any, store: Store) -> None:
    with attached(machine, store, freshness=f"{FRESHNESS_S}s") as lake:
        path = lake.put(1, 1, SIZE)
        assert version_seen(lake, path, by_open) == 1
        lake.store.delete("1/it")

        def is_gone() -> bool:
            try:
                by_open(lake, path)
            except NotFoundError:
                return True
            return False

        assert after_freshness(is_gone)


@pytest.mark.parametrize("read", WAYS)
def test_contract_3_freshness_zero_revalidates_every_open(
    machine: Any, store: Store, read: Callable[[Lake, str], bytes]
) -> None:
    with attached(machine, store, freshness="0") as lake:
        path = lake.put(1, 1, SIZE)
        for version in range(1, 6):
            lake.put(1, version, SIZE + version)
            assert version_seen(lake, path, read) == version
        asked = store.asked["read"]
        before = store.asked.total()
        assert version_seen(lake, path, read) == 5
        assert store.asked.total() > before, "the source was asked whether it changed"
        assert store.asked["read"] == asked, "and nothing was fetched again, for it had not"


@pytest.mark.parametrize("read", WAYS)
def test_contract_3_immutable_never_revalidates(machine: Any, store: Store, read: Callable[[Lake, str], bytes]) -> None:
    with attached(machine, store, freshness="immutable") as lake:
        path = lake.put(1, 1, SIZE)
        assert version_seen(lake, path, read) == 1
        lake.put(1, 2, SIZE)
        before = store.asked.total()
        for _ in range(20):
            assert version_seen(lake, path, read) == 1
        assert store.asked.total() == before
