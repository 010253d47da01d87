"""Memory of the node while 64 threads read 20 GB through the mount."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks.baselines import local_tree
from benchmarks.lab import BUCKET, Lab, attach, node_pid
from benchmarks.measure import Side, Verdict, memory_bytes
from benchmarks.store import FREE

WHAT = "mount-memory"
THREADS = 64
OBJECT_BYTES = 320 << 20
BUDGET_BYTES = 1 << 30


def run(lab: Lab) -> list[Verdict]:
    with lab.store(FREE) as store, lab.node(cache__size="8GiB", memory__budget="1GiB") as client:
        for at in range(THREADS):
            store.put(BUCKET, f"{at}.bin", OBJECT_BYTES, seed=at)
        attach(client, store, "/data")
        pid, peak, done = node_pid(client), [0], threading.Event()

        def watch() -> None:
            while not done.wait(0.05):
                peak[0] = max(peak[0], memory_bytes(pid))

        with lab.mount(client, "/data") as mounted, ThreadPoolExecutor(THREADS + 1) as pool:
            watching = pool.submit(watch)
            start = time.perf_counter()
            readers = [
                pool.submit(local_tree.large, mounted / f"{at}.bin", memoryview(bytearray(1 << 20)))
                for at in range(THREADS)
            ]
            total = sum(reader.result() for reader in readers)
            seconds = time.perf_counter() - start
            done.set()
            watching.result()
    assert total == THREADS * OBJECT_BYTES, total
    side = Side(f"{THREADS} readers", f"{local_tree.HOW_LARGE} each; a cache of 8 GiB", seconds=[seconds])
    side.figures |= {"GB": total / 1e9, "MB/s": total / seconds / 1e6}
    limit = BUDGET_BYTES * 1.1 / 2**20
    return [
        Verdict(
            "memory of the node, 64 readers of 20 GB through the mount", peak[0] / 2**20, "≤", limit, " MiB", [side]
        )
    ]
