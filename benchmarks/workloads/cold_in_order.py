"""Cold small files one after another in listing order, one thread, against one raw GET at a time."""

from __future__ import annotations

from benchmarks.baselines import raw_gets
from benchmarks.lab import BUCKET, SMALL_BYTES, Lab, attach, node_pid
from benchmarks.measure import Side, Step, Verdict, take_turns
from benchmarks.store import SLOW
from penstock.demo.plain_gets import PlainStore

WHAT = "cold-in-order"
FILES = 300


def run(lab: Lab) -> list[Verdict]:
    keys = [f"small/{at:06}.bin" for at in range(FILES)]
    with lab.store(SLOW) as store, lab.node() as client:
        for seed, key in enumerate(keys):
            store.put(BUCKET, key, SMALL_BYTES, seed)
        attach(client, store, "/data")
        plain = PlainStore(store.endpoint, BUCKET)
        expected = raw_gets.run(plain, keys, 32)

        def read() -> list[bytes]:
            contents = []
            for entry in client.list("/data/small"):
                with client.open(f"/data/small/{entry.name}") as file:
                    contents.append(file.read())
            return contents

        def check(contents: object) -> None:
            assert contents == expected

        ours = Side("penstock", "client.list, then open-read-close one after another, one thread")
        raw = Side("raw GETs", raw_gets.how(1))
        steps = [
            Step(ours, read, prepare=lambda: client.evict("/data/small").wait(), check=check),
            Step(raw, lambda: raw_gets.run(plain, keys, 1), check=check),
        ]
        take_turns(steps, min(lab.repeats, 3), {"node": node_pid(client), "remote": store.pid})
    for side in (ours, raw):
        side.figures["files/s"] = FILES / side.median_s
    bar = "cold small files one after another in listing order ÷ one raw GET at a time"
    return [Verdict(bar, raw.median_s / ours.median_s, "≥", 10, unit="×", sides=[ours, raw])]
