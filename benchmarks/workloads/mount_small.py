"""Cached small files through the mount against the local file system: hot, and with the kernel's caches dropped."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from benchmarks.baselines import local_tree
from benchmarks.compare import Work
from benchmarks.lab import SMALL_BYTES, Lab
from benchmarks.measure import Side, Verdict, can_drop_caches, drop_caches, peer_figures
from benchmarks.small_files import WAYS, everywhere

WHAT = "mount-small"
FILES = 2000
NAMES = [f"{at:06}.bin" for at in range(FILES)]
WARM_LIMITS = {"no-open": 1.1, "open": 2.0, "image": 0.8}
DROPPED_LIMITS = {"no-open": 1.6, "open": 1.6, "image": 1.6}


def run(lab: Lab) -> list[Verdict]:
    buffer = bytearray(SMALL_BYTES)

    def read(directory: Path) -> int:
        return local_tree.small(directory, NAMES, buffer)

    warm = Work(local_tree.HOW_SMALL, read, FILES * SMALL_BYTES)
    dropped = Work(f"{warm.how}; page cache and names dropped before", read, warm.expected, lambda _: drop_caches())
    with ExitStack() as stack:
        places = everywhere(lab, stack, NAMES)
        places.measure(warm, 2)
        bar = "warm small files through the mount, {}, time ÷ local file system"
        verdicts = _verdicts(bar, WARM_LIMITS, *places.measure(warm.hot(), lab.repeats * 3))
        if can_drop_caches():
            before = places.metrics("source_requests")
            bar = "small files through the mount, {}, kernel caches dropped, time ÷ local file system so dropped"
            verdicts += _verdicts(bar, DROPPED_LIMITS, *places.measure(dropped, lab.repeats))
            for called, asked, later in zip(WAYS.values(), before, places.metrics("source_requests"), strict=True):
                bar = f"requests to the source by small files, {called}, kernel caches dropped"
                verdicts.append(Verdict(bar, later - asked, "≤", 0))
    return verdicts


def _verdicts(bar: str, limits: dict[str, float], ours: list[Side], disk: Side, others: list[Side]) -> list[Verdict]:
    for side in (*ours, disk, *others):
        if not side.failure:
            side.figures["µs/file"] = side.median_s / FILES * 1e6

    def share(side: Side) -> float:
        return side.median_s / disk.median_s

    peers = peer_figures(others, share)
    return [
        Verdict(bar.format(WAYS[way]), share(side), "≤", limit, sides=[side, disk], peers=peers)
        for (way, limit), side in zip(limits.items(), ours, strict=True)
    ]
