"""Cached small files through the mount against the local file system: hot, and with the kernel's caches dropped."""

from __future__ import annotations

from benchmarks.baselines import local_tree
from benchmarks.lab import BUCKET, SMALL_BYTES, Lab, attach, metric, node_pid
from benchmarks.measure import Side, Step, Verdict, can_drop_caches, drop_caches, take_turns
from benchmarks.store import FREE, content

WHAT = "mount-small"
FILES = 2000
LIMITS = {"passthrough": 2.0}


def run(lab: Lab) -> list[Verdict]:
    names = [f"{at:06}.bin" for at in range(FILES)]
    local = lab.path("small")
    local.mkdir()
    with lab.store(FREE) as store, lab.node() as client:
        for seed, name in enumerate(names):
            store.put(BUCKET, name, SMALL_BYTES, seed)
            (local / name).write_bytes(content(SMALL_BYTES, seed))
        attach(client, store, "/data")
        client.preload("/data").wait()
        buffer = bytearray(SMALL_BYTES)
        with lab.mount(client, "/data") as mounted:

            def check(total: object) -> None:
                assert total == FILES * SMALL_BYTES, total

            ours = Side("penstock mount, passthrough", local_tree.HOW_SMALL)
            disk = Side("local file system", local_tree.HOW_SMALL)
            steps = [
                Step(ours, lambda: local_tree.small(mounted, names, buffer), check=check),
                Step(disk, lambda: local_tree.small(local, names, buffer), check=check),
            ]
            take_turns(steps, 1, {})
            for side in (ours, disk):
                side.seconds.clear()
                side.cpu_s.clear()
            before = metric(client, "kernel_reads")
            take_turns(steps, lab.repeats * 3, {"node": node_pid(client)})
            reads = metric(client, "kernel_reads") - before
            for side in (ours, disk):
                side.figures["µs/file"] = side.median_s / FILES * 1e6
            verdicts = [
                Verdict(
                    "warm small files through the mount, passthrough, time ÷ local file system",
                    ours.median_s / disk.median_s,
                    "≤",
                    LIMITS["passthrough"],
                    sides=[ours, disk],
                ),
                Verdict("reads of the kernel that the node answered meanwhile", reads, "≤", 0),
            ]
            if can_drop_caches():
                verdicts += _dropped(lab, client, [(mounted, ours), (local, disk)], names)
    return verdicts


def _dropped(lab, client, places, names) -> list[Verdict]:  # type: ignore[no-untyped-def]
    buffer = bytearray(SMALL_BYTES)
    sides = [Side(side.name, f"{side.how}; page cache and directory entries dropped before") for _, side in places]
    steps = [
        Step(side, lambda place=place: local_tree.small(place, names, buffer), prepare=drop_caches)
        for side, (place, _) in zip(sides, places, strict=True)
    ]
    before = metric(client, "source_requests")
    take_turns(steps, lab.repeats, {"node": node_pid(client)})
    requests = metric(client, "source_requests") - before
    ours, disk = sides
    return [
        Verdict(
            "small files cached on disk, kernel caches dropped, time ÷ local file system so dropped",
            ours.median_s / disk.median_s,
            "≤",
            1.6,
            sides=sides,
        ),
        Verdict("requests to the source meanwhile", requests, "≤", 0),
    ]
