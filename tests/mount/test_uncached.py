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
