"""Files that nobody has read before, through the mount: one large, small ones in order, small ones in no order."""

from __future__ import annotations

import random

from benchmarks.baselines import local_tree, raw_streams
from benchmarks.lab import BUCKET, SMALL_BYTES, Lab, attach, node_pid
from benchmarks.measure import Side, Step, Verdict, take_turns
from benchmarks.store import FREE, LINK_BYTES_PER_S, SLOW
from penstock.demo.plain_gets import PlainStore

WHAT = "mount-cold"
LARGE_BYTES = 512 << 20
SMALL = 800
HALF = SMALL // 2
THREADS = 16


def run(lab: Lab) -> list[Verdict]:
    return [_large(lab, "slow"), _large(lab, "free"), *_small(lab)]


def _large(lab: Lab, which: str) -> Verdict:
    shape = SLOW if which == "slow" else FREE
    buffer = memoryview(bytearray(1 << 20))
    with lab.store(shape) as store, lab.node() as client:
        # An object of its own per repeat: neither the node nor the kernel has seen it.
        names = [f"large{at}.bin" for at in range(lab.repeats)]
        for name in names:
            store.put(BUCKET, name, LARGE_BYTES, seed=1)
        following = iter(names)
        attach(client, store, "/data", way="open")
        plain, target = PlainStore(store.endpoint, BUCKET), str(lab.path("raw.bin"))
        now = [""]
        with lab.mount(client, "/data") as mounted:

            def prepare() -> None:
                now[0] = next(following)

            def check(total: object) -> None:
                assert total == LARGE_BYTES, total

            ours = Side("penstock mount", local_tree.HOW_LARGE)
            raw = Side("raw streams", raw_streams.HOW)
            steps = [
                Step(ours, lambda: local_tree.large(mounted / now[0], buffer), prepare=prepare, check=check),
                Step(raw, lambda: raw_streams.run(plain, now[0], LARGE_BYTES, target)),
            ]
            take_turns(steps, lab.repeats, {"node": node_pid(client), "remote": store.pid})
    speed = LARGE_BYTES / ours.median_s
    for side in (ours, raw):
        side.figures["MB/s"] = LARGE_BYTES / side.median_s / 1e6
    if which == "slow":
        bar = "cold sequential read of 512 MiB through the mount, slow store, ÷ the link (400 MB/s)"
        return Verdict(bar, speed / LINK_BYTES_PER_S, "≥", 0.95, sides=[ours, raw])
    bar = "cold sequential read of 512 MiB through the mount, no limit, ÷ 32 raw range streams into a file"
    return Verdict(bar, raw.median_s / ours.median_s, "≥", 0.8, sides=[ours, raw])


def _small(lab: Lab) -> list[Verdict]:
    in_order = Side("in name order", f"{local_tree.HOW_SMALL}; nothing known before")
    first = Side("in no order, the first half", f"open, read, close by {THREADS} threads; nothing known before")
    rest = Side("in no order, the second half", f"the same {THREADS} threads go on")
    buffer = bytearray(SMALL_BYTES)
    with lab.store(SLOW) as store, lab.node() as client:
        repeats = min(lab.repeats, 3)
        for directory in (f"{kind}{repeat}" for kind in ("ordered", "scattered") for repeat in range(repeats)):
            for seed in range(SMALL):
                store.put(BUCKET, f"{directory}/{seed:06}.bin", SMALL_BYTES, seed)
        attach(client, store, "/data")
        with lab.mount(client, "/data") as mounted:
            for repeat in range(repeats):
                names = [f"ordered{repeat}/{seed:06}.bin" for seed in range(SMALL)]
                shuffled = [f"scattered{repeat}/{seed:06}.bin" for seed in range(SMALL)]
                random.Random(repeat).shuffle(shuffled)
                steps = [
                    Step(in_order, lambda names=names: local_tree.small(mounted, names, buffer)),
                    *(
                        Step(
                            side,
                            lambda part=part: local_tree.small_in_threads(mounted, part, SMALL_BYTES + 1, THREADS),
                            check=_check_half,
                        )
                        for side, part in ((first, shuffled[:HALF]), (rest, shuffled[HALF:]))
                    ),
                ]
                take_turns(steps, 1, {"node": node_pid(client), "remote": store.pid})
    verdicts = []
    for side, files, limit in ((in_order, SMALL, 3.0), (first, HALF, 2.2), (rest, HALF, 1.5)):
        bar = f"cold small files through the mount, {side.name}, ms per file"
        verdicts.append(Verdict(bar, side.median_s / files * 1e3, "≤", limit, " ms", sides=[side]))
    return verdicts


def _check_half(total: object) -> None:
    assert total == HALF * SMALL_BYTES, total
