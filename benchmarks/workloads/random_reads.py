"""Warm 4 KiB random reads on one open file, against ``os.pread`` on the local file system."""

from __future__ import annotations

import random

from benchmarks.baselines import positioned_reads
from benchmarks.lab import BUCKET, Lab, attach, node_pid
from benchmarks.measure import Side, Step, Verdict, take_turns
from benchmarks.store import FREE, content

WHAT = "random-reads"
SIZE = 256 << 20
READS = 20_000
READ_BYTES = 4096


def run(lab: Lab) -> list[Verdict]:
    local = lab.path("local.bin")
    local.write_bytes(content(SIZE, 1))
    source = random.Random(1)
    offsets = [source.randrange(0, SIZE - READ_BYTES) for _ in range(READS)]
    with lab.store(FREE) as store, lab.node() as client:
        store.put(BUCKET, "large.bin", SIZE, seed=1)
        attach(client, store, "/data")
        with client.open("/data/large.bin") as file:
            while file.read(8 << 20):
                pass

        def read() -> int:
            total = 0
            with client.open("/data/large.bin") as file:
                for offset in offsets:
                    total += len(file.pread(READ_BYTES, offset))
            return total

        def check(total: object) -> None:
            assert total == READS * READ_BYTES, total

        ours = Side("penstock", "file.pread(4096, offset) on one open file, complete in the cache")
        disk = Side("local file", positioned_reads.HOW)
        steps = [
            Step(ours, read, check=check),
            Step(disk, lambda: positioned_reads.run(local, offsets, READ_BYTES), check=check),
        ]
        take_turns(steps, lab.repeats * 10, {"node": node_pid(client)})
    for side in (ours, disk):
        side.figures["reads/s"] = READS / side.median_s
    bar = "warm 4 KiB random reads on one open file ÷ os.pread on the local file system"
    return [Verdict(bar, disk.median_s / ours.median_s, "≥", 0.9, sides=[ours, disk])]
