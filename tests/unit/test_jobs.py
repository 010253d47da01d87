"""Jobs on a tree that is not real: walks in pages, checkpoints, cancel, retry, and what a restart finds."""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import (
    BusyError,
    CorruptError,
    NotFoundError,
    PenstockError,
    PermissionDeniedError,
    UnavailableError,
)
from penstock.jobs import Job, JobKind, JobLimits, JobRunner, JobState, JobStore
from penstock.jobs import document as documents
from penstock.jobs import run as runs
from penstock.jobs import work as works
from penstock.jobs.run import PAGE_ENTRIES, Run, RunParts

DEADLINE_S = 60.0


@dataclass
class FakeEntry:
    name: str
    size: int
    is_directory: bool = False


@dataclass
class FakeTree:
    """A tree in memory, shared by all connections, that notes what was asked of it."""

    files: dict[str, int]
    root: str = "/data"
    attached: bool = True
    failing: dict[str, list[PenstockError]] = field(default_factory=dict)
    prefetched: list[str] = field(default_factory=list)
    kept: int = 0
    pages_read: int = 0
    opened: int = 0
    closed: int = 0
    gate: Callable[[list[str]], object] = lambda paths: None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def open(self) -> "FakeTree":
        with self.lock:
            self.opened += 1
        return self

    def close(self) -> None:
        with self.lock:
            self.closed += 1

    def stat(self, path: str) -> FakeEntry:
        if not self.attached:
            raise NotFoundError(f"stat {path}", "nothing is attached there", "attach a source")
        if path == self.root:
            return FakeEntry(path, 0, is_directory=True)
        if path.removeprefix(self.root + "/") not in self.files:
            raise NotFoundError(f"stat {path}", "no such file")
        return FakeEntry(path, self.files[path.removeprefix(self.root + "/")])

    def walk_page(self, path: str, after: str | None, limit: int) -> tuple[Sequence[FakeEntry], str | None]:
        self.stat(path)
        names = sorted(name for name in self.files if after is None or name > after)
        with self.lock:
            self.pages_read += 1
        page = [FakeEntry(name, self.files[name]) for name in names[:limit]]
        return [FakeEntry("directory", 0, is_directory=True), *page], names[limit - 1] if len(names) > limit else None

    def prefetch(self, paths: list[str]) -> list[tuple[int, int] | PenstockError]:
        self.gate(paths)
        return [self._one(path, lambda size: (size, size)) for path in paths]

    def evict(self, paths: list[str]) -> list[Any]:
        return [self._one(path, lambda size: size) for path in paths]

    def verify(self, paths: list[str]) -> list[Any]:
        return [self._one(path, lambda size: (1, size % 2, 0)) for path in paths]

    def cached_bytes(self, path: str) -> int:
        return 40 << 20

    def keep(self) -> None:
        with self.lock:
            self.kept = len(self.prefetched)

    def _one(self, path: str, outcome: Callable[[int], Any]) -> Any:
        with self.lock:
            if self.failing.get(path):
                return self.failing[path].pop(0)
            if not self.attached:
                return NotFoundError(f"open {path}", "nothing is attached there")
            self.prefetched.append(path)
        return outcome(self.files[path.removeprefix(self.root + "/")])


class Bench:
    """A runner over a fake tree, and another one on the same store as after a restart."""

    def __init__(self, directory: Path, tree: FakeTree, **limits: Any) -> None:
        self.directory, self.tree = directory, tree
        self.limits = JobLimits(**limits)
        self.runners: list[JobRunner] = []
        self.runner = self.restart()

    def restart(self) -> JobRunner:
        self.runner = JobRunner(JobStore(self.directory), self.tree.open, self.limits)
        self.runners.append(self.runner)
        self.runner.start()
        return self.runner

    def hold(self, first: str = "") -> tuple[str, threading.Event]:
        """A preload that has come to a batch from ``first`` on and waits in it, and what lets it go on."""
        reached, go_on = threading.Event(), threading.Event()

        def gate(paths: list[str]) -> None:
            if paths[0] >= first:
                reached.set()
                go_on.wait(DEADLINE_S)

        self.tree.gate = gate
        job_id = str(self.runner.submit(JobKind.PRELOAD, "/data")["id"])
        assert reached.wait(DEADLINE_S)
        return job_id, go_on

    def run(self, kind: JobKind = JobKind.PRELOAD, path: str = "/data", **options: Any) -> dict[str, Any]:
        return self.runner.wait(self.runner.submit(kind, path, **options)["id"], DEADLINE_S)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(works, "_FIRST_PAUSE_S", 0.0)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    benches: list[Bench] = []

    def made(files: dict[str, int], **limits: Any) -> Bench:
        benches.append(Bench(tmp_path, FakeTree(files), **limits))
        return benches[-1]

    yield made
    for bench in benches:
        bench.tree.gate = lambda paths: None
        for runner in bench.runners:
            runner.stop(DEADLINE_S)


