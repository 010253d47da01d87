"""One job from where it is to its end: a walk in pages, batches on some threads, checkpoints in between.

Two walks go on at once. The counting walk runs ahead and makes the totals known; the working walk cuts its pages
into batches. A page is settled when all its batches are; only then does the cursor pass it, so that a job killed
at any moment does at most the pages under way again, which are cached by then and cost next to nothing.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections import deque
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from penstock.errors import InternalError, PenstockError
from penstock.jobs.document import Job, JobKind, JobState
from penstock.jobs.work import BatchResult, GoneError, InterruptedByStop, persistently, work
from penstock.policies.preload import RateLimit, batch_max_bytes, batches
from penstock.policies.progress import RateMeter, eta_s

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from penstock.jobs.tree import Tree

__all__ = ["CHECKPOINT_INTERVAL_S", "PAGE_ENTRIES", "Run", "RunParts"]

PAGE_ENTRIES = 512
"""Entries of a page of the working walk: bounds what is done again after a crash, and the memory of a job."""

COUNT_PAGE_ENTRIES = 5000
"""Entries of a page of the counting walk, which keeps nothing of them."""

CHECKPOINT_INTERVAL_S = 0.5
"""A job's document is written at most so often while nothing but its progress changes."""

BATCHES_WAITING_PER_WORKER = 2
"""Batches that wait so that no worker does; more would only read the walk further ahead."""

_LARGE_FILE_BYTES = 32 << 20
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunParts:
    """What a run is made of besides its job."""

    open_tree: Callable[[], Tree]
    """Makes a connection for one thread."""
    save: Callable[[Job, bool], None]
    """Keeps the document; the flag asks for a durable write."""
    changed: Callable[[], None]
    """Called after every change that a watcher could want to see."""
    clock: Callable[[], float]
    """Seconds, steady."""
    wall: Callable[[], float]
    """Seconds since the Unix epoch."""
    workers: int


@dataclass
class _Page:
    after: str | None
    """Cursor once this page is settled."""
    last: bool
    batches: list[Future[BatchResult]] = field(default_factory=list)


