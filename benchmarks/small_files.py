"""The same cached small files in every place: the ways of our mount, the local file system, what peers mount."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.compare import Spot, Work, compare, peer_spots
from benchmarks.lab import BUCKET, SMALL_BYTES, Lab, attach, metric, node_pid, penstock
from benchmarks.measure import can_drop_caches, drop_caches
from benchmarks.store import FREE, content

if TYPE_CHECKING:
    from benchmarks.measure import Side
    from penstock.client import Client

WAYS = {"no-open": "without opens", "open": "passthrough", "image": "a snapshot as an image"}
"""What an attachment is told, or that a snapshot of it is mounted; and how the tables call it."""


@dataclass(frozen=True)
class Everywhere:
    """The places, ours first, then the local file system, then peers; and the node of each way of ours."""

    spots: Sequence[Spot]
    clients: Sequence[Client]

    def metrics(self, name: str) -> list[int]:
        """One metric of each of our nodes."""
        return [metric(client, name) for client in self.clients]

    def measure(self, work: Work, repeats: int) -> tuple[list[Side], Side, list[Side]]:
        """Does it everywhere: in ours, on the local file system, in what peers mount."""
        sides = compare(self.spots, work, repeats)
        return sides[: len(WAYS)], sides[len(WAYS)], sides[len(WAYS) + 1 :]


def everywhere(lab: Lab, stack: ExitStack, names: Sequence[str]) -> Everywhere:
    """Makes files of ``SMALL_BYTES``, caches and mounts them, until the stack is left."""
    local = lab.path("small")
    local.mkdir()
    store = stack.enter_context(lab.store(FREE))
    for seed, name in enumerate(names):
        store.put(BUCKET, name, SMALL_BYTES, seed)
        (local / name).write_bytes(content(SMALL_BYTES, seed))
    clients, spots = [], []
    for way, called in WAYS.items():
        # A node each, so that what it counts belongs to one way.
        client = stack.enter_context(lab.node())
        attach(client, store, "/data", way="auto" if way == "image" else way)
        client.preload("/data").wait()
        if way == "image":
            penstock(client, "snapshot", "create", "/data", "--name", "it")
            path = stack.enter_context(lab.mount_snapshot(client, "it"))
        else:
            path = stack.enter_context(lab.mount(client, "/data"))
        reads = partial(metric, client, "kernel_reads")
        spots.append(Spot(f"penstock mount, {called}", path, {"node": node_pid(client)}, reads=reads))
        clients.append(client)
    spots += [Spot("local file system", local), *peer_spots(stack.enter_context(lab.peers(store)))]
    # What was written a moment ago lies in large pieces in the page cache, and what was read does not: as in the life
    # of a data set, every place fills it by reading.
    if can_drop_caches():
        drop_caches()
    return Everywhere(spots, clients)
