"""A cold batch: ``read_many`` of 1,000 files of 112 KiB over the slow store, against 64 raw GETs in parallel."""

from __future__ import annotations

from benchmarks.baselines import raw_gets
from benchmarks.lab import BUCKET, SMALL_BYTES, Lab, attach, node_pid
from benchmarks.measure import Side, Step, Verdict, take_turns
from benchmarks.store import SLOW
from penstock.demo.plain_gets import PlainStore

WHAT = "cold-batch"
FILES = 1000
CONNECTIONS = 64


def run(lab: Lab) -> list[Verdict]:
    keys = [f"small/{at:06}.bin" for at in range(FILES)]
    paths = [f"/data/{key}" for key in keys]
    with lab.store(SLOW) as store, lab.node() as client:
        for seed, key in enumerate(keys):
            store.put(BUCKET, key, SMALL_BYTES, seed)
        attach(client, store, "/data")
        plain = PlainStore(store.endpoint, BUCKET)
        expected = raw_gets.run(plain, keys, CONNECTIONS)

        def check(contents: object) -> None:
            assert isinstance(contents, list)
            assert all(bytes(got) == want for got, want in zip(contents, expected, strict=True))

        ours = Side("penstock", "client.read_many(1,000 paths), nothing of them cached, cached with CRC32C")
        raw = Side("raw GETs", raw_gets.how(CONNECTIONS))
        steps = [
            Step(
                ours, lambda: client.read_many(paths), prepare=lambda: client.evict("/data/small").wait(), check=check
            ),
            Step(raw, lambda: raw_gets.run(plain, keys, CONNECTIONS), check=check),
        ]
        take_turns(steps, lab.repeats, {"node": node_pid(client), "remote": store.pid})
    for side in (ours, raw):
        side.figures["files/s"] = FILES / side.median_s
    bar = "cold read_many of 1,000 × 112 KiB, slow store, ÷ 64 raw GETs in parallel"
    return [Verdict(bar, raw.median_s / ours.median_s, "≥", 0.85, sides=[ours, raw])]
