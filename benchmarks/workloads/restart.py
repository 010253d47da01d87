"""``penstock up`` after SIGKILL with 100,000 cached objects and a million catalog entries, against an empty home."""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.lab import BUCKET, Lab, attach, kill, metric, node_at, running_at, up
from benchmarks.measure import Side, Verdict
from benchmarks.store import FREE
from penstock.demo.node import stop_node

WHAT = "restart"
OBJECTS = 1_000_000
CACHED = 100_000
PER_DIRECTORY = 10_000
BATCH = 1000


def run(lab: Lab) -> list[Verdict]:
    full, empty = lab.path("full"), lab.path("empty")
    ours = Side("full home", "penstock up after SIGKILL; 100,000 cached objects, 1,000,000 catalog entries")
    bare = Side("empty home", "penstock up in a home where nothing was attached")
    with lab.store(FREE) as store:
        store.put_many(BUCKET, "train/d{:04}/{:08}.bin", OBJECTS, PER_DIRECTORY)
        with node_at(full) as client:
            attach(client, store, "/data")
            _fill(client)
            cached = metric(client, "cache_extents")
            assert cached == CACHED, f"{cached} objects are cached"
            # What the index keeps is written every second; the kill must not come before.
            time.sleep(3)
            kill(full)
        for _ in range(lab.repeats):
            for side, home in ((ours, full), (bare, empty)):
                side.seconds.append(up(home))
                if home == full:
                    _check(home)
                kill(home)
    stop_node(full)
    stop_node(empty)
    bar = "penstock up after SIGKILL with 100,000 cached objects and 10⁶ catalog entries, time ÷ empty home"
    return [Verdict(bar, ours.median_s / bare.median_s, "≤", 1.5, sides=[ours, bare])]


def _fill(client) -> None:  # type: ignore[no-untyped-def]
    batch: list[str] = []
    cached = 0
    for entry in client.walk("/data"):
        if entry.size and cached < CACHED:
            batch.append(f"/data/{entry.name}")
            cached += 1
            if len(batch) == BATCH:
                client.read_many(batch)
                batch.clear()


def _check(home: Path) -> None:
    """What was cached before the kill is read from the cache."""
    client = running_at(home)
    before = metric(client, "source_read_requests")
    # The index is written once a second: the last second before the kill may be missing.
    paths = [f"/data/train/d{at // PER_DIRECTORY:04}/{at % PER_DIRECTORY:08}.bin" for at in range(0, CACHED // 2, 997)]
    assert all(bytes(view) == b"tiny" for view in client.read_many(paths))
    assert metric(client, "source_read_requests") == before
    client.close()
