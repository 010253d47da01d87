"""A cached 512 MiB object, read by one ``readinto`` loop, against the same file on the local file system."""

from __future__ import annotations

from benchmarks.baselines import local_read
from benchmarks.lab import BUCKET, Lab, attach, node_pid
from benchmarks.measure import Side, Step, Verdict, take_turns
from benchmarks.store import FREE, content

WHAT = "warm-sequential"
SIZE = 512 << 20
BUFFER_BYTES = 1 << 20


def run(lab: Lab) -> list[Verdict]:
    local = lab.path("local.bin")
    local.write_bytes(content(SIZE, 1))
    buffer = memoryview(bytearray(BUFFER_BYTES))
    with lab.store(FREE) as store, lab.node() as client:
        store.put(BUCKET, "large.bin", SIZE, seed=1)
        attach(client, store, "/data")

        def read() -> int:
            total = 0
            with client.open("/data/large.bin") as file:
                while count := file.readinto(buffer):
                    total += count
            return total

        def check(total: object) -> None:
            assert total == SIZE, total

        read()
        local_read.large(local, buffer)
        ours = Side("penstock", "client.open().readinto in a loop, one thread, 1 MiB buffer, complete in the cache")
        disk = Side("local file", local_read.HOW_LARGE)
        steps = [Step(ours, read, check=check), Step(disk, lambda: local_read.large(local, buffer), check=check)]
        take_turns(steps, lab.repeats * 10, {"node": node_pid(client)})
    for side in (ours, disk):
        side.figures["MB/s"] = SIZE / side.median_s / 1e6
    bar = "warm sequential read ÷ the same file on the local file system"
    return [Verdict(bar, disk.median_s / ours.median_s, "≥", 0.95, sides=[ours, disk])]
