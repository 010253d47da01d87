"""What is known of one job: a versioned document that survives its node."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any

from penstock.errors import CorruptError

__all__ = ["FAILURES_MAX", "FORMAT", "Counters", "Failure", "Job", "JobKind", "JobState"]

FORMAT = 1
"""Version of the document. A newer one is left alone, an older one is read as it is."""

FAILURES_MAX = 1000
"""Failures kept with their reasons. More are counted; a retry then goes through the whole path again."""


class JobKind(StrEnum):
    """What the job does to every file of its path."""

    PRELOAD = "preload"
    EVICT = "evict"
    VERIFY = "verify"


class JobState(StrEnum):
    """Where the job is: queued → running → finished, failed or cancelled; a retry queues it again."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether nothing more happens by itself."""
        return self in (JobState.FINISHED, JobState.FAILED, JobState.CANCELLED)


@dataclass(frozen=True)
class Failure:
    """One file that could not be done, and why."""

    path: str
    code: str
    reason: str


@dataclass
class Counters:
    """What was done so far."""

    files: int = 0
    """Files that are done, failed ones not counted."""
    bytes: int = 0
    """Bytes of these files, whether or not they had to be moved."""
    failed_files: int = 0
    results: dict[str, int] = field(default_factory=dict)
    """What only this kind counts: fetched_bytes; freed_bytes; pages, bad_pages, repaired_pages."""

    def add(self, other: Counters) -> None:
        """Adds what another batch did."""
        self.files += other.files
        self.bytes += other.bytes
        self.failed_files += other.failed_files
        for name, amount in other.results.items():
            self.results[name] = self.results.get(name, 0) + amount


@dataclass
class Job:
    """One job. What is in it was true at the last checkpoint; everything before ``cursor`` is done."""

    id: str
    kind: JobKind
    path: str
    created: float
    max_bytes_per_s: int | None = None
    state: JobState = JobState.QUEUED
    started: float | None = None
    finished: float | None = None
    busy_s: float = 0.0
    """Seconds that runs of it took, whatever passed between them."""
    cancel_requested: bool = False
    cursor: str | None = None
    """Where the walk goes on; ``None`` at its beginning."""
    walked: bool = False
    """Whether the walk came to its end."""
    retry: list[str] = field(default_factory=list)
    """Files that a retry does again, after which the walk goes on where it was."""
    total_files: int = 0
    total_bytes: int = 0
    total_known: bool = False
    count_cursor: str | None = None
    """Where counting goes on; it runs ahead of the work."""
    done: Counters = field(default_factory=Counters)
    seen: Counters | None = None
    """What had been done when the job ended, batches of unfinished pages included; a retry does those again."""
    failures: list[Failure] = field(default_factory=list)
    error: dict[str, str | None] | None = None
    """Why the job as a whole failed."""

    def fail(self, failure: Failure) -> None:
        """Keeps a failed file; beyond the bound it is only counted."""
        if len(self.failures) < FAILURES_MAX:
            self.failures.append(failure)

    def again(self) -> None:
        """Queues the failed files, and what was not reached, once more."""
        if self.done.failed_files > len(self.failures):
            self.cursor, self.walked, self.done, self.busy_s = None, False, Counters(), 0.0
            self.retry = []
        else:
            self.retry = [failure.path for failure in self.failures]
            self.done.failed_files = 0
        self.failures, self.error, self.seen = [], None, None
        self.finished, self.cancel_requested = None, False
        self.state = JobState.QUEUED

    def encode(self) -> str:
        """The document as it is kept."""
        return json.dumps({"format": FORMAT, **asdict(self)}, separators=(",", ":"))

    @classmethod
    def decode(cls, text: str) -> Job:
        """Reads a kept document.

        Raises:
            CorruptError: it is not one, or of a newer format.
        """
        try:
            values: dict[str, Any] = json.loads(text)
            if values.pop("format") != FORMAT:
                raise CorruptError("read a job", "it was written by another version", "upgrade Penstock")
            known = {each.name for each in fields(cls)}
            values = {name: value for name, value in values.items() if name in known}
            values["kind"], values["state"] = JobKind(values["kind"]), JobState(values["state"])
            values["done"] = Counters(**values["done"])
            values["seen"] = None if values.get("seen") is None else Counters(**values["seen"])
            values["failures"] = [Failure(**failure) for failure in values["failures"]]
            return cls(**values)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if isinstance(error, CorruptError):
                raise
            raise CorruptError("read a job", f"its document is damaged: {error!r}") from None