def files(count: int, size: int = 10) -> dict[str, int]:
    return {f"{number:06}": size for number in range(count)}


def test_a_preload_brings_every_file_and_knows_its_totals(make: Callable[..., Bench]) -> None:
    bench = make(files(3000))
    job = bench.run()
    assert job["state"] == "finished"
    assert (job["total_files"], job["total_bytes"], job["total_known"]) == (3000, 30_000, True)
    assert (job["done_files"], job["done_bytes"], job["failed_files"]) == (3000, 30_000, 0)
    assert job["results"] == {"fetched_bytes": 30_000}
    assert sorted(bench.tree.prefetched) == [f"/data/{number:06}" for number in range(3000)]
    assert bench.tree.opened == bench.tree.closed


def test_what_a_kept_job_says_is_done_is_kept_in_the_cache(
    make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, saves = make(files(3000)), list[tuple[int, int]]()
    save = JobStore.save

    def saved(store: JobStore, job: Any, *, durable: bool = False) -> None:
        saves.append((job.done.files, bench.tree.kept))
        save(store, job, durable=durable)

    monkeypatch.setattr(runs, "CHECKPOINT_INTERVAL_S", 0.0)
    monkeypatch.setattr(JobStore, "save", saved)
    bench.run()
    assert len(saves) > 3
    assert all(kept >= done for done, kept in saves), saves


def test_a_single_file_is_a_path_too(make: Callable[..., Bench]) -> None:
    bench = make({"a": 7, "b": 1})
    job = bench.run(path="/data/a")
    assert (job["state"], job["total_files"], job["done_bytes"]) == ("finished", 1, 7)
    assert bench.tree.prefetched == ["/data/a"]


def test_evict_and_verify_count_what_they_did(make: Callable[..., Bench]) -> None:
    bench = make({"a": 4, "b": 6})
    assert bench.run(JobKind.EVICT)["results"] == {"freed_bytes": 10}
    assert bench.run(JobKind.VERIFY)["results"] == {"pages": 2, "bad_pages": 0, "repaired_pages": 0}


def test_pages_that_cannot_be_repaired_fail_their_file(make: Callable[..., Bench]) -> None:
    job = make({"even": 4, "odd": 5}).run(JobKind.VERIFY)
    assert (job["state"], job["done_files"], job["failed_files"]) == ("failed", 1, 1)
    assert [(each["path"], each["code"]) for each in job["failures"]] == [("/data/odd", "corrupt")]


@pytest.mark.parametrize(("kind", "state"), [("evict", "finished"), ("verify", "finished"), ("preload", "failed")])
def test_a_file_that_left_the_source_has_nothing_to_evict_or_check_but_cannot_be_preloaded(
    make: Callable[..., Bench], kind: str, state: str
) -> None:
    bench = make({"a": 4, "b": 6})
    bench.tree.failing["/data/a"] = [NotFoundError("open /data/a", "no such file")]
    job = bench.run(JobKind(kind))
    assert (job["state"], job["done_files"] + job["failed_files"]) == (state, 2)


def test_transient_failures_are_tried_again_and_lasting_ones_are_kept_with_their_reason(
    make: Callable[..., Bench],
) -> None:
    bench = make(files(5))
    bench.tree.failing = {
        "/data/000001": [UnavailableError("read", "503")] * 3,
        "/data/000002": [PermissionDeniedError("read", "denied", "ask")],
        "/data/000003": [UnavailableError("read", "503")] * works.ATTEMPTS_MAX,
    }
    job = bench.run()
    assert job["state"] == "failed"
    assert (job["done_files"], job["failed_files"]) == (3, 2)
    assert sorted((each["path"], each["code"], each["reason"]) for each in job["failures"]) == [
        ("/data/000002", "permission-denied", "read: denied; ask"),
        ("/data/000003", "unavailable", "read: 503"),
    ]


def test_a_retry_does_the_failed_files_only(make: Callable[..., Bench]) -> None:
    bench = make(files(50))
    bench.tree.failing = {"/data/000007": [PermissionDeniedError("read", "denied")]}
    job = bench.run()
    bench.tree.prefetched.clear()
    bench.runner.retry(job["id"])
    again = bench.runner.wait(job["id"], DEADLINE_S)
    assert (again["state"], again["done_files"], again["failed_files"]) == ("finished", 50, 0)
    assert again["failures"] == []
    assert bench.tree.prefetched == ["/data/000007"]


def test_more_failures_than_are_kept_make_a_retry_go_through_everything(
    make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "FAILURES_MAX", 3)
    bench = make(files(20))
    bench.tree.failing = {f"/data/{number:06}": [PermissionDeniedError("read", "no")] for number in range(5)}
    job = bench.run()
    assert (job["failed_files"], len(job["failures"])) == (5, 3)
    bench.runner.retry(job["id"])
    again = bench.runner.wait(job["id"], DEADLINE_S)
    assert (again["state"], again["done_files"], again["total_files"]) == ("finished", 20, 20)


def test_a_cancelled_job_ends_as_such_and_a_retry_goes_on_where_it_was(make: Callable[..., Bench]) -> None:
    bench = make(files(5000), workers=1)
    job_id, go_on = bench.hold("/data/002000")
    assert bench.runner.cancel(job_id)["cancel_requested"]
    go_on.set()
    job = bench.runner.wait(job_id, DEADLINE_S)
    assert job["state"] == "cancelled"
    assert 2000 <= job["done_files"] < 5000
    bench.tree.prefetched.clear()
    bench.runner.retry(job_id)
    assert bench.runner.wait(job_id, DEADLINE_S)["done_files"] == 5000
    assert len(bench.tree.prefetched) <= 5000 - 2000 + 2 * PAGE_ENTRIES


def test_a_job_that_is_told_to_have_ended_can_be_retried_at_once(
    make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    told, saved = threading.Event(), threading.Event()
    save = JobStore.save

    def save_late(store: JobStore, job: Job, *, durable: bool) -> None:
        if job.state.ended and not told.is_set():
            told.set()
            saved.wait(DEADLINE_S)
        save(store, job, durable=durable)

    monkeypatch.setattr(JobStore, "save", save_late)
    bench = make(files(10))
    job_id = str(bench.runner.submit(JobKind.PRELOAD, "/data")["id"])
    assert told.wait(DEADLINE_S)
    assert bench.runner.get(job_id)["state"] == "finished"
    threading.Timer(0.2, saved.set).start()
    bench.runner.retry(job_id)
    assert bench.runner.wait(job_id, DEADLINE_S)["state"] == "finished"


def test_a_page_that_a_cancel_cut_in_two_is_counted_once(make: Callable[..., Bench]) -> None:
    bench = make(files(128), workers=1)
    # In the first of two batches; the second one waits behind it and never begins.
    job_id, go_on = bench.hold()
    bench.runner.cancel(job_id)
    go_on.set()
    assert bench.runner.wait(job_id, DEADLINE_S)["done_files"] == 64
    bench.runner.retry(job_id)
    job = bench.runner.wait(job_id, DEADLINE_S)
    assert (job["state"], job["done_files"], job["done_bytes"]) == ("finished", 128, 1280)
    assert job["results"] == {"fetched_bytes": 1280}


def test_the_rate_of_an_ended_job_is_that_of_all_its_work(tmp_path: Path) -> None:
    tree = FakeTree(files(100))
    now = [0.0]
    runner = JobRunner(JobStore(tmp_path), tree.open, clock=lambda: now[0])

    def later(paths: list[str]) -> None:
        now[0] += 0.25

    tree.gate = later
    runner.start()
    job = runner.wait(runner.submit(JobKind.PRELOAD, "/data")["id"], DEADLINE_S)
    assert (job["busy_s"], job["rate_bytes_per_s"], job["rate_files_per_s"]) == (0.5, 2000.0, 200.0)
    assert job["eta_s"] is None
    now[0] += 1000.0
    again = JobRunner(JobStore(tmp_path), tree.open, clock=lambda: now[0])
    again.start()
    assert again.get(job["id"])["rate_bytes_per_s"] == 2000.0
    runner.stop(DEADLINE_S)
    again.stop(DEADLINE_S)


def test_a_restart_goes_on_from_the_last_settled_page(make: Callable[..., Bench], tmp_path: Path) -> None:
    bench = make(files(5000), workers=1)
    job_id, go_on = bench.hold("/data/003000")
    threading.Thread(target=go_on.set).start()
    bench.runner.stop(DEADLINE_S)
    kept = Job.decode((tmp_path / f"{job_id}.json").read_text())
    assert kept.state is JobState.RUNNING
    assert kept.cursor is not None
    bench.tree.prefetched.clear()
    bench.tree.gate = lambda paths: None
    job = bench.restart().wait(job_id, DEADLINE_S)
    assert (job["state"], job["done_files"], job["done_bytes"]) == ("finished", 5000, 50_000)
    assert min(bench.tree.prefetched) > f"/data/{kept.cursor}"


def test_what_fails_because_the_node_stops_is_left_to_the_next_node(make: Callable[..., Bench], tmp_path: Path) -> None:
    bench = make(files(5000), workers=1)
    reached, go_on = threading.Event(), threading.Event()

    def gate(paths: list[str]) -> None:
        if paths[0] >= "/data/003000":
            reached.set()
            go_on.wait(DEADLINE_S)
            raise UnavailableError("prefetch", "the node is stopping")

    bench.tree.gate = gate
    job_id = bench.runner.submit(JobKind.PRELOAD, "/data")["id"]
    assert reached.wait(DEADLINE_S)
    bench.runner.stop(0)
    go_on.set()
    bench.runner.stop(DEADLINE_S)
    assert Job.decode((tmp_path / f"{job_id}.json").read_text()).state is JobState.RUNNING
    bench.tree.gate = lambda paths: None
    job = bench.restart().wait(job_id, DEADLINE_S)
    assert (job["state"], job["done_files"], job["failed_files"]) == ("finished", 5000, 0)


def test_a_detached_path_fails_the_job_with_words_and_not_every_file(make: Callable[..., Bench]) -> None:
    bench = make(files(5000), workers=1)
    bench.tree.gate = lambda paths: setattr(bench.tree, "attached", paths[0] < "/data/001000")
    job = bench.run()
    assert job["state"] == "failed"
    assert job["error"]["code"] == "not-found"
    assert "nothing is attached" in job["error"]["message"]
    assert job["failed_files"] < 200


def test_a_path_that_is_not_there_fails_the_job(make: Callable[..., Bench]) -> None:
    job = make({}).run(path="/data/none")
    assert (job["state"], job["error"]["code"]) == ("failed", "not-found")


def test_a_defect_ends_the_job_with_words(make: Callable[..., Bench]) -> None:
    bench = make(files(5))

    def gate(paths: list[str]) -> None:
        raise RuntimeError("broken")

    bench.tree.gate = gate
    job = bench.run()
    assert (job["state"], job["error"]["code"]) == ("failed", "internal")
    assert bench.run(JobKind.EVICT)["state"] == "finished"


def test_jobs_beyond_the_limit_wait_their_turn(make: Callable[..., Bench]) -> None:
    bench = make(files(5), max_running=1)
    go_on = threading.Event()
    bench.tree.gate = lambda paths: go_on.wait(DEADLINE_S)
    first = bench.runner.submit(JobKind.PRELOAD, "/data")["id"]
    second = bench.runner.submit(JobKind.PRELOAD, "/data")["id"]
    third = bench.runner.submit(JobKind.PRELOAD, "/data")["id"]
    assert bench.runner.counts() == {"running": 1, "queued": 2}
    assert bench.runner.cancel(third)["state"] == "cancelled"
    with pytest.raises(BusyError, match="has not ended"):
        bench.runner.retry(second)
    with pytest.raises(BusyError, match="has not ended"):
        bench.runner.remove(first)
    go_on.set()
    assert bench.runner.wait(first, DEADLINE_S)["state"] == "finished"
    assert bench.runner.wait(second, DEADLINE_S)["state"] == "finished"


def test_ended_jobs_are_kept_up_to_a_number_and_ids_are_never_given_again(make: Callable[..., Bench]) -> None:
    bench = make(files(1), keep=2)
    ids = [bench.run()["id"] for _ in range(4)]
    assert ids == ["1", "2", "3", "4"]
    bench.run(JobKind.EVICT)
    assert len(bench.runner.all()) <= 3
    bench.runner.remove("5")
    assert bench.restart().submit(JobKind.EVICT, "/data")["id"] == "6"
    with pytest.raises(NotFoundError, match="no such job"):
        bench.runner.get("1")


def test_a_rate_limit_slows_a_job_down(tmp_path: Path) -> None:
    tree = FakeTree(files(3, size=100 << 20))
    now = [0.0]
    waits: list[float] = []
    job = Job("1", JobKind.PRELOAD, "/data", created=0, max_bytes_per_s=50 << 20)
    store = JobStore(tmp_path)
    parts = RunParts(tree.open, lambda job, durable: store.save(job), lambda: None, lambda: now[0], lambda: 0.0, 1)
    run = Run(job, parts)
    waited = run._stop.wait

    def wait(timeout: float | None = None) -> bool:
        waits.append(timeout or 0)
        now[0] += timeout or 0
        return waited(0)

    run._stop.wait = wait  # type: ignore[method-assign]
    run.execute()
    assert job.state is JobState.FINISHED
    assert sum(waits) == pytest.approx(4.0)


def test_progress_shows_what_has_arrived_of_a_large_file(make: Callable[..., Bench]) -> None:
    bench = make({"large": 100 << 20})
    job_id, go_on = bench.hold()
    job = bench.runner.get(job_id)
    assert job["active"] == {"/data/large": 40 << 20}
    assert job["done_bytes"] == 40 << 20
    go_on.set()
    assert bench.runner.wait(job_id, DEADLINE_S)["done_bytes"] == 100 << 20


def test_watchers_see_the_revision_grow(make: Callable[..., Bench]) -> None:
    bench = make(files(500))
    job_id = bench.runner.submit(JobKind.PRELOAD, "/data")["id"]
    bench.runner.wait(job_id, DEADLINE_S)
    revision, ended = bench.runner.revision(job_id)
    assert ended
    assert revision > 0


def test_a_document_survives_its_encoding() -> None:
    job = Job("3", JobKind.VERIFY, "/data", created=1.5, cursor="a/b", retry=["/data/x"])
    job.fail(documents.Failure("/data/y", "corrupt", "bad"))
    job.seen = documents.Counters(1, 2, 3, {"pages": 4})
    assert Job.decode(job.encode()) == job


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"format": 99}', '{"format": 1, "kind": "dance"}'])
def test_a_damaged_document_is_set_aside_and_the_others_are_read(tmp_path: Path, text: str) -> None:
    store = JobStore(tmp_path)
    store.save(Job(store.new_id(), JobKind.EVICT, "/data", created=0))
    (tmp_path / "7.json").write_text(text)
    with pytest.raises(CorruptError):
        Job.decode(text)
    assert [job.id for job in store.load()] == ["1"]
    assert (tmp_path / "7.damaged").read_text() == text


def test_fields_of_a_later_minor_version_are_ignored() -> None:
    values = json.loads(Job("1", JobKind.EVICT, "/data", created=0).encode())
    assert Job.decode(json.dumps({**values, "colour": "blue"})).id == "1"


def test_memory_stays_bounded_over_a_large_tree(make: Callable[..., Bench]) -> None:
    """The walk is never more than some pages ahead of the work."""
    bench = make(files(40_000), workers=2)
    job_id, go_on = bench.hold()
    counting_pages = 40_000 // 5000 + 1
    assert bench.tree.pages_read <= counting_pages + 3
    go_on.set()
    assert bench.runner.wait(job_id, DEADLINE_S)["done_files"] == 40_000
