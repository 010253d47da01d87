"""``penstock up`` after SIGKILL with 10,000 files that the source has not got, against an empty home."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.lab import BUCKET, SMALL_BYTES, Lab, attach, kill, node_at, running_at, up
from benchmarks.measure import Side, Verdict
from benchmarks.store import FREE, content
from penstock.demo.node import stop_node

if TYPE_CHECKING:
    from penstock.client import Client

WHAT = "replay"
FILES = 10_000
PER_DIRECTORY = 100
LARGE_BYTES = 1 << 20
"""Of every hundredth file; the journal holds the content of the others."""


def run(lab: Lab) -> list[Verdict]:
    full, empty = lab.path("full"), lab.path("empty")
    ours = Side("full home", f"penstock up after SIGKILL; {FILES:,} staged files, the source is away")
    bare = Side("empty home", "penstock up in a home where nothing was attached")
    lost = 0
    with node_at(full) as client:
        with lab.store(FREE) as store:
            store.put(BUCKET, "first", 1, 1)
            attach(client, store, "/runs", writable=True)
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda number: _write(client, number), range(FILES)))
        kill(full)
        for _ in range(lab.repeats):
            for side, home in ((ours, full), (bare, empty)):
                side.seconds.append(up(home))
                if home == full:
                    lost += _lost(home)
                kill(home)
    stop_node(full)
    stop_node(empty)
    bar = f"penstock up after SIGKILL with {FILES:,} staged files"
    return [
        Verdict(bar, ours.median_s, "≤", 2.0, " s", sides=[ours, bare]),
        Verdict("of those, files that were not there byte for byte", lost, "≤", 0),
    ]


def _path(number: int) -> str:
    return f"/runs/d{number // PER_DIRECTORY:03}/{number:05}.bin"


def _content(number: int) -> bytes:
    return content(SMALL_BYTES if number % PER_DIRECTORY else LARGE_BYTES, number)


def _write(client: Client, number: int) -> None:
    with client.open(_path(number), "wb") as stream:
        stream.write(_content(number))


def _lost(home: Path) -> int:
    """How many of the files are not what was written."""
    client = running_at(home)
    lost = sum(bytes(client.read_many([_path(number)])[0]) != _content(number) for number in range(FILES))
    client.close()
    return lost
