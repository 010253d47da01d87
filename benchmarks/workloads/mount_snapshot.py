"""A snapshot of 1,000,000 files: its image built and mounted, and a search through it against the local file system."""

from __future__ import annotations

import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.compare import Spot, Work, compare
from benchmarks.lab import BUCKET, Lab, attach, node_pid, penstock
from benchmarks.measure import Verdict, memory_bytes
from benchmarks.store import FREE

WHAT = "mount-snapshot"
FILES = 1_000_000
PER_DIRECTORY = 1000
HOW = "find -type f -size +0, its lines counted"


def run(lab: Lab) -> list[Verdict]:
    local = lab.path("tree")
    for directory in range(FILES // PER_DIRECTORY):
        (local / f"d{directory:04}").mkdir(parents=True)
        for at in range(directory * PER_DIRECTORY, (directory + 1) * PER_DIRECTORY):
            (local / f"d{directory:04}/{at:08}.bin").write_bytes(b"x")
    with ExitStack() as stack:
        store, client = stack.enter_context(lab.store(FREE)), stack.enter_context(lab.node())
        store.put_many(BUCKET, "d{:04}/{:08}.bin", FILES, PER_DIRECTORY)
        attach(client, store, "/data")
        begun = time.perf_counter()
        penstock(client, "snapshot", "create", "/data", "--name", "it")
        frozen_s = time.perf_counter() - begun
        begun = time.perf_counter()
        mounted = stack.enter_context(lab.mount_snapshot(client, "it"))
        mounted_s = time.perf_counter() - begun
        memory = memory_bytes(node_pid(client))
        spots = [Spot("penstock image", mounted, {"node": node_pid(client)}), Spot("local file system", local)]
        image, disk = compare(spots, Work(HOW, find, FILES).hot(), lab.repeats)
    bar = "snapshot of 1,000,000 files"
    ratio = image.median_s / disk.median_s
    return [
        Verdict(f"{bar}, listed and written", frozen_s, "≤", 30, " s"),
        Verdict(f"{bar}, image built and mounted", mounted_s, "≤", 10, " s"),
        Verdict(f"{bar}, memory of the node", memory / 2**20, "≤", 500, " MiB"),
        Verdict(f"{bar}, find -size over it, time ÷ local file system", ratio, "≤", 1.0, sides=[image, disk]),
    ]


def find(directory: Path) -> int:
    command = ["find", str(directory), "-type", "f", "-size", "+0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        return sum(1 for _ in process.stdout)
