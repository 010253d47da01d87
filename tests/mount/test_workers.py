"""Workers that are forked, spawned or served by a fork server read files of a mount, as data loaders do."""

from __future__ import annotations

import multiprocessing
import random
from pathlib import Path
from typing import Any

import pytest

from mount.lake import KIB, MIB, MountedLake, digest
from mount.workers import OpenSamples, Samples, digest_of

METHODS = ["fork", "forkserver", "spawn"]
WORKERS = 2


@pytest.fixture
def samples(lake: MountedLake) -> tuple[list[Path], list[str]]:
    """Paths nobody has read yet, mostly small files, and the checksums of what they hold."""
    chance = random.Random(7)
    sizes = [*(chance.randrange(1, 150 * KIB) for _ in range(60)), 2 * MIB, 3 * MIB + 1]
    files = {f"{number % 5}/{number}": chance.randbytes(size) for number, size in enumerate(sizes)}
    shown = lake.show(files)
    return [shown / path for path in files], [digest(content) for content in files.values()]


@pytest.mark.parametrize("method", METHODS)
def test_workers_of_a_pool_read_the_right_bytes(samples: tuple[list[Path], list[str]], method: str) -> None:
    paths, wanted = samples
    with multiprocessing.get_context(method).Pool(WORKERS) as pool:
        assert pool.map(digest_of, paths, chunksize=3) == wanted
        assert pool.map(digest_of, paths[::-1], chunksize=3) == wanted[::-1]
        pool.close()
        pool.join()


def test_forked_workers_read_files_and_mappings_that_were_opened_before(samples: tuple[list[Path], list[str]]) -> None:
    paths, wanted = samples
    opened = OpenSamples(paths)
    try:
        context = multiprocessing.get_context("fork")
        queue: Any = context.SimpleQueue()
        # Each reads its own files: those who share a descriptor share its position.
        workers = [context.Process(target=put_all, args=(queue, opened, number)) for number in range(WORKERS)]
        for worker in workers:
            worker.start()
        found = dict(queue.get() for _ in paths)
        for worker in workers:
            worker.join()
    finally:
        opened.close()
    assert [found[index] for index in range(len(paths))] == wanted


def put_all(queue: Any, samples: Samples, first: int) -> None:
    for index in range(first, len(samples), WORKERS):
        queue.put(samples[index])


@pytest.mark.parametrize("method", METHODS)
def test_a_data_loader_gives_the_samples_in_order(samples: tuple[list[Path], list[str]], method: str) -> None:
    data = pytest.importorskip("torch.utils.data", reason="needs torch")
    paths, wanted = samples
    loader = data.DataLoader(
        Samples(paths),
        batch_size=8,
        num_workers=WORKERS,
        multiprocessing_context=method,
        persistent_workers=True,
        collate_fn=list,
    )
    for _ in range(2):
        assert [pair for batch in loader for pair in batch] == list(enumerate(wanted))
