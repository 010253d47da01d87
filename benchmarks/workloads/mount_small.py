"""Cached small files through the mount against the local file system: hot, and with the kernel's caches dropped."""

from __future__ import annotations

from pathlib import Path

from benchmarks.baselines import local_tree
from benchmarks.lab import BUCKET, SMALL_BYTES, Lab, attach, metric, node_pid
from benchmarks.measure import Side, Step, Verdict, can_drop_caches, drop_caches, take_turns
from benchmarks.store import FREE, Store, content

WHAT = "mount-small"
FILES = 2000
NAMES = [f"{at:06}.bin" for at in range(FILES)]
WAYS = {"no-open": ("without opens", 1.1), "open": ("passthrough", 2.0)}


def run(lab: Lab) -> list[Verdict]:
    local = lab.path("small")
    local.mkdir()
    verdicts = []
    with lab.store(FREE) as store:
        for seed, name in enumerate(NAMES):
            store.put(BUCKET, name, SMALL_BYTES, seed)
            (local / name).write_bytes(content(SMALL_BYTES, seed))
        for way in WAYS:
            verdicts += _way(lab, store, local, way)
    return verdicts


def _way(lab: Lab, store: Store, local: Path, way: str) -> list[Verdict]:
    called, limit = WAYS[way]
    buffer = bytearray(SMALL_BYTES)
    with lab.node() as client:
        attach(client, store, "/data", way=way)
        client.preload("/data").wait()
        with lab.mount(client, "/data") as mounted:
            places = [(f"penstock mount, {called}", mounted), ("local file system", local)]

            def compare(repeats: int, dropped: bool) -> tuple[Side, Side]:
                how = local_tree.HOW_SMALL + ("; page cache and names dropped before" if dropped else "")
                sides = [Side(name, how) for name, _ in places]
                steps = [
                    Step(
                        side,
                        lambda place=place: local_tree.small(place, NAMES, buffer),
                        prepare=drop_caches if dropped else lambda: None,
                        check=_check,
                    )
                    for side, (_, place) in zip(sides, places, strict=True)
                ]
                take_turns(steps, repeats, {"node": node_pid(client)})
                for side in sides:
                    side.figures["µs/file"] = side.median_s / FILES * 1e6
                return sides[0], sides[1]

            compare(2, dropped=False)
            before = metric(client, "kernel_reads")
            ours, disk = compare(lab.repeats * 3, dropped=False)
            ours.figures["reads answered by the node"] = metric(client, "kernel_reads") - before
            bar = f"warm small files through the mount, {called}, time ÷ local file system"
            verdicts = [Verdict(bar, ours.median_s / disk.median_s, "≤", limit, sides=[ours, disk])]
            if can_drop_caches():
                before = metric(client, "source_requests")
                ours, disk = compare(lab.repeats, dropped=True)
                requests = metric(client, "source_requests") - before
                bar = f"the same, {called}, cached on disk, kernel caches dropped, time ÷ local file system so dropped"
                verdicts += [
                    Verdict(bar, ours.median_s / disk.median_s, "≤", 1.6, sides=[ours, disk]),
                    Verdict(f"requests to the source meanwhile, {called}", requests, "≤", 0),
                ]
    return verdicts


def _check(total: object) -> None:
    assert total == FILES * SMALL_BYTES, total
