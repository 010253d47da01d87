"""Memory of the node (anonymous pages and memfds): idle, and under sixteen readers of a cache of 8 GiB."""

from __future__ import annotations

import threading
import time

from benchmarks.lab import BUCKET, Lab, attach, node_pid
from benchmarks.measure import Side, Verdict, memory_bytes
from benchmarks.store import FREE

WHAT = "memory"
READERS = 16
LARGE_BYTES = 512 << 20
LARGE = 8
SMALL_BYTES = 112 * 1024
SMALL = 4000
BUDGET_BYTES = 1 << 30


def run(lab: Lab) -> list[Verdict]:
    with lab.store(FREE) as store, lab.node(cache__size="8GiB", memory__budget="1GiB") as client:
        for at in range(LARGE):
            store.put(BUCKET, f"large/{at}.bin", LARGE_BYTES, seed=at)
        for at in range(SMALL):
            store.put(BUCKET, f"small/{at:06}.bin", SMALL_BYTES, seed=at)
        pid = node_pid(client)
        attach(client, store, "/data")
        time.sleep(2)
        idle = memory_bytes(pid)
        peak = [0]
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.05):
                peak[0] = max(peak[0], memory_bytes(pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        readers = [threading.Thread(target=_read, args=(client, at)) for at in range(READERS)]
        start = time.perf_counter()
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        seconds = time.perf_counter() - start
        done.set()
        watcher.join()
    load = Side("16 readers", "half of them large files sequentially, half batches of small ones by read_many")
    load.seconds.append(seconds)
    load.figures |= {"idle MiB": idle / 2**20, "peak MiB": peak[0] / 2**20}
    limit = BUDGET_BYTES * 1.1 / 2**20
    return [
        Verdict("memory of the node, idle", idle / 2**20, "≤", 150, " MiB"),
        Verdict("memory of the node, 16 readers, 8 GiB cache", peak[0] / 2**20, "≤", limit, " MiB", [load]),
    ]


def _read(client, reader: int) -> None:  # type: ignore[no-untyped-def]
    if reader % 2:
        buffer = memoryview(bytearray(1 << 20))
        with client.open(f"/data/large/{reader // 2}.bin") as file:
            while file.readinto(buffer):
                pass
    else:
        share = SMALL // (READERS // 2)
        first = reader // 2 * share
        for start in range(first, first + share, 100):
            client.read_many([f"/data/small/{at:06}.bin" for at in range(start, start + 100)])
