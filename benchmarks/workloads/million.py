"""1,000,000 objects listed again from Python: entries a second, requests to the source, memory of the node."""

from __future__ import annotations

from benchmarks.lab import BUCKET, Lab, attach, metric, node_pid
from benchmarks.measure import Side, Step, Verdict, memory_bytes, take_turns
from benchmarks.store import FREE

WHAT = "million"
OBJECTS = 1_000_000
PER_DIRECTORY = 10_000


def run(lab: Lab) -> list[Verdict]:
    with lab.store(FREE) as store, lab.node() as client:
        store.put_many(BUCKET, "train/d{:04}/{:08}.bin", OBJECTS, PER_DIRECTORY)
        attach(client, store, "/data")

        def walk() -> int:
            return sum(1 for entry in client.walk("/data") if entry.size and entry.modified_ms and entry.version)

        def check(count: object) -> None:
            assert count == OBJECTS, count

        first = Side("first", "client.walk, size, mtime and version of each entry looked at; nothing known before")
        again = Side("again", "the same call once more")
        pid = node_pid(client)
        take_turns([Step(first, walk, check=check)], 1, {"node": pid, "remote": store.pid})
        before = metric(client, "source_requests")
        take_turns([Step(again, walk, check=check)], min(lab.repeats, 3), {"node": pid, "remote": store.pid})
        requests = metric(client, "source_requests") - before
        memory = memory_bytes(pid)
    for side in (first, again):
        side.figures["entries/s"] = OBJECTS / side.median_s
    bar = "1,000,000 objects listed again from Python"
    return [
        Verdict(f"{bar}, entries per second", OBJECTS / again.median_s, "≥", 5e5, "", [first, again]),
        Verdict(f"{bar}, requests to the source", requests, "≤", 0),
        Verdict(f"{bar}, memory of the node", memory / 2**20, "≤", 400, " MiB"),
    ]
