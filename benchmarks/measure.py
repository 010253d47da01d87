"""Measuring: sides that take turns, medians, processor time of every process that worked."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass
class Side:
    """One side of a comparison: what it is called, how it works, what it took.

    Attributes:
        name: as in the table.
        how: library, connections, checksums, destination.
        seconds: one figure per repeat.
        cpu_s: processor seconds per repeat, by process: ``self``, ``node``, ``remote``.
        figures: whatever else was counted, of the last repeat.
    """

    name: str
    how: str
    seconds: list[float] = field(default_factory=list)
    cpu_s: dict[str, list[float]] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def median_s(self) -> float:
        """Median of the repeats."""
        return statistics.median(self.seconds)

    def cpu_medians(self) -> dict[str, float]:
        """Median processor seconds by process."""
        return {name: statistics.median(values) for name, values in self.cpu_s.items()}


@dataclass
class Verdict:
    """One bar: a ratio (or figure), which way it should go, and how far."""

    bar: str
    value: float
    relation: str
    limit: float
    unit: str = ""
    sides: list[Side] = field(default_factory=list)
    note: str = ""

    @property
    def met(self) -> bool:
        """Whether the bar is met."""
        return self.value >= self.limit if self.relation == "≥" else self.value <= self.limit


def process_cpu_s(pid: int) -> float:
    """User and system time of a process and of its threads so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def memory_bytes(pid: int) -> int:
    """Memory that a process has of its own: anonymous pages and memfds, without pages of files."""
    anonymous = shared = 0
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "RssAnon":
            anonymous = int(value.split()[0]) * 1024
        elif name == "RssShmem":
            shared = int(value.split()[0]) * 1024
    return anonymous + max(shared, _memfd_bytes(pid))


def _memfd_bytes(pid: int) -> int:
    """Pages of memfds that are open, mapped or not, each counted once."""
    sizes = {}
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if str(descriptor.readlink()).startswith("/memfd:"):
                facts = descriptor.stat()
                sizes[facts.st_ino] = facts.st_blocks * 512
        except FileNotFoundError:
            continue
    return sum(sizes.values())


@dataclass
class Step:
    """What one side does: ``work`` is timed, ``prepare`` before and ``check`` after it are not."""

    side: Side
    work: Callable[[], object]
    prepare: Callable[[], object] = lambda: None
    check: Callable[[object], object] = lambda _: None


def take_turns(steps: list[Step], repeats: int, processes: Mapping[str, int]) -> None:
    """Runs every step ``repeats`` times, one after the other, so that a noisy minute hits all of them."""
    for _ in range(repeats):
        for step in steps:
            step.prepare()
            before = {name: process_cpu_s(pid) for name, pid in processes.items()}
            own = time.process_time()
            start = time.perf_counter()
            result = step.work()
            step.side.seconds.append(time.perf_counter() - start)
            step.side.cpu_s.setdefault("self", []).append(time.process_time() - own)
            for name, pid in processes.items():
                step.side.cpu_s.setdefault(name, []).append(process_cpu_s(pid) - before[name])
            step.check(result)


def percentile(values: list[float], share: float) -> float:
    """The value that ``share`` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def can_drop_caches() -> bool:
    """Whether the kernel's caches can be dropped: by root alone."""
    return os.access("/proc/sys/vm/drop_caches", os.W_OK) and os.geteuid() == 0


def drop_caches() -> None:
    """Drops clean pages, directory entries and inodes of the whole machine."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def page_cache_bytes() -> int:
    """Pages of files that the kernel keeps, of the whole machine."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("Cached:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the kernel does not say what it caches")
