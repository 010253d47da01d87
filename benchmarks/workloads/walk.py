"""A walk of 20,000 objects in 100 directories over the slow store, the first time and again."""

from __future__ import annotations

from benchmarks.lab import BUCKET, Lab, attach, node_pid
from benchmarks.measure import Side, Step, Verdict, take_turns
from benchmarks.store import SLOW

WHAT = "walk"
OBJECTS = 20_000
PER_DIRECTORY = 200
DIRECTORIES = OBJECTS // PER_DIRECTORY


def run(lab: Lab) -> list[Verdict]:
    with lab.store(SLOW) as store, lab.node() as client:
        first = Side("first", "client.walk, name, size, mtime and version of each entry; nothing known before")
        again = Side("again", "the same call once more")
        path = iter(f"/data{at}" for at in range(lab.repeats))
        now = [""]

        def fresh() -> None:
            # A bucket of its own per repeat: nothing of it is known.
            now[0] = next(path)
            bucket = f"{BUCKET}{now[0].strip('/')}"
            store.put_many(bucket, "train/d{:03}/{:06}.bin", OBJECTS, PER_DIRECTORY)
            attach(client, store, now[0], bucket)

        def walk() -> int:
            return sum(1 for entry in client.walk(now[0]) if entry.size)

        def check(count: object) -> None:
            assert count == OBJECTS, count

        steps = [Step(first, walk, prepare=fresh, check=check), Step(again, walk, check=check)]
        take_turns(steps, lab.repeats, {"node": node_pid(client), "remote": store.pid})
    return [
        Verdict(
            "walk of 20,000 objects in 100 directories, slow store, first", first.median_s, "≤", 1.0, " s", [first]
        ),
        Verdict("the same walk again", again.median_s, "≤", 0.1, " s", [again]),
    ]
