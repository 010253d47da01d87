"""Files that nobody has read before, through the mount: one large, small ones in order, small ones in no order."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.baselines import local_tree, raw_streams
from benchmarks.compare import Spot, Work, peer_spots
from benchmarks.lab import BUCKET, SMALL_BYTES, Lab, attach, node_pid
from benchmarks.measure import PeerFigure, Side, Step, Verdict, back_memory, peer_figures, take_turns
from benchmarks.store import FREE, LINK_BYTES_PER_S, SLOW
from penstock.demo.plain_gets import PlainStore

WHAT = "mount-cold"
LARGE_BYTES = 512 << 20
SMALL = 800
HALF = SMALL // 2
PEER_SMALL = 200
"""Of as many: a peer that asks for one file after another takes as long for each, however many there are."""
THREADS = 16
BACKED = "memory of the machine touched before"
HOW_LARGE = f"{local_tree.HOW_LARGE}; {BACKED}"


def run(lab: Lab) -> list[Verdict]:
    return [_large(lab, "slow"), _large(lab, "free"), *_small(lab)]


def _large(lab: Lab, which: str) -> Verdict:
    buffer = memoryview(bytearray(1 << 20))
    with lab.store(SLOW if which == "slow" else FREE) as store, lab.node() as client:
        # An object of its own per repeat: nobody, the kernel included, has seen it.
        names = [f"large{at}.bin" for at in range(lab.repeats)]
        for name in names:
            store.put(BUCKET, name, LARGE_BYTES, seed=1)
        attach(client, store, "/data", way="open")
        plain, target = PlainStore(store.endpoint, BUCKET), str(lab.path("raw.bin"))
        raw, scratch = Side("raw streams", f"{raw_streams.HOW}; {BACKED}"), lab.path("backed")
        scratch.mkdir()
        with lab.mount(client, "/data") as mounted, lab.peers(store) as mounts:
            spots = [Spot("penstock mount", mounted, {"node": node_pid(client)}), *peer_spots(mounts)]
            sides = [spot.side(HOW_LARGE) for spot in spots]
            for name in names:

                def read(directory: Path, name: str = name) -> int:
                    return local_tree.large(directory / name, buffer)

                def fetch(name: str = name) -> None:
                    raw_streams.run(plain, name, LARGE_BYTES, target)

                work = Work(HOW_LARGE, read, LARGE_BYTES, lambda _: back_memory(scratch, 3 * LARGE_BYTES))
                steps = [spot.step(side, work) for spot, side in zip(spots, sides, strict=True)]
                raw_step = Step(raw, fetch, prepare=lambda: back_memory(scratch, 3 * LARGE_BYTES))
                take_turns([steps[0], raw_step, *steps[1:]], 1, {"remote": store.pid})
    for side in (*sides, raw):
        if not side.failure:
            side.figures["MB/s"] = LARGE_BYTES / side.median_s / 1e6
    ours, *others = sides
    if which == "slow":
        bar = "cold sequential read of 512 MiB through the mount, slow store, ÷ the link (400 MB/s)"
        return _verdict(bar, 0.95, [ours, raw], others, LARGE_BYTES / LINK_BYTES_PER_S)
    bar = "cold sequential read of 512 MiB through the mount, no limit, ÷ 32 raw range streams into a file"
    return _verdict(bar, 0.8, [ours, raw], others, raw.median_s)


def _verdict(bar: str, limit: float, sides: list[Side], others: list[Side], wanted_s: float) -> Verdict:
    def share(side: Side) -> float:
        return wanted_s / side.median_s

    return Verdict(bar, share(sides[0]), "≥", limit, sides=sides, peers=peer_figures(others, share))


class SmallReader:
    """One place where small files are read that nobody there has read before: in order, then by many in no order."""

    def __init__(self, spot: Spot, ordered: int, scattered: int) -> None:
        shuffled = "open, read, close by {} threads; {}"
        self._spot = spot
        self._buffer = bytearray(SMALL_BYTES)
        self.counts = [ordered, scattered, scattered]
        self.sides = [
            spot.side(f"{local_tree.HOW_SMALL}; {ordered} files, nothing known before"),
            spot.side(shuffled.format(THREADS, f"{scattered} files, nothing known before")),
            spot.side(shuffled.format(THREADS, f"{scattered} more of the same directory")),
        ]

    def steps(self, ordered: Sequence[str], shuffled: Sequence[str]) -> list[Step]:
        """The turns of one repeat."""
        one_by_one, first, rest = self.counts
        parts = [ordered[:one_by_one], shuffled[:first], shuffled[first : first + rest]]
        works = [self._one_by_one, self._together, self._together]
        return [
            self._spot.step(side, Work(side.how, partial(work, names=part), len(part) * SMALL_BYTES))
            for side, work, part in zip(self.sides, works, parts, strict=True)
        ]

    def ms_per_file(self, which: int) -> float:
        """Of one of the three."""
        return self.sides[which].median_s / self.counts[which] * 1e3

    def _one_by_one(self, directory: Path, names: Sequence[str]) -> int:
        return local_tree.small(directory, names, self._buffer)

    def _together(self, directory: Path, names: Sequence[str]) -> int:
        return local_tree.small_in_threads(directory, names, SMALL_BYTES + 1, THREADS)


def _small(lab: Lab) -> list[Verdict]:
    repeats = min(lab.repeats, 3)
    with lab.store(SLOW) as store, lab.node() as client:
        for directory in (f"{kind}{repeat}" for kind in ("ordered", "scattered") for repeat in range(repeats)):
            for seed in range(SMALL):
                store.put(BUCKET, f"{directory}/{seed:06}.bin", SMALL_BYTES, seed)
        attach(client, store, "/data")
        with lab.mount(client, "/data") as mounted, lab.peers(store) as mounts:
            ours = SmallReader(Spot("penstock mount", mounted, {"node": node_pid(client)}), SMALL, HALF)
            others = [SmallReader(spot, PEER_SMALL, PEER_SMALL) for spot in peer_spots(mounts)]
            for repeat in range(repeats):
                ordered = [f"ordered{repeat}/{seed:06}.bin" for seed in range(SMALL)]
                shuffled = [f"scattered{repeat}/{seed:06}.bin" for seed in range(SMALL)]
                random.Random(repeat).shuffle(shuffled)
                steps = [step for reader in (ours, *others) for step in reader.steps(ordered, shuffled)]
                take_turns(steps, 1, {"remote": store.pid})
    verdicts = []
    bars = [("in name order", 3.0), ("in no order, the first half", 2.2), ("in no order, the second half", 1.5)]
    for which, (called, limit) in enumerate(bars):
        figures = [
            PeerFigure(side, None if side.failure else reader.ms_per_file(which))
            for reader in others
            for side in [reader.sides[which]]
        ]
        bar = f"cold small files through the mount, {called}, ms per file"
        side = ours.sides[which]
        verdicts.append(Verdict(bar, ours.ms_per_file(which), "≤", limit, " ms", sides=[side], peers=figures))
    return verdicts
