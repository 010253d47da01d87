"""A cached large file through the mount against the local file system: sequential, random, mapped, page cache."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from benchmarks.baselines import local_tree
from benchmarks.lab import BUCKET, Lab, attach, node_pid
from benchmarks.measure import (
    Side,
    Step,
    Verdict,
    can_drop_caches,
    drop_caches,
    page_cache_bytes,
    take_turns,
)
from benchmarks.store import FREE, content

WHAT = "mount-large"
SIZE = 1 << 30
BUFFER_BYTES = 1 << 20
RANDOM_READS = 50_000


def run(lab: Lab) -> list[Verdict]:
    local = lab.path("local.bin")
    local.write_bytes(content(SIZE, 1))
    source = random.Random(5)
    offsets = [source.randrange(SIZE // 4096) * 4096 for _ in range(RANDOM_READS)]
    buffer = memoryview(bytearray(BUFFER_BYTES))
    with lab.store(FREE) as store, lab.node() as client:
        store.put(BUCKET, "large.bin", SIZE, seed=1)
        attach(client, store, "/data")
        client.preload("/data").wait()
        with lab.mount(client, "/data") as root:
            mounted = root / "large.bin"
            places = [("penstock mount", mounted), ("local file system", local)]
            pid = node_pid(client)

            def compare(
                how: str, work: Callable[[Path], int], repeats: int, prepare: Callable[[], None] = lambda: None
            ) -> list[Side]:
                sides = [Side(name, how) for name, _ in places]
                steps = [
                    Step(side, lambda path=path: work(path), prepare=prepare)
                    for side, (_, path) in zip(sides, places, strict=True)
                ]
                take_turns(steps, repeats, {"node": pid})
                return sides

            def sequential(path: Path) -> int:
                total = local_tree.large(path, buffer)
                assert total == SIZE, total
                return total

            sequential(mounted), sequential(local)
            hot = compare(local_tree.HOW_LARGE, sequential, lab.repeats * 2)
            scattered = compare(
                local_tree.HOW_RANDOM, lambda path: local_tree.scattered(path, offsets, 4096), lab.repeats
            )
            mapped = compare(local_tree.HOW_MAPPED, local_tree.mapped, lab.repeats)
            verdicts = [
                _speed("warm sequential read through the mount, page cache hot, ÷ local file system", hot, 0.95),
                _speed("warm 4 KiB random reads through the mount ÷ local file system", scattered, 0.95),
                Verdict(
                    "mmap of a complete file through the mount, every page touched, time ÷ local file system",
                    mapped[0].median_s / mapped[1].median_s,
                    "≤",
                    1.2,
                    sides=mapped,
                ),
            ]
            if can_drop_caches():
                how = f"{local_tree.HOW_LARGE}; page cache dropped before"
                cold = compare(how, sequential, lab.repeats, drop_caches)
                verdicts.append(
                    _speed("the same sequential read, page cache cold, ÷ local file system so cold", cold, 0.9)
                )
                drop_caches()
                before = page_cache_bytes()
                sequential(mounted)
                grown = (page_cache_bytes() - before) / SIZE
                verdicts.append(Verdict("page cache that reading 1 GiB leaves ÷ 1 GiB, passthrough", grown, "≤", 1.05))
    return verdicts


def _speed(bar: str, sides: list[Side], limit: float) -> Verdict:
    ours, disk = sides
    return Verdict(bar, disk.median_s / ours.median_s, "≥", limit, sides=sides)
