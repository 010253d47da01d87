"""Files that the cache cannot take are read right, and fetched once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fault import oracle
from integration.conftest import Machine
from mount.lake import KIB, MIB, WAYS, MountedLake

SIZE = 24 * MIB + 4097
BLOCKS = [64 * KIB, MIB, SIZE]
"""What a program reads at once."""


@pytest.fixture(scope="module")
def full(guard: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLake]:
    """A mounted tree whose cache is too small for anything."""
    machine = Machine(tmp_path_factory.mktemp("full"))
    try:
        with MountedLake(machine, "cache.size=1MiB") as lake:
            for block in BLOCKS:
                for reader in ("client", *WAYS):
                    lake.put(f"it/{reader}-{block}", oracle.content(block, 1, 0, SIZE))
            yield lake
    finally:
        machine.close()


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("reader", ["client", *WAYS])
def test_a_sequential_reader_of_what_cannot_be_cached_fetches_it_once(
    full: MountedLake, reader: str, block: int
) -> None:
    way = "open" if reader == "client" else reader
    root = full.attach("it", f"/{reader}-{block}", way=way)
    name, at = f"{reader}-{block}", 0
    before = full.metrics()
    with full.client.open(f"{full.tree_path(root)}/{name}") if reader == "client" else (root / name).open("rb") as file:
        while found := file.read(block):
            oracle.check(block, 1, at, found)
            at += len(found)
    after = full.metrics()
    assert at == SIZE
    assert after["uncached_bytes"] > before["uncached_bytes"]
    assert after["source_bytes"] - before["source_bytes"] <= 1.1 * SIZE


def test_memory_is_given_back_when_nobody_reads_any_more(full: MountedLake) -> None:
    root = full.attach("it", "/left", way="no-open")
    with (root / f"open-{BLOCKS[0]}").open("rb", buffering=0) as file:
        assert len(file.read(4096)) == 4096
        assert full.metrics()["memory_used_bytes"] > 0
        full.machine.until(lambda: full.metrics()["memory_used_bytes"] == 0)
        assert len(file.read(4096)) == 4096


def test_the_cache_has_large_files_back_that_nobody_reads_any_more(machine: Machine) -> None:
    with MountedLake(machine, "cache.size=256MiB") as lake:
        for number in range(6):
            lake.put(f"it/{number}", oracle.content(number, 1, 0, SIZE))
        root = lake.attach("it", "/it", way="no-open")
        for number in range(6):
            oracle.check(number, 1, 0, (root / str(number)).read_bytes())
        assert lake.metrics()["leases"] > 0
        lake.machine.until(lambda: lake.metrics()["leases"] == 0)
        for number in range(6):
            oracle.check(number, 1, 0, (root / str(number)).read_bytes())
