"""Objects that are overwritten or deleted while they are read, in every way of reading them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fault import answers, oracle
from fault.lake import MIB, Lake, attached
from fault.store import Store
from integration.conftest import Machine
from penstock.errors import NotFoundError, StaleVersionError

SMALL = 300_001
LARGE = 40 * MIB + 5
"""More than is fetched ahead of a random read, so that parts of it stay away."""
FAR = 32 * MIB

Change = Callable[[Lake, int], None]


def overwritten(lake: Lake, number: int) -> None:
    lake.put(number, 2, LARGE + 4096)


def overwritten_with_fewer_bytes(lake: Lake, number: int) -> None:
    lake.put(number, 2, 1000)


def deleted(lake: Lake, number: int) -> None:
    lake.store.delete(f"{number}/it")


CHANGES = [overwritten, overwritten_with_fewer_bytes, deleted]


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lake]:
    machine = Machine(tmp_path_factory.mktemp("changed"))
    try:
        with Store() as store, attached(machine, store) as made:
            yield made
    finally:
        machine.close()


@pytest.fixture
def number(request: pytest.FixtureRequest) -> int:
    """A number of an object that no other test uses."""
    return request.session.items.index(request.node) + 1


def pread(file: Any) -> bytes:
    return bytes(file.pread(5000, FAR + 123))


def readinto(file: Any) -> bytes:
    buffer = bytearray(5000)
    file.seek(FAR + 123)
    assert file.readinto(buffer) == 5000
    return bytes(buffer)


def view(file: Any) -> bytes:
    return bytes(file.view(FAR + 123, 5000))


@pytest.mark.parametrize("read", [pread, readinto, view])
@pytest.mark.parametrize("change", CHANGES)
def test_a_partly_cached_file_gives_its_version_or_is_stale(
    lake: Lake, number: int, change: Change, read: Callable[[Any], bytes]
) -> None:
    path = lake.put(number, 1, LARGE)
    with lake.client.open(path) as file:
        head = file.pread(200_000, 4096)
        oracle.check(number, 1, 4096, head)
        stale_before = lake.metric("stale_versions")
        change(lake, number)
        assert file.pread(200_000, 4096) == head, "what is cached of the pinned version is served"
        with pytest.raises(StaleVersionError, match="open it again") as caught:
            read(file)
        assert path in caught.value.action
        assert file.size == LARGE
        assert file.pread(200_000, 4096) == head, "and goes on being served"
        assert lake.metric("stale_versions") > stale_before


@pytest.mark.parametrize("change", CHANGES)
def test_a_small_file_is_whole_once_it_is_open(lake: Lake, number: int, change: Change) -> None:
    path = lake.put(number, 1, SMALL)
    with lake.client.open(path) as file:
        change(lake, number)
        found = file.read()
    assert len(found) == SMALL
    oracle.check(number, 1, 0, found)


@pytest.mark.parametrize("change", CHANGES)
def test_views_and_local_paths_keep_the_version_they_were_made_of(lake: Lake, number: int, change: Change) -> None:
    path = lake.put(number, 1, SMALL)
    batch = lake.client.read_many([path])
    ranges = lake.client.read_ranges(path, [(0, 10_000), (200_000, SMALL)])
    with lake.client.local_path(path) as lease:
        change(lake, number)
        lake.client.core.evict([path])
        oracle.check(number, 1, 0, Path(lease).read_bytes())
    oracle.check(number, 1, 0, bytes(batch[0]))
    oracle.check(number, 1, 0, bytes(ranges[0]))
    oracle.check(number, 1, 200_000, bytes(ranges[1]))


def whole_file(client: Any, path: str) -> bytes:
    with client.open(path) as file:
        return bytes(file.read())


def part_of_a_file(client: Any, path: str) -> bytes:
    with client.open(path) as file:
        return bytes(file.pread(LARGE * 2, 0))


def batch(client: Any, path: str) -> bytes:
    return bytes(client.read_many([path])[0])


def ranges(client: Any, path: str) -> bytes:
    return b"".join(map(bytes, client.read_ranges(path, [(0, 4096), (4096, LARGE * 2)])))


def local(client: Any, path: str) -> bytes:
    with client.local_path(path) as lease:
        return Path(lease).read_bytes()


@pytest.mark.parametrize("read", [whole_file, part_of_a_file, batch, ranges, local])
@pytest.mark.parametrize(
    ("first", "second"), [(SMALL, SMALL + 9), (SMALL, 3 * MIB), (3 * MIB, SMALL), (3 * MIB, 5 * MIB)]
)
def test_a_version_that_is_gone_before_a_byte_was_delivered_is_replaced_without_a_word(
    lake: Lake, number: int, first: int, second: int, read: Callable[[Any, str], bytes]
) -> None:
    path = lake.put(number, 1, first)
    assert lake.client.stat(path).size == first
    lake.put(number, 2, second)
    found = read(lake.client, path)
    assert len(found) == second
    oracle.check(number, 2, 0, found)


@pytest.mark.parametrize("read", [whole_file, batch, ranges, local])
@pytest.mark.parametrize("size", [SMALL, 3 * MIB])
def test_an_object_that_is_gone_before_a_byte_was_delivered_is_not_found(
    lake: Lake, number: int, size: int, read: Callable[[Any, str], bytes]
) -> None:
    path = lake.put(number, 1, size)
    assert lake.client.stat(path).size == size
    deleted(lake, number)
    with pytest.raises(NotFoundError, match=path):
        read(lake.client, path)


@pytest.mark.parametrize("change", CHANGES)
def test_reopening_finds_what_is_there_now(lake: Lake, number: int, change: Change) -> None:
    path = lake.put(number, 1, LARGE)
    with lake.client.open(path) as file:
        version = file.version
        file.read(10)
        change(lake, number)
        with pytest.raises(StaleVersionError):
            pread(file)
    if change is deleted:
        with pytest.raises(NotFoundError):
            lake.client.open(path)
        return
    with lake.client.open(path) as again:
        assert again.version != version
        oracle.check(number, 2, 0, again.read(1000))
    with pytest.raises(StaleVersionError):
        lake.client.open(path, version=version).pread(10, FAR)


def test_a_store_that_ignores_conditions_is_found_out_by_the_version_it_answers_with(lake: Lake, number: int) -> None:
    path = lake.put(number, 1, LARGE)
    with lake.client.open(path) as file:
        oracle.check(number, 1, 0, file.read(1000))
        lake.store.answer_all(answers.other_version)
        try:
            with pytest.raises(StaleVersionError):
                pread(file)
        finally:
            lake.store.recover()
        oracle.check(number, 1, FAR + 123, pread(file))
