"""Which jobs run, which wait, and what of them can be watched."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from penstock.errors import BusyError, NotFoundError, PenstockError
from penstock.jobs.document import Counters, Job, JobKind, JobState
from penstock.jobs.run import Run, RunParts

if TYPE_CHECKING:
    from collections.abc import Callable

    from penstock.jobs.store import JobStore
    from penstock.jobs.tree import Tree

__all__ = ["QUEUE_MAX", "JobLimits", "JobRunner"]

QUEUE_MAX = 1000
"""Jobs that may wait; a further one is refused as busy."""

PUT_AWAY_S = 10.0
"""How long a job that has ended may take to put itself away."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class JobLimits:
    """How much jobs may do at once, as configured."""

    max_running: int = 2
    workers: int = 4
    keep: int = 100
    max_bytes_per_s: int | None = None


@dataclass
class _Known:
    job: Job
    run: Run | None = None
    revision: int = 0
    thread: threading.Thread | None = field(default=None, repr=False)


class JobRunner:
    """The jobs of one node. Every method may be called from any thread.

    Args:
        store: where documents are kept.
        open_tree: makes a connection to the core for one thread.
        limits: as configured.
        clock: steady seconds, for rates.
        wall: seconds since the Unix epoch, for people.
    """

    def __init__(
        self,
        store: JobStore,
        open_tree: Callable[[], Tree],
        limits: JobLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._open_tree = open_tree
        self._limits = limits or JobLimits()
        self._clock = clock
        self._wall = wall
        self._changed = threading.Condition()
        self._known: dict[str, _Known] = {}
        self._stopping = False

    def start(self) -> None:
        """Reads the store and goes on with what an earlier node left queued or running."""
        with self._changed:
            for job in self._store.load():
                if job.state is JobState.RUNNING:
                    job.state = JobState.CANCELLED if job.cancel_requested else JobState.QUEUED
                self._known[job.id] = _Known(job)
            self._schedule()

    def submit(self, kind: JobKind, path: str, max_bytes_per_s: int | None = None) -> dict[str, Any]:
        """Queues a new job and returns how it looks.

        Raises:
            BusyError: :data:`QUEUE_MAX` jobs are waiting already, or the node is stopping.
            DiskError: the document cannot be saved; there is no job then.
        """
        with self._changed:
            self._refuse_when_full(f"{kind} {path}")
            job = Job(self._store.new_id(), kind, path, created=self._wall(), max_bytes_per_s=max_bytes_per_s)
            if job.max_bytes_per_s is None:
                job.max_bytes_per_s = self._limits.max_bytes_per_s
            self._store.save(job, durable=True)
            self._known[job.id] = _Known(job)
            self._forget_old()
            self._schedule()
            return self._view(self._known[job.id])

    def all(self) -> list[dict[str, Any]]:
        """Every known job, oldest first, without its failures."""
        with self._changed:
            views = [self._view(known) for known in self._known.values()]
        for view in views:
            view["failures"] = []
        return views

    def get(self, job_id: str) -> dict[str, Any]:
        """How a job looks now.

        Raises:
            NotFoundError: there is none with that id.
        """
        with self._changed:
            run = self._find(job_id).run
        if run is not None and run.has_large_files():
            self._look_at_large_files(run)
        with self._changed:
            return self._view(self._find(job_id))

    def revision(self, job_id: str) -> tuple[int, bool]:
        """A number that grows with every change, and whether the job has ended: cheap to ask often."""
        with self._changed:
            known = self._find(job_id)
            # What it was doing may still be putting itself away: until then it cannot be retried or removed.
            return known.revision, known.run is None and known.job.state.ended

    def cancel(self, job_id: str) -> dict[str, Any]:
        """Ends a job as cancelled; batches under way are finished first. An ended job stays as it is."""
        with self._changed:
            known = self._find(job_id)
            if known.run is not None:
                known.run.cancel()
            elif known.job.state is JobState.QUEUED:
                known.job.state, known.job.finished = JobState.CANCELLED, self._wall()
                self._store.save(known.job, durable=True)
            self._note(known)
            return self._view(known)

    def retry(self, job_id: str) -> dict[str, Any]:
        """Queues an ended job again: its failed files, and what it did not reach.

        Raises:
            BusyError: it has not ended, or the queue is full.
        """
        with self._changed:
            known = self._find(job_id)
            if not self._is_put_away(known):
                raise BusyError(f"retry job {job_id}", "it has not ended", f"wait: `penstock job wait {job_id}`")
            self._refuse_when_full(f"retry job {job_id}")
            known.job.again()
            self._store.save(known.job, durable=True)
            self._note(known)
            self._schedule()
            return self._view(known)

    def remove(self, job_id: str) -> None:
        """Forgets an ended job.

        Raises:
            BusyError: it has not ended.
        """
        with self._changed:
            known = self._find(job_id)
            if not self._is_put_away(known):
                advice = f"cancel it: `penstock job cancel {job_id}`"
                raise BusyError(f"remove job {job_id}", "it has not ended", advice)
            self._store.remove(job_id)
            del self._known[job_id]

    def counts(self) -> dict[str, int]:
        """How many jobs run and wait; a node with any does not leave."""
        with self._changed:
            running = sum(known.run is not None for known in self._known.values())
            queued = sum(known.job.state is JobState.QUEUED for known in self._known.values())
        return {"running": running, "queued": queued}

    def wait(self, job_id: str, timeout_s: float) -> dict[str, Any]:
        """How a job looks once it has ended, or when the time is over."""
        with self._changed:
            known = self._find(job_id)
            self._changed.wait_for(lambda: known.job.state.ended and known.run is None, timeout_s)
        return self.get(job_id)

    def _is_put_away(self, known: _Known) -> bool:
        """Whether a job has ended. What has is waited for: it is told a moment before its run has put itself away."""
        self._changed.wait_for(lambda: known.run is None or not known.job.state.ended, PUT_AWAY_S)
        return known.run is None and known.job.state.ended

    def stop(self, timeout_s: float) -> None:
        """Lets every run come to its next checkpoint; the next node goes on from there."""
        with self._changed:
            self._stopping = True
            running = [known for known in self._known.values() if known.run is not None]
            for known in running:
                if known.run is not None:
                    known.run.interrupt()
        deadline = self._clock() + timeout_s
        for known in running:
            if known.thread is not None:
                known.thread.join(max(0.0, deadline - self._clock()))

    def _schedule(self) -> None:
        for known in self._known.values():
            running = sum(each.run is not None for each in self._known.values())
            if self._stopping or running >= self._limits.max_running:
                return
            if known.job.state is JobState.QUEUED and known.run is None:
                self._begin(known)

    def _begin(self, known: _Known) -> None:
        parts = RunParts(
            open_tree=self._open_tree,
            save=lambda job, durable: self._store.save(job, durable=durable),
            changed=lambda: self._announce(known),
            clock=self._clock,
            wall=self._wall,
            workers=self._limits.workers,
        )
        known.run = run = Run(known.job, parts)
        known.job.state = JobState.RUNNING
        name = f"job-{known.job.id}"
        known.thread = threading.Thread(target=self._execute, args=(known, run), name=name, daemon=True)
        known.thread.start()

    def _execute(self, known: _Known, run: Run) -> None:
        try:
            run.execute()
        except PenstockError as error:
            known.job.state, known.job.error = JobState.FAILED, error.as_dict()
            known.job.finished = self._wall()
        with self._changed:
            known.run = known.thread = None
            self._note(known)
            self._forget_old()
            self._schedule()
        facts = {"job": known.job.id, "state": known.job.state.value, "path": known.job.path}
        _log.info("job %s %s", known.job.id, known.job.state.value, extra=facts)

    def _announce(self, known: _Known) -> None:
        with self._changed:
            self._note(known)

    def _note(self, known: _Known) -> None:
        known.revision += 1
        self._changed.notify_all()

    def _find(self, job_id: str) -> _Known:
        known = self._known.get(job_id)
        if known is None:
            raise NotFoundError(f"find job {job_id}", "there is no such job", "`penstock job ls` shows them")
        return known

    def _refuse_when_full(self, action: str) -> None:
        if self._stopping:
            raise BusyError(action, "the node is stopping", "try again in a moment")
        if sum(known.job.state is JobState.QUEUED for known in self._known.values()) >= QUEUE_MAX:
            raise BusyError(action, f"{QUEUE_MAX} jobs are waiting already", "wait for some, or cancel them")

    def _forget_old(self) -> None:
        ended = [known.job for known in self._known.values() if known.job.state.ended and known.run is None]
        ended.sort(key=lambda job: job.finished or 0)
        for job in ended[: max(0, len(ended) - self._limits.keep)]:
            self._store.remove(job.id)
            del self._known[job.id]

    def _view(self, known: _Known) -> dict[str, Any]:
        job, run = known.job, known.run
        live = None if run is None else run.progress()
        counters: Counters = live["counters"] if live else (job.seen or job.done)
        averages = {
            "rate_bytes_per_s": counters.bytes / job.busy_s if job.busy_s else 0.0,
            "rate_files_per_s": counters.files / job.busy_s if job.busy_s else 0.0,
        }
        pace = averages if live is None or job.state.ended else live
        return {
            "id": job.id,
            "kind": job.kind.value,
            "path": job.path,
            "state": job.state.value,
            "cancel_requested": job.cancel_requested,
            "revision": known.revision,
            "created": job.created,
            "started": job.started,
            "finished": job.finished,
            "busy_s": job.busy_s,
            "total_files": job.total_files,
            "total_bytes": job.total_bytes,
            "total_known": job.total_known,
            "done_files": counters.files,
            "done_bytes": counters.bytes,
            "failed_files": counters.failed_files,
            "results": counters.results,
            "rate_bytes_per_s": pace["rate_bytes_per_s"],
            "rate_files_per_s": pace["rate_files_per_s"],
            "eta_s": pace.get("eta_s"),
            "active": live["active"] if live else {},
            "failures": [{"path": each.path, "code": each.code, "reason": each.reason} for each in job.failures],
            "error": job.error,
            "options": {"max_bytes_per_s": job.max_bytes_per_s},
        }

    def _look_at_large_files(self, run: Run) -> None:
        try:
            tree = self._open_tree()
        except PenstockError:
            return
        try:
            run.look_at_large_files(tree.cached_bytes)
        except PenstockError:
            return
        finally:
            tree.close()
