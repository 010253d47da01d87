"""A cold 512 MiB object, read from its first byte to its last by one ``readinto`` loop.

Over the slow store against the link; without any limit against 32 raw range streams into a file.
"""

from __future__ import annotations

from benchmarks.baselines import raw_streams
from benchmarks.lab import BUCKET, Lab, attach, node_pid
from benchmarks.measure import Side, Step, Verdict, take_turns
from benchmarks.store import FREE, LINK_BYTES_PER_S, SLOW
from penstock.demo.plain_gets import PlainStore

WHAT = "cold-sequential"
SIZE = 512 << 20
BUFFER_BYTES = 1 << 20


def run(lab: Lab) -> list[Verdict]:
    return [_slow(lab), _free(lab)]


def _slow(lab: Lab) -> Verdict:
    ours, raw = _measure(lab, SLOW)
    speed = SIZE / ours.median_s
    ours.figures["MB/s"] = speed / 1e6
    raw.figures["MB/s"] = SIZE / raw.median_s / 1e6
    bar = "cold sequential read of 512 MiB, slow store, ÷ the link (400 MB/s)"
    return Verdict(bar, speed / LINK_BYTES_PER_S, "≥", 0.9, sides=[ours, raw], note="raw streams only for comparison")


def _free(lab: Lab) -> Verdict:
    ours, raw = _measure(lab, FREE)
    for side in (ours, raw):
        side.figures["MB/s"] = SIZE / side.median_s / 1e6
    bar = "cold sequential read of 512 MiB, no limit, ÷ 32 raw range streams into a file"
    return Verdict(bar, raw.median_s / ours.median_s, "≥", 0.85, sides=[ours, raw])


def _measure(lab: Lab, shape: tuple[float, int, int]) -> tuple[Side, Side]:
    with lab.store(shape) as store, lab.node() as client:
        store.put(BUCKET, "large.bin", SIZE, seed=1)
        attach(client, store, "/data")
        plain, target = PlainStore(store.endpoint, BUCKET), str(lab.path("raw.bin"))
        buffer = memoryview(bytearray(BUFFER_BYTES))

        def read() -> int:
            total = 0
            with client.open("/data/large.bin") as file:
                while count := file.readinto(buffer):
                    total += count
            return total

        def check(total: object) -> None:
            assert total == SIZE, total

        ours = Side("penstock", "client.open().readinto in a loop, one thread, 1 MiB buffer, cached with CRC32C")
        raw = Side("raw streams", raw_streams.HOW)
        steps = [
            Step(ours, read, prepare=lambda: client.evict("/data/large.bin").wait(), check=check),
            Step(raw, lambda: raw_streams.run(plain, "large.bin", SIZE, target)),
        ]
        take_turns(steps, lab.repeats, {"node": node_pid(client), "remote": store.pid})
        return ours, raw
