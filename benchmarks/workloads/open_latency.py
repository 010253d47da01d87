"""open + 4 KiB read + close of a cached file, against one bare Unix-socket round trip with a descriptor."""

from __future__ import annotations

import time

from benchmarks.baselines import socket_round_trip
from benchmarks.lab import BUCKET, SMALL_BYTES, Lab, attach, node_pid
from benchmarks.measure import Side, Verdict, percentile, process_cpu_s
from benchmarks.store import FREE

WHAT = "open-latency"
FILES = 100
ROUNDS = 5000
TURN = 100
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
        pids = {"penstock": ("node", node_pid(client)), "bare": ("server", server.pid)}
        tails: dict[str, list[float]] = {"penstock": [], "bare": []}
        try:
            for _ in range(lab.repeats):
                times: dict[str, list[float]] = {"penstock": [], "bare": []}
                cpu: dict[str, list[float]] = {"penstock": [0.0, 0.0], "bare": [0.0, 0.0]}
                # Short turns: a noisy tenth of a second hits both sides.
                for turn in range(ROUNDS // TURN):
                    for name, work in (
                        ("penstock", lambda turn=turn: _opens(client, paths, turn)),
                        ("bare", lambda: server.round_trips(TURN)),
                    ):
                        other, own = process_cpu_s(pids[name][1]), time.process_time()
                        times[name] += work()
                        cpu[name][0] += time.process_time() - own
                        cpu[name][1] += process_cpu_s(pids[name][1]) - other
                for name, side in (("penstock", ours), ("bare", bare)):
                    side.seconds.append(percentile(times[name], 0.5))
                    tails[name].append(percentile(times[name], 0.99))
                    side.cpu_s.setdefault("self", []).append(cpu[name][0])
                    side.cpu_s.setdefault(pids[name][0], []).append(cpu[name][1])
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


def _opens(client, paths: list[str], turn: int) -> list[float]:  # type: ignore[no-untyped-def]
    times = []
    for at in range(turn * TURN, (turn + 1) * TURN):
        path = paths[at % len(paths)]
        start = time.perf_counter()
        with client.open(path) as file:
            data = file.read(READ_BYTES)
        times.append(time.perf_counter() - start)
        assert len(data) == READ_BYTES
    return times
