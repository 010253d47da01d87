"""A machine with a store attached, a client, and objects made of oracle bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import penstock
from fault import oracle

if TYPE_CHECKING:
    from fault.store import Store
    from integration.conftest import Machine

MIB = 1 << 20


class Lake:
    """What a test of a store that changes or fails needs at hand. Objects are known by their number."""

    def __init__(self, machine: Machine, store: Store, client: Any) -> None:
        self.machine = machine
        self.store = store
        self.client = client

    def put(self, number: int, version: int, size: int) -> str:
        """Makes a version of an object; returns its path in the tree. Each has a directory of its own."""
        self.store.put(f"{number}/it", oracle.content(number, version, 0, size))
        return f"/data/{number}/it"

    def metric(self, name: str) -> int:
        """A counter of the node."""
        return int(self.machine.control().status()["metrics"][name])

    def tier(self) -> dict[str, Any]:
        """What ``status`` says of the cache's first tier."""
        tier: dict[str, Any] = self.machine.json("status")["cache"]["tiers"][0]
        return tier


@contextlib.contextmanager
def attached(machine: Machine, store: Store, *settings: str, freshness: str = "1h") -> Iterator[Lake]:
    """A node with these settings that has the store at ``/data``, and a client of it."""
    machine("up", *(part for setting in settings for part in ("--set", setting)))
    with penstock.connect(machine.home.name) as client:
        client.attach("s3://bucket", "/data", endpoint=store.endpoint, credentials="anonymous", freshness=freshness)
        yield Lake(machine, store, client)