class Run:
    """A job that is running. :meth:`execute` is its thread; every other method may be called from any."""

    def __init__(self, job: Job, parts: RunParts) -> None:
        self.job = job
        self._parts = parts
        self._stop = threading.Event()
        self._interrupted = False
        self._lock = threading.Lock()
        self._live = copy.deepcopy(job.done)
        self._active: dict[str, int] = {}
        self._arrived: dict[str, int] = {}
        self._meter = RateMeter()
        self._limit = RateLimit(job.max_bytes_per_s, parts.clock())
        self._saved_at = self._timed_at = parts.clock()
        self._trees = threading.local()
        self._opened: list[Tree] = []

    def cancel(self) -> None:
        """Asks the job to end as cancelled; what is under way is finished first."""
        self.job.cancel_requested = True
        self._stop.set()

    def interrupt(self) -> None:
        """Asks the job to stop where it is, so that the next node goes on with it."""
        self._interrupted = True
        self._stop.set()

    def progress(self) -> dict[str, Any]:
        """Live counters, rate, ETA and large files under way; ahead of the document by the pages under way."""
        with self._lock:
            live = copy.deepcopy(self._live)
            live.bytes = self._moved_bytes()
            active = {path: self._arrived.get(path, 0) for path in self._large()}
            self._meter.note(self._parts.clock(), live.bytes, live.files)
            bytes_per_s, files_per_s = self._meter.bytes_per_s(), self._meter.files_per_s()
        job = self.job
        left_files = job.total_files - live.files - live.failed_files
        eta = eta_s(job.total_bytes - live.bytes, left_files, bytes_per_s, files_per_s) if job.total_known else None
        return {
            "counters": live,
            "active": active,
            "rate_bytes_per_s": bytes_per_s,
            "rate_files_per_s": files_per_s,
            "eta_s": eta,
        }

    def has_large_files(self) -> bool:
        """Whether any file under way is large enough to be looked at by itself."""
        with self._lock:
            return bool(self._large())

    def look_at_large_files(self, arrived_bytes: Callable[[str], int]) -> None:
        """Notes how much has arrived of large files under way, so that one of them is not "0 %" for an hour."""
        with self._lock:
            large = self._large()
        arrived = {path: min(size, arrived_bytes(path)) for path, size in large.items()}
        with self._lock:
            self._arrived = {path: size for path, size in arrived.items() if path in self._active}

    def _large(self) -> dict[str, int]:
        if self.job.kind is not JobKind.PRELOAD:
            return {}
        return {path: size for path, size in self._active.items() if size >= _LARGE_FILE_BYTES}

    def _moved_bytes(self) -> int:
        return self._live.bytes + sum(self._arrived.values())

    def execute(self) -> None:
        """Runs the job until it ends or is told to stop, and keeps the outcome. Never raises."""
        job, parts = self.job, self._parts
        job.state, job.started = JobState.RUNNING, job.started or parts.wall()
        parts.save(job, True)
        counting = threading.Thread(target=self._count, name=f"job-{job.id}-count", daemon=True)
        try:
            self._work(counting)
            self._tree().keep()
            if not self._stop.is_set():
                job.state = JobState.FAILED if job.done.failed_files else JobState.FINISHED
        except InterruptedByStop:
            pass
        except GoneError as gone:
            self._failed(gone.error)
        except PenstockError as error:
            # A node that stops ends what is under way: that says nothing about the job.
            if not self._interrupted:
                self._failed(error)
        except Exception as error:  # noqa: BLE001 - a defect must end the job with words, not its thread in silence
            _log.exception("job %s ended by a defect", job.id)
            self._failed(InternalError(f"{job.kind} {job.path}", repr(error), "report it with the node's log"))
        finally:
            self._stop.set()
            if counting.is_alive():
                counting.join()
            for tree in self._opened:
                tree.close()
            self._end()

    def _end(self) -> None:
        job = self.job
        self._take_time()
        if job.cancel_requested and not job.state.ended:
            job.state = JobState.CANCELLED
        if job.state.ended:
            job.finished, job.seen = self._parts.wall(), copy.deepcopy(self._live)
        try:
            self._parts.save(job, True)
        except PenstockError as error:
            _log.error("%s", error, extra={"code": error.code, "job": job.id})
        self._parts.changed()

    def _failed(self, error: PenstockError) -> None:
        self.job.state, self.job.error = JobState.FAILED, error.as_dict()

    def _work(self, counting: threading.Thread) -> None:
        job = self.job
        tree = self._tree()
        found = persistently(lambda: tree.stat(job.path), self._stop)
        if not found.is_directory:
            job.total_files, job.total_bytes, job.total_known = 1, found.size, True
            self._parts.changed()
        elif not job.total_known:
            counting.start()
        with ThreadPoolExecutor(self._parts.workers, thread_name_prefix=f"job-{job.id}") as pool:
            try:
                if job.retry:
                    self._do_page(pool, [(path, 0) for path in job.retry])
                    job.retry = []
                if not found.is_directory and not job.walked:
                    self._do_page(pool, [(job.path, found.size)])
                    job.walked = True
                elif not job.walked:
                    self._do_walk(pool, tree)
            except BaseException:
                self._stop.set()
                pool.shutdown(cancel_futures=True)
                raise
        if counting.is_alive():
            counting.join()

    def _do_page(self, pool: ThreadPoolExecutor, files: Iterable[tuple[str, int]]) -> None:
        page = _Page(self.job.cursor, last=self.job.walked)
        pages = deque([page])
        for batch in batches(files, max_bytes=batch_max_bytes(self.job.max_bytes_per_s)):
            page.batches.append(self._submit(pool, pages, batch))
        self._settle(pages, leave=0)

    def _do_walk(self, pool: ThreadPoolExecutor, tree: Tree) -> None:
        job = self.job
        pages: deque[_Page] = deque()
        cursor = job.cursor
        while not job.walked and not self._stop.is_set():
            after = cursor
            entries, cursor = persistently(lambda at=after: tree.walk_page(job.path, at, PAGE_ENTRIES), self._stop)  # type: ignore[misc]
            pages.append(_Page(cursor, last=cursor is None))
            files = ((_join(job.path, entry.name), entry.size) for entry in entries if not entry.is_directory)
            for batch in batches(files, max_bytes=batch_max_bytes(self.job.max_bytes_per_s)):
                pages[-1].batches.append(self._submit(pool, pages, batch))
            self._settle(pages, leave=2)
            if cursor is None:
                break
        self._settle(pages, leave=0)

    def _submit(
        self, pool: ThreadPoolExecutor, pages: deque[_Page], batch: list[tuple[str, int]]
    ) -> Future[BatchResult]:
        while True:
            waiting = [future for page in pages for future in page.batches if not future.done()]
            if len(waiting) < self._parts.workers * BATCHES_WAITING_PER_WORKER:
                break
            wait_for(waiting, return_when=FIRST_COMPLETED)
        if self._stop.is_set():
            raise InterruptedByStop
        return pool.submit(self._do_batch, batch)

    def _do_batch(self, batch: list[tuple[str, int]]) -> BatchResult:
        job = self.job
        expected = sum(size for _, size in batch)
        with self._lock:
            wait_s = self._limit.wait_s(self._parts.clock())
            self._limit.charge(expected, self._parts.clock())
        if self._stop.wait(wait_s):
            raise InterruptedByStop
        with self._lock:
            self._active.update(batch)
        try:
            result = work(job.kind, self._tree(), job.path, batch, self._stop)
        finally:
            with self._lock:
                for path, _ in batch:
                    self._active.pop(path, None)
                    self._arrived.pop(path, None)
        with self._lock:
            self._live.add(result.counters)
            self._limit.charge(result.counters.results.get("fetched_bytes", 0) - expected, self._parts.clock())
            self._meter.note(self._parts.clock(), self._moved_bytes(), self._live.files)
        self._parts.changed()
        return result

    def _settle(self, pages: deque[_Page], leave: int) -> None:
        """Passes the cursor over finished pages at the front, waiting for them while more than ``leave`` are open."""
        while pages and (len(pages) > leave or all(future.done() for future in pages[0].batches)):
            page = pages[0]
            # All of the page or nothing: what a stop leaves half settled is done, and counted, once more.
            results = [future.result() for future in page.batches]
            for result in results:
                self.job.done.add(result.counters)
                for failure in result.failures:
                    self.job.fail(failure)
            pages.popleft()
            self.job.cursor, self.job.walked = page.after, page.last
            self._checkpoint()

    def _checkpoint(self) -> None:
        now = self._parts.clock()
        if now - self._saved_at >= CHECKPOINT_INTERVAL_S:
            self._saved_at = now
            self._take_time()
            # What the cursor has passed is not looked at again: it must be there when the next node goes on.
            self._tree().keep()
            self._parts.save(self.job, False)

    def _take_time(self) -> None:
        now = self._parts.clock()
        self.job.busy_s += now - self._timed_at
        self._timed_at = now

    def _count(self) -> None:
        """Sums what the path holds; a failure here only leaves the totals unknown."""
        job = self.job
        try:
            tree = self._tree()
            while not self._stop.is_set():
                after = job.count_cursor
                entries, cursor = persistently(
                    lambda at=after: tree.walk_page(job.path, at, COUNT_PAGE_ENTRIES),  # type: ignore[misc]
                    self._stop,
                )
                sizes = [entry.size for entry in entries if not entry.is_directory]
                job.total_files += len(sizes)
                job.total_bytes += sum(sizes)
                job.count_cursor, job.total_known = cursor, cursor is None
                self._parts.changed()
                if cursor is None:
                    return
        except InterruptedByStop:
            return
        except PenstockError as error:
            _log.warning("counting for job %s stopped: %s", job.id, error, extra={"code": error.code})

    def _tree(self) -> Tree:
        """The connection of the calling thread."""
        tree: Tree | None = getattr(self._trees, "tree", None)
        if tree is None:
            tree = self._parts.open_tree()
            self._trees.tree = tree
            with self._lock:
                self._opened.append(tree)
        return tree


def _join(path: str, name: str) -> str:
    return f"{path.rstrip('/')}/{name}"
