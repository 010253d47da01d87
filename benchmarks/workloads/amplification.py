"""Bytes taken from the source against bytes needed: sequential, and random 64 KiB in an object of 1 GiB."""

from __future__ import annotations

import random

from benchmarks.lab import BUCKET, Lab, attach, source_bytes
from benchmarks.measure import Side, Verdict
from benchmarks.store import SLOW

WHAT = "amplification"
SEQUENTIAL_BYTES = 256 << 20
RANDOM_BYTES = 1 << 30
READ_BYTES = 64 * 1024
READS = 200


def run(lab: Lab) -> list[Verdict]:
    with lab.store(SLOW) as store, lab.node() as client:
        store.put(BUCKET, "sequential.bin", SEQUENTIAL_BYTES, seed=1)
        store.put(BUCKET, "random.bin", RANDOM_BYTES, seed=2)
        attach(client, store, "/data")
        before = source_bytes(client)
        with client.open("/data/sequential.bin") as file:
            while file.read(1 << 20):
                pass
        sequential = (source_bytes(client) - before) / SEQUENTIAL_BYTES
        before, source = source_bytes(client), random.Random(3)
        with client.open("/data/random.bin") as file:
            for _ in range(READS):
                file.pread(READ_BYTES, source.randrange(RANDOM_BYTES - READ_BYTES))
        scattered = (source_bytes(client) - before) / (READS * READ_BYTES)
    ours = Side("penstock", "metric source_bytes; read(1 MiB) in order; 200 × pread(64 KiB) at random offsets")
    return [
        Verdict("bytes taken from the source ÷ bytes needed, sequential", sequential, "≤", 1.01, sides=[ours]),
        Verdict("bytes taken ÷ bytes needed, random 64 KiB in 1 GiB", scattered, "≤", 4),
    ]
