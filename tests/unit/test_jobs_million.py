"""Jobs over a million files: what a job keeps in memory does not grow with its tree."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from penstock.errors import PermissionDeniedError
from penstock.jobs import JobKind, JobLimits, JobRunner, JobStore

FILES = 1_000_000
FAILING_EVERY = 100
GROWTH_MAX_BYTES = 32 << 20
DEADLINE_S = 600.0


class Entry(NamedTuple):
    name: str
    size: int
    is_directory: bool = False


class Endless:
    """A tree whose files are made up as they are listed; it notes how much memory the process has then."""

    def __init__(self) -> None:
        self.done = 0
        self.most_bytes = resident_bytes()
        self.lock = threading.Lock()

    def open(self) -> Endless:
        return self

    def close(self) -> None:
        """Nothing is open."""

    def keep(self) -> None:
        """Nothing is kept."""

    def stat(self, path: str) -> Entry:
        return Entry(path, 0, is_directory=True)

    def walk_page(self, path: str, after: str | None, limit: int) -> tuple[Sequence[Entry], str | None]:
        first = 0 if after is None else int(after.rsplit("/", 1)[1]) + 1
        end = min(first + limit, FILES)
        page = [Entry(f"d{number // 10_000:04}/{number:08}", 4096) for number in range(first, end)]
        self.most_bytes = max(self.most_bytes, resident_bytes())
        return page, page[-1].name if end < FILES else None

    def prefetch(self, paths: list[str]) -> list[Any]:
        return [self._one(path, (4096, 4096)) for path in paths]

    def evict(self, paths: list[str]) -> list[Any]:
        return [self._one(path, 4096) for path in paths]

    def verify(self, paths: list[str]) -> list[Any]:
        return [self._one(path, (1, 0, 0)) for path in paths]

    def cached_bytes(self, path: str) -> int:
        return 0

    def _one(self, path: str, outcome: Any) -> Any:
        with self.lock:
            self.done += 1
        if int(path.rsplit("/", 1)[1]) % FAILING_EVERY == 0:
            return PermissionDeniedError(f"preload {path}", "the store denies it to us", "grant access")
        return outcome


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) << 12


@pytest.mark.soak
@pytest.mark.parametrize("kind", list(JobKind))
def test_a_job_over_a_million_files_keeps_little_of_them(kind: JobKind, tmp_path: Path) -> None:
    tree = Endless()
    before = resident_bytes()
    runner = JobRunner(JobStore(tmp_path), tree.open, JobLimits())
    runner.start()
    try:
        ended = runner.wait(str(runner.submit(kind, "/data")["id"]), DEADLINE_S)
    finally:
        runner.stop(DEADLINE_S)
    grown = tree.most_bytes - before
    print(f"{kind}: {FILES:,} files, {grown >> 20} MiB more, document {sum_bytes(tmp_path):,} bytes")
    assert (ended["done_files"], ended["failed_files"]) == (FILES - FILES // FAILING_EVERY, FILES // FAILING_EVERY)
    assert tree.done == FILES
    assert grown <= GROWTH_MAX_BYTES


def sum_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())
