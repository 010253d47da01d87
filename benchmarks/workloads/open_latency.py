"""open + 4 KiB read + close of a cached file, against one bare Unix-socket round trip with a descriptor."""

from __future__ import annotations

import time

from benchmarks.baselines import socket_round_trip
from benchmarks.lab import BUCKET, SMALL_BYTES, Lab, attach, node_pid
from benchmarks.measure import Side, Verdict, percentile, process_cpu_s
from benchmarks.store import FREE

WHAT = "open-latency"
FILES = 100
ROUNDS = 3000
READ_BYTES = 4096


def run(lab: Lab) -> list[Verdict]:
    paths = [f"/data/small/{at:06}.bin" for at in range(FILES)]
    file = lab.path("file")
    file.write_bytes(b"x" * SMALL_BYTES)
    ours = Side("penstock", "client.open, read(4096), close; files complete in the cache, one thread")
    bare = Side("bare round trip", socket_round_trip.HOW)
    with lab.store(FREE) as store, lab.node() as client:
        for seed in range(FILES):
            store.put(BUCKET, f"small/{seed:06}.bin", SMALL_BYTES, seed)
        attach(client, store, "/data")
        client.read_many(paths)
        server = socket_round_trip.Server(lab.path("s"), file)
        tails: dict[str, list[float]] = {"penstock": [], "bare": []}
        try:
            for _ in range(lab.repeats):
                node_cpu, own_cpu = process_cpu_s(node_pid(client)), time.process_time()
                times = _opens(client, paths)
                ours.seconds.append(percentile(times, 0.5))
                tails["penstock"].append(percentile(times, 0.99))
                ours.cpu_s.setdefault("self", []).append(time.process_time() - own_cpu)
                ours.cpu_s.setdefault("node", []).append(process_cpu_s(node_pid(client)) - node_cpu)
                server_cpu, own_cpu = process_cpu_s(server.pid), time.process_time()
                times = server.round_trips(ROUNDS)
                bare.seconds.append(percentile(times, 0.5))
                tails["bare"].append(percentile(times, 0.99))
                bare.cpu_s.setdefault("self", []).append(time.process_time() - own_cpu)
                bare.cpu_s.setdefault("server", []).append(process_cpu_s(server.pid) - server_cpu)
        finally:
            server.stop()
    tail_ours = sorted(tails["penstock"])[lab.repeats // 2]
    tail_bare = sorted(tails["bare"])[lab.repeats // 2]
    ours.figures |= {"p50 us": ours.median_s * 1e6, "p99 us": tail_ours * 1e6}
    bare.figures |= {"p50 us": bare.median_s * 1e6, "p99 us": tail_bare * 1e6}
    name = "open + 4 KiB read + close of a cached file, {} ÷ a bare Unix-socket round trip with a descriptor"
    return [
        Verdict(name.format("p50"), ours.median_s / bare.median_s, "≤", 1.5, sides=[ours, bare]),
        Verdict(name.format("p99"), tail_ours / tail_bare, "≤", 2.0),
    ]


def _opens(client, paths: list[str]) -> list[float]:  # type: ignore[no-untyped-def]
    times = []
    for at in range(ROUNDS):
        path = paths[at % len(paths)]
        start = time.perf_counter()
        with client.open(path) as file:
            data = file.read(READ_BYTES)
        times.append(time.perf_counter() - start)
        assert len(data) == READ_BYTES
    return times
