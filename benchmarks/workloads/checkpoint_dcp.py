"""A distributed checkpoint of 1 GiB in four ranks: saved, loaded, and loaded by two."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from benchmarks.lab import BUCKET, Lab, attach, home_of, source_bytes
from benchmarks.measure import LeftOutError, Side, Verdict, back_memory
from benchmarks.ranks import WORLD, Crew
from benchmarks.store import LINK_BYTES_PER_S, SLOW, Store
from benchmarks.workloads.checkpoint import CACHE, REPEATS_MAX
from benchmarks.workloads.write import numbered

if TYPE_CHECKING:
    from penstock.client import Client

WHAT = "checkpoint-dcp"
TENSORS, ROWS = 32, 8192
SHAPE = {"tensors": TENSORS, "rows": ROWS}
TOTAL = TENSORS * ROWS * 1024 * 4
HOW = "32 tensors of 32 MiB, a quarter of the rows of each a rank; time of the slowest rank, save and load"


def run(lab: Lab) -> list[Verdict]:
    try:
        import torch.distributed  # noqa: F401
    except ImportError:
        raise LeftOutError("torch is not installed: make torch") from None
    back_memory(lab.directory, 4 * TOTAL)
    crew = Crew(lab.path("rendezvous"))
    try:
        with lab.store(SLOW) as store, lab.node(**CACHE) as client:
            store.put(BUCKET, "there", 1, seed=1)
            attach(client, store, "/runs", writable=True)
            return [_saved_and_loaded(lab, client, crew), *_loaded_by_two(lab, client, store, crew)]
    finally:
        crew.stop()


def _saved_and_loaded(lab: Lab, client: Client, crew: Crew) -> Verdict:
    names, home = numbered("both"), str(home_of(client))
    ours = Side("penstock", f"dcp.Writer and dcp.Reader at local, uploaded to the slow store afterwards; {HOW}")
    disk = Side("local file system", f"FileSystemWriter, which syncs its files, and FileSystemReader; {HOW}")
    for _ in range(min(lab.repeats, REPEATS_MAX)):
        client.persist("/runs")
        path = f"/runs/{next(names)}"
        saved = crew("save", path=path, home=home, **SHAPE)
        ours.seconds.append(saved + crew("load", path=path, home=home, **SHAPE))
        ours.figures |= {"save s": saved, "load s": ours.seconds[-1] - saved}
        local = lab.path("local")
        saved = crew("save", path=str(local), home=None, **SHAPE)
        disk.seconds.append(saved + crew("load", path=str(local), home=None, **SHAPE))
        disk.figures |= {"save s": saved, "load s": disk.seconds[-1] - saved}
        shutil.rmtree(local)
    client.persist("/runs")
    bar = (
        "distributed checkpoint of 1 GiB saved and loaded in 4 ranks, time ÷ torch's own writer and reader on the disk"
    )
    return Verdict(bar, ours.median_s / disk.median_s, "≤", 1.1, sides=[ours, disk])


def _loaded_by_two(lab: Lab, client: Client, store: Store, crew: Crew) -> list[Verdict]:
    crew("save", path="/runs/shared-out", home=str(home_of(client)), **SHAPE)
    client.persist("/runs")
    cold = Side("penstock, fresh home", f"dcp.Reader in 2 ranks of what {WORLD} saved, from the slow store")
    with lab.node(**CACHE) as other:
        attach(other, store, "/runs")
        before = source_bytes(other)
        cold.seconds.append(crew("load", ranks=2, path="/runs/shared-out", home=str(home_of(other)), **SHAPE))
        read = source_bytes(other) - before
    cold.figures |= {"MB/s": TOTAL / cold.median_s / 1e6, "MB read": read / 1e6}
    bar = "bytes read from the source by 2 ranks of what 4 saved ÷ needed"
    link = "the same, its speed ÷ the link"
    return [
        Verdict(bar, read / TOTAL, "≤", 1.05, "", [cold]),
        Verdict(link, TOTAL / cold.median_s / LINK_BYTES_PER_S, "≥", 0.9, "", [cold]),
    ]
