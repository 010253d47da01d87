"""One object by 32 raw range streams into a file.

Library: ``http.client`` and threads, the code that ships for the demo. Connections: 32, each taking ranges of 8 MiB.
Signing: none. Checksums: none. Destination: a new file on the cache's file system by ``pwrite``, not synced.
"""

from penstock.demo.plain_gets import PlainStore

CONNECTIONS = 32
HOW = f"http.client, {CONNECTIONS} connections of 8 MiB ranges, unsigned, no checksums, pwrite into a new file"


def run(store: PlainStore, key: str, size: int, path: str) -> None:
    store.fetch_to_file(key, size, path, CONNECTIONS)
