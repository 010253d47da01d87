"""Sentence 1: one version per handle. Every byte returned belongs to it, or the call fails."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from fault import oracle
from fault.lake import MIB, Lake, attached
from penstock.errors import StaleVersionError

if TYPE_CHECKING:
    from fault.store import Store

LARGE = 40 * MIB
FAR = 32 * MIB


@pytest.fixture
def lake(machine: Any, store: Store) -> Iterator[Lake]:
    with attached(machine, store) as made:
        yield made


def test_contract_1_opening_for_reading_pins_one_version(lake: Lake) -> None:
    path = lake.put(1, 1, 500_000)
    with lake.client.open(path) as file:
        lake.put(1, 2, 600_000)
        assert file.size == 500_000
        oracle.check(1, 1, 0, file.read())


def test_contract_1_every_byte_returned_belongs_to_the_pinned_version_or_the_call_fails(lake: Lake) -> None:
    path = lake.put(1, 1, LARGE)
    with lake.client.open(path) as file:
        head = file.pread(100_000, 0)
        lake.put(1, 2, LARGE)
        oracle.check(1, 1, 0, head)
        assert file.pread(100_000, 0) == head
        with pytest.raises(StaleVersionError):
            file.pread(100_000, FAR)
        buffer = bytearray(b"untouched")
        with pytest.raises(StaleVersionError):
            file.pread_into(buffer, FAR)


def test_contract_1_ranged_reads_of_the_source_are_conditional(lake: Lake) -> None:
    path = lake.put(1, 1, LARGE)
    conditions: list[str | None] = []
    lake.store.watch = lambda kind, headers: conditions.append(headers.get("If-Match")) if kind == "read" else None
    with lake.client.open(path) as file:
        oracle.check(1, 1, FAR, file.pread(5000, FAR))
    assert conditions
    assert set(conditions) == {f'"{file.version}"'}


def test_contract_1_a_version_gone_before_a_byte_was_delivered_is_resolved_again(lake: Lake) -> None:
    path = lake.put(1, 1, LARGE)
    file = lake.client.open(path)
    lake.put(1, 2, LARGE + 4096)
    oracle.check(1, 2, FAR, file.pread(5000, FAR))
    assert file.size == LARGE + 4096


def test_contract_1_afterwards_it_is_a_stale_version_error(lake: Lake) -> None:
    path = lake.put(1, 1, LARGE)
    with lake.client.open(path) as file:
        oracle.check(1, 1, 0, file.read(10))
        lake.put(1, 2, LARGE)
        with pytest.raises(StaleVersionError) as caught:
            file.pread(10, FAR)
    assert caught.value.code == "stale-version"
    assert caught.value.errno == 116


def test_contract_1_what_was_said_of_a_version_pins_it_too(lake: Lake) -> None:
    path = lake.put(1, 1, LARGE)
    with lake.client.open(path) as file:
        assert file.size == LARGE
        lake.put(1, 2, LARGE + 4096)
        with pytest.raises(StaleVersionError):
            file.pread(10, FAR)


def test_contract_1_ranges_of_one_call_are_of_one_version(lake: Lake) -> None:
    path = lake.put(1, 1, LARGE)
    [first] = lake.client.read_ranges(path, [(0, 5000)])
    oracle.check(1, 1, 0, bytes(first))
    lake.put(1, 2, LARGE)
    views = lake.client.read_ranges(path, [(0, 5000), (FAR, FAR + 5000)])
    for view, start in zip(views, (0, FAR), strict=True):
        oracle.check(1, 2, start, bytes(view))
