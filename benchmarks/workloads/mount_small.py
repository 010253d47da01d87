"""Cached small files through the mount against the local file system: hot, and with the kernel's caches dropped."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from benchmarks.baselines import local_tree
from benchmarks.compare import Spot, Work, compare, peer_spots
from benchmarks.lab import BUCKET, SMALL_BYTES, Lab, attach, metric, node_pid
from benchmarks.measure import Side, Verdict, can_drop_caches, drop_caches, peer_figures
from benchmarks.store import FREE, content

if TYPE_CHECKING:
    from pathlib import Path

    from penstock.client import Client

WHAT = "mount-small"
FILES = 2000
NAMES = [f"{at:06}.bin" for at in range(FILES)]
WAYS = {"no-open": ("without opens", 1.1), "open": ("passthrough", 2.0)}


def run(lab: Lab) -> list[Verdict]:
    local = lab.path("small")
    local.mkdir()
    with ExitStack() as stack:
        store = stack.enter_context(lab.store(FREE))
        for seed, name in enumerate(NAMES):
            store.put(BUCKET, name, SMALL_BYTES, seed)
            (local / name).write_bytes(content(SMALL_BYTES, seed))
        clients, spots = [], []
        for way, (called, _) in WAYS.items():
            # A node each, so that what it counts belongs to one way.
            client = stack.enter_context(lab.node())
            attach(client, store, "/data", way=way)
            client.preload("/data").wait()
            path = stack.enter_context(lab.mount(client, "/data"))
            spots.append(Spot(f"penstock mount, {called}", path, {"node": node_pid(client)}))
            clients.append(client)
        spots.append(Spot("local file system", local))
        spots += peer_spots(stack.enter_context(lab.peers(store)))
        return _measure(lab, clients, spots)


def _measure(lab: Lab, clients: list[Client], spots: list[Spot]) -> list[Verdict]:
    buffer = bytearray(SMALL_BYTES)

    def read(directory: Path) -> int:
        return local_tree.small(directory, NAMES, buffer)

    work = Work(local_tree.HOW_SMALL, read, FILES * SMALL_BYTES)
    compare(spots, work, 2)
    before = [metric(client, "kernel_reads") for client in clients]
    sides = compare(spots, work, lab.repeats * 3)
    for side, client, reads in zip(sides, clients, before, strict=False):
        side.figures["reads answered by the node"] = metric(client, "kernel_reads") - reads
    bar = "warm small files through the mount, {}, time ÷ local file system"
    verdicts = _verdicts(bar, sides, [limit for _, limit in WAYS.values()])
    if can_drop_caches():
        before = [metric(client, "source_requests") for client in clients]
        how = f"{local_tree.HOW_SMALL}; page cache and names dropped before"
        sides = compare(spots, Work(how, read, FILES * SMALL_BYTES, drop_caches), lab.repeats)
        bar = "the same, {}, cached on disk, kernel caches dropped, time ÷ local file system so dropped"
        verdicts += _verdicts(bar, sides, [1.6] * len(WAYS))
        for (called, _), client, requests in zip(WAYS.values(), clients, before, strict=True):
            asked = metric(client, "source_requests") - requests
            verdicts.append(Verdict(f"requests to the source meanwhile, {called}", asked, "≤", 0))
    return verdicts


def _verdicts(bar: str, sides: list[Side], limits: list[float]) -> list[Verdict]:
    ours, disk, others = sides[: len(WAYS)], sides[len(WAYS)], sides[len(WAYS) + 1 :]
    for side in sides:
        if not side.failure:
            side.figures["µs/file"] = side.median_s / FILES * 1e6

    def share(side: Side) -> float:
        return side.median_s / disk.median_s

    return [
        Verdict(bar.format(called), share(side), "≤", limit, sides=[side, disk], peers=peer_figures(others, share))
        for (called, _), side, limit in zip(WAYS.values(), ours, limits, strict=True)
    ]
