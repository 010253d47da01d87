"""A cached large file through the mount against the local file system: sequential, random, mapped, page cache."""

from __future__ import annotations

import random
from contextlib import ExitStack
from pathlib import Path

from benchmarks.baselines import local_tree
from benchmarks.compare import Spot, Work, compare, peer_spots
from benchmarks.lab import BUCKET, Lab, attach, node_pid, penstock
from benchmarks.measure import (
    Side,
    Verdict,
    can_drop_caches,
    drop_caches,
    page_cache_bytes,
    peer_figures,
)
from benchmarks.small_files import WAYS
from benchmarks.store import FREE, content

WHAT = "mount-large"
SIZE = 1 << 30
NAME = "large.bin"
BUFFER_BYTES = 1 << 20
RANDOM_READS = 50_000
LEFT_LIMITS = {"open": 1.05, "no-open": 1.1, "image": 1.1}


def run(lab: Lab) -> list[Verdict]:
    local = lab.path("local")
    local.mkdir()
    (local / NAME).write_bytes(content(SIZE, 1))
    with ExitStack() as stack:
        store, client = stack.enter_context(lab.store(FREE)), stack.enter_context(lab.node())
        store.put(BUCKET, NAME, SIZE, seed=1)
        attach(client, store, "/data")
        client.preload("/data").wait()
        mounted = stack.enter_context(lab.mount(client, "/data"))
        spots = [Spot("penstock mount", mounted, {"node": node_pid(client)}), Spot("local file system", local)]
        spots += peer_spots(stack.enter_context(lab.peers(store)))
        verdicts = _measure(lab, spots)
    return verdicts + (_left_in_page_cache(lab) if can_drop_caches() else [])


def _measure(lab: Lab, spots: list[Spot]) -> list[Verdict]:
    buffer = memoryview(bytearray(BUFFER_BYTES))
    source = random.Random(5)
    offsets = [source.randrange(SIZE // 4096) * 4096 for _ in range(RANDOM_READS)]

    def sequential(directory: Path) -> int:
        return local_tree.large(directory / NAME, buffer)

    def scattered(directory: Path) -> int:
        return local_tree.scattered(directory / NAME, offsets, 4096)

    def mapped(directory: Path) -> int:
        return local_tree.mapped(directory / NAME)

    def dropped() -> Verdict:
        how = f"{local_tree.HOW_LARGE}; page cache dropped before"
        sides = compare(spots, Work(how, sequential, SIZE, lambda _: drop_caches()), lab.repeats)
        return _speed(
            "warm sequential read through the mount, page cache cold, ÷ local file system so cold", sides, 0.9
        )

    warm = Work(local_tree.HOW_LARGE, sequential, SIZE)
    compare(spots, warm, 2)
    hot = compare(spots, warm.hot(), lab.repeats * 2)
    at_random = compare(spots, Work(local_tree.HOW_RANDOM, scattered, RANDOM_READS * 4096).hot(), lab.repeats)
    # Without peers: who touches a mapping holds the interpreter, so that nothing could end it.
    touch = Work(local_tree.HOW_MAPPED, mapped, SIZE // local_tree.PAGE_BYTES)
    touched = compare(spots[:2], touch.hot(), lab.repeats)
    bar = "mmap of a complete file through the mount, every page touched, time ÷ local file system"
    verdicts = [
        _speed("warm sequential read through the mount, page cache hot, ÷ local file system", hot, 0.95),
        _speed("warm 4 KiB random reads through the mount ÷ local file system", at_random, 0.95),
        Verdict(bar, touched[0].median_s / touched[1].median_s, "≤", 1.2, sides=touched),
    ]
    if can_drop_caches():
        verdicts.append(dropped())
    return verdicts


def _left_in_page_cache(lab: Lab) -> list[Verdict]:
    """What one reader of the cached file leaves there, in each way."""
    verdicts, buffer = [], memoryview(bytearray(BUFFER_BYTES))
    with lab.store(FREE) as store, lab.node() as client:
        store.put(BUCKET, NAME, SIZE, seed=1)
        for way, limit in LEFT_LIMITS.items():
            attach(client, store, f"/{way}", way="auto" if way == "image" else way)
            client.preload(f"/{way}").wait()
            if way == "image":
                penstock(client, "snapshot", "create", f"/{way}", "--name", "it")
            with lab.mount_snapshot(client, "it") if way == "image" else lab.mount(client, f"/{way}") as mounted:
                drop_caches()
                before = page_cache_bytes()
                local_tree.large(mounted / NAME, buffer)
                grown = (page_cache_bytes() - before) / SIZE
            bar = f"page cache that reading 1 GiB leaves ÷ 1 GiB, {WAYS[way]}"
            verdicts.append(Verdict(bar, grown, "≤", limit))
    return verdicts


def _speed(bar: str, sides: list[Side], limit: float) -> Verdict:
    ours, disk, *others = sides

    def share(side: Side) -> float:
        return disk.median_s / side.median_s

    return Verdict(bar, share(ours), "≥", limit, sides=[ours, disk], peers=peer_figures(others, share))
