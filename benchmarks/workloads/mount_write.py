"""Writing through a mount at ``local``: a large file while it is uploaded to the slow store, and many small ones."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from benchmarks.baselines import local_write
from benchmarks.lab import BUCKET, SMALL_BYTES, Lab, attach, node_pid
from benchmarks.measure import Side, Step, Verdict, back_memory, take_turns
from benchmarks.store import SLOW, content
from benchmarks.workloads.write import LARGE, SMALL_FILES, THREADS, numbered, pieces_of

if TYPE_CHECKING:
    from pathlib import Path

    from penstock.client import Client

WHAT = "mount_write"


def run(lab: Lab) -> list[Verdict]:
    back_memory(lab.directory, 4 * LARGE)
    with lab.store(SLOW) as store, lab.node(cache__size="16GiB") as client:
        store.put(BUCKET, "there", 1, seed=1)
        attach(client, store, "/runs", writable=True)
        with lab.mount(client, "/runs") as mounted:
            small = [_small(lab, client, mounted, threads, bar) for threads, bar in ((1, 1.3), (THREADS, 0.7))]
            return [_large(lab, client, mounted), *small]


def _large(lab: Lab, client: Client, mounted: Path) -> Verdict:
    pieces, names = pieces_of(content(LARGE, 2)), numbered("large")
    ours = Side("penstock mount", f"{local_write.HOW}, 1 MiB at a time; uploaded to the slow store afterwards")
    disk = Side("local file system", f"{local_write.HOW}, 1 MiB at a time")
    steps = [
        Step(ours, lambda: local_write.one(mounted / next(names), pieces), prepare=lambda: client.persist("/runs")),
        # What was written before stays on both sides: memory that was just freed is much cheaper to write to.
        Step(disk, lambda: local_write.one(lab.path("large.bin"), pieces)),
    ]
    take_turns(steps, lab.repeats, {"node": node_pid(client)})
    for side in (ours, disk):
        side.figures["MB/s"] = LARGE / side.median_s / 1e6
    client.persist("/runs")
    bar = "512 MiB written, synced and closed at local through the mount ÷ local file system"
    return Verdict(bar, disk.median_s / ours.median_s, "≥", 0.8, sides=[ours, disk])


def _small(lab: Lab, client: Client, mounted: Path, threads: int, bar: float) -> Verdict:
    body, names = content(SMALL_BYTES, 4), numbered(f"small-{threads}")
    made: list[Path] = []

    def everywhere() -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(
                pool.map(lambda number: local_write.one(made[-1] / str(number), [memoryview(body)]), range(SMALL_FILES))
            )

    def new_directory(above: Path) -> None:
        client.persist("/runs")
        made.append(above / next(names))
        made[-1].mkdir()

    ours = Side("penstock mount", local_write.HOW)
    disk = Side("local file system", local_write.HOW)
    steps = [
        Step(ours, everywhere, prepare=lambda: new_directory(mounted)),
        Step(disk, everywhere, prepare=lambda: new_directory(lab.directory)),
    ]
    take_turns(steps, lab.repeats, {"node": node_pid(client)})
    for side in (ours, disk):
        side.figures["ms per file"] = side.median_s / SMALL_FILES * 1e3
    client.persist("/runs")
    how = "one thread" if threads == 1 else f"{threads} threads"
    what = f"1,000 × 112 KiB created, synced and closed at local through the mount, {how}, time ÷ local file system"
    return Verdict(what, ours.median_s / disk.median_s, "≤", bar, sides=[ours, disk])
