"""Measuring: sides that take turns, medians, processor time of every process that worked."""

from __future__ import annotations

import os
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class GaveUpError(Exception):
    """A side that is not ours cannot go on, with the reason; the other sides do."""


class LeftOutError(Exception):
    """A workload needs what this machine does not have; the message says what."""


@dataclass
class Side:
    """One side of a comparison: what it is called, how it works, what it took.

    Attributes:
        name: as in the table.
        how: library, connections, checksums, destination.
        seconds: one figure per repeat.
        cpu_s: processor seconds per repeat, by process: ``self``, ``node``, ``remote``, ``peer``.
        figures: whatever else was counted, of the last repeat.
        failure: why it gave up; it takes no more turns then, and ``seconds`` may be empty.
    """

    name: str
    how: str
    seconds: list[float] = field(default_factory=list)
    cpu_s: dict[str, list[float]] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    failure: str = ""

    @property
    def median_s(self) -> float:
        """Median of the repeats."""
        return statistics.median(self.seconds)

    def cpu_medians(self) -> dict[str, float]:
        """Median processor seconds by process."""
        return {name: statistics.median(values) for name, values in self.cpu_s.items()}


@dataclass
class PeerFigure:
    """A peer at the same work: what the bar's value would be for it, or nothing when it gave up."""

    side: Side
    value: float | None


@dataclass
class Verdict:
    """One bar: a ratio (or figure), which way it should go, and how far; peers have no part in whether it is met."""

    bar: str
    value: float
    relation: str
    limit: float
    unit: str = ""
    sides: list[Side] = field(default_factory=list)
    note: str = ""
    peers: list[PeerFigure] = field(default_factory=list)

    @property
    def met(self) -> bool:
        """Whether the bar is met."""
        return self.value >= self.limit if self.relation == "≥" else self.value <= self.limit


def peer_figures(sides: list[Side], value: Callable[[Side], float]) -> list[PeerFigure]:
    """Peers beside a bar, each with its value as the bar computes it."""
    return [PeerFigure(side, None if side.failure else value(side)) for side in sides]


def process_cpu_s(pid: int) -> float:
    """User and system time so far: of a process, its threads, and the processes it started that still run."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        children = [
            child for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()
        ]
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    own = (int(fields[11]) + int(fields[12])) / TICKS_PER_S
    return own + sum(process_cpu_s(int(child)) for child in children)


def own_cpu_s() -> float:
    """User and system time so far: of this process and of the processes it started that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


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
    """What one side does: ``work`` is timed, ``prepare`` before and ``check`` after it are not.

    Any of them may raise ``GaveUpError``. ``processes`` work for this side alone, by the name of their processor time.
    """

    side: Side
    work: Callable[[], object]
    prepare: Callable[[], object] = lambda: None
    check: Callable[[object], object] = lambda _: None
    processes: Mapping[str, int] = field(default_factory=dict)


def take_turns(steps: list[Step], repeats: int, processes: Mapping[str, int]) -> None:
    """Runs every step ``repeats`` times, one after the other, so that a noisy minute hits all of them."""
    for _ in range(repeats):
        for step in steps:
            if not step.side.failure:
                try:
                    _take_turn(step, {**processes, **step.processes})
                except GaveUpError as error:
                    step.side.failure = str(error)


def _take_turn(step: Step, processes: Mapping[str, int]) -> None:
    step.prepare()
    before = {name: process_cpu_s(pid) for name, pid in processes.items()}
    own = own_cpu_s()
    start = time.perf_counter()
    result = step.work()
    step.side.seconds.append(time.perf_counter() - start)
    step.side.cpu_s.setdefault("self", []).append(own_cpu_s() - own)
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


def back_memory(scratch: Path, size_bytes: int) -> None:
    """Has a virtual machine get so much memory from its host: what was given back while nobody needed it costs about
    10 µs a page to touch again, which would be measured instead of what is read. Writes a file and removes it.
    """
    file, piece = scratch / "memory", bytes(1 << 20)
    with file.open("wb", buffering=0) as stream:
        for _ in range(size_bytes >> 20):
            stream.write(piece)
    file.unlink()


def page_cache_bytes() -> int:
    """Pages of files that the kernel keeps, of the whole machine."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("Cached:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the kernel does not say what it caches")
