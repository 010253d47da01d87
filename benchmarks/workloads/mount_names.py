"""Names through the mount: a walk of 20,000 objects, and one directory with a million entries."""

from __future__ import annotations

import os
import time
from pathlib import Path

from benchmarks.baselines import local_tree
from benchmarks.compare import Spot, Work, peer_spots
from benchmarks.lab import BUCKET, Lab, attach, node_pid
from benchmarks.measure import Side, Verdict, memory_bytes, peer_figures, take_turns
from benchmarks.store import SLOW

WHAT = "mount-names"
OBJECTS = 20_000
PER_DIRECTORY = 200
ENTRIES = 1_000_000


def run(lab: Lab) -> list[Verdict]:
    return [*_walk(lab), *_million(lab)]


def _walk(lab: Lab) -> list[Verdict]:
    local = lab.path("tree")
    for at in range(OBJECTS):
        path = local / f"d{at // PER_DIRECTORY:03}" / f"{at % PER_DIRECTORY:06}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"tiny")
    firsts: dict[str, Side] = {}
    agains: dict[str, Side] = {}
    local_tree.walk(local)
    with lab.store(SLOW) as store, lab.node() as client:
        for repeat in range(lab.repeats):
            bucket = f"{BUCKET}{repeat}"
            store.put_many(bucket, "d{:03}/{:06}.bin", OBJECTS, PER_DIRECTORY)
            attach(client, store, f"/data{repeat}", bucket)
            with lab.mount(client, f"/data{repeat}") as mounted, lab.peers(store, bucket) as mounts:
                ours = Spot("penstock mount", mounted, {"node": node_pid(client)})
                steps = []
                for spot in (ours, Spot("local file system", local), *peer_spots(mounts)):
                    for sides, how in ((firsts, "nothing known before"), (agains, "once more")):
                        work = Work(f"{local_tree.HOW_WALK}, {how}", local_tree.walk, OBJECTS)
                        steps.append(spot.step(sides.setdefault(spot.name, spot.side(work.how)), work))
                take_turns(steps, 1, {"remote": store.pid})
    bar = "walk and stat of 20,000 objects in 100 directories through the mount, slow store"
    first, _, *others = firsts.values()
    again, disk, *others_again = agains.values()

    def share(side: Side) -> float:
        return side.median_s / disk.median_s

    peers = peer_figures(others, lambda side: side.median_s)
    return [
        Verdict(f"{bar}, first", first.median_s, "≤", 1.0, " s", sides=[first], peers=peers),
        Verdict(
            f"{bar}, again, time ÷ local file system",
            share(again),
            "≤",
            1.5,
            sides=[again, disk],
            peers=peer_figures(others_again, share),
        ),
    ]


def _million(lab: Lab) -> list[Verdict]:
    with lab.store(SLOW) as store, lab.node() as client:
        store.put_many(BUCKET, "d{:01}/{:08}.bin", ENTRIES, ENTRIES)
        attach(client, store, "/data")
        with lab.mount(client, "/data") as mounted:
            begun = time.perf_counter()
            first_s, count = _names(mounted / "d0", begun)
            whole_s = time.perf_counter() - begun
            assert count == ENTRIES, count
            memory = memory_bytes(node_pid(client))
    bar = "one directory with 1,000,000 entries through the mount, slow store"
    return [
        Verdict(f"{bar}, first entry", first_s, "≤", 0.5, " s"),
        Verdict(f"{bar}, all of them", whole_s, "≤", 15, " s"),
        Verdict(f"{bar}, memory of the node", memory / 2**20, "≤", 500, " MiB"),
    ]


def _names(directory: Path, begun: float) -> tuple[float, int]:
    first_s, count = 0.0, 0
    with os.scandir(directory) as entries:
        for _ in entries:
            if not count:
                first_s = time.perf_counter() - begun
            count += 1
    return first_s, count
