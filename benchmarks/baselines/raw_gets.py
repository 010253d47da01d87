"""Whole objects by plain GETs into memory.

Library: ``http.client`` and threads, the code that ships for the demo. Connections: as the workload says (1 or 64),
kept alive. Signing: none. Checksums: none. Destination: memory of this process, all of the batch kept.
"""

from collections.abc import Sequence

from penstock.demo.plain_gets import PlainStore


def how(connections: int) -> str:
    return f"http.client, {connections} connection(s) kept alive, unsigned, no checksums, into memory"


def run(store: PlainStore, keys: Sequence[str], connections: int) -> list[bytes]:
    return store.fetch_files(keys, connections)
