"""Jobs in a real node: watched, cancelled, retried, and killed midway with SIGKILL."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fault import disk
from fault.store import Gate, Store
from penstock.cli.progress import LINE_INTERVAL_S
from penstock.jobs.run import _LARGE_FILE_BYTES, CHECKPOINT_INTERVAL_S, PAGE_ENTRIES
from penstock.policies.preload import BATCH_MAX_FILES

FILES = 1200
SIZE = 5000
UNDER_WAY = 4 * BATCH_MAX_FILES
"""Files that the workers of one job ask for at once."""


@pytest.fixture
def store() -> Iterator[Store]:
    with Store() as made:
        yield made


@pytest.fixture
def slow(machine: Any, store: Store) -> Any:
    """A machine with a store that gives its files when it is told to."""
    for number in range(FILES):
        store.put(f"{number:05}", content(number))
    machine.store, machine.gate = store, Gate(store)
    # What waits in front of the gate keeps neither listings nor the end of a node waiting.
    machine.environment |= {"PENSTOCK_SOURCE__MAX_REQUESTS": "1000", "PENSTOCK_NODE__DRAIN_TIMEOUT": "500ms"}
    options = ("--endpoint", store.endpoint, "--credentials", "anonymous")
    machine("attach", "s3://bucket", "/data", *options)
    return machine


def content(number: int) -> bytes:
    return f"{number:05}".encode() * (SIZE // 5)


def midway(machine: Any, job_id: str) -> dict[str, Any]:
    """Has a job do some of its files and keep a cursor; returns its document. The rest waits for the gate."""
    document = machine.home.jobs / f"{job_id}.json"
    machine.gate.admit(PAGE_ENTRIES // 2)
    machine.until(lambda: machine.store.asked["read"])
    # From its start on, so that it is time to keep the cursor when the first page is done.
    time.sleep(CHECKPOINT_INTERVAL_S * 1.2)
    machine.gate.admit(PAGE_ENTRIES // 2)

    def kept() -> dict[str, Any] | None:
        found = json.loads(document.read_text())
        if not found["cursor"] and machine.gate.is_shut():
            # Others came through the gate before the last ones of the page.
            machine.gate.admit(16)
        return found if found["cursor"] else None

    return dict(machine.until(kept))


def test_a_preload_tells_totals_progress_and_rate_as_json_lines(slow: Any) -> None:
    watched = slow.spawn(sys.executable, "-m", "penstock.cli", "preload", "/data", "--wait")

    def told(condition: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """The next line that says so."""
        while not condition(line := json.loads(watched.stdout.readline())):
            assert line["state"] == "running"
        return dict(line)

    assert told(lambda line: line["total_known"])["done_files"] == 0
    # What changes later than this after a line is told at once.
    time.sleep(LINE_INTERVAL_S * 1.1)
    slow.gate.admit(FILES // 2)
    half = told(lambda line: line["rate_bytes_per_s"] > 0 and line["eta_s"])
    assert 0 < half["done_files"] < FILES
    slow.gate.open()
    rest, errors = watched.communicate()
    assert watched.returncode == 0, errors
    last = json.loads(rest.splitlines()[-1])
    assert (last["state"], last["done_files"], last["done_bytes"]) == ("finished", FILES, FILES * SIZE)
    assert (last["total_files"], last["total_known"], last["failed_files"]) == (FILES, True, 0)
    assert last["results"]["fetched_bytes"] == FILES * SIZE


def test_who_looks_at_a_job_with_large_files_under_way_waits_for_no_source(machine: Any, store: Store) -> None:
    size = _LARGE_FILE_BYTES
    for name in "abc":
        store.put(name, name.encode() * size)
    gate = Gate(store)
    # With freshness 0 nothing that is known of a name is good enough for who opens it.
    options = ("--endpoint", store.endpoint, "--credentials", "anonymous", "--freshness", "0")
    machine("attach", "s3://bucket", "/data", *options)
    job = machine.json("preload", "/data")
    machine.until(lambda: len(machine.control().job(job["id"])["active"]) == 3 and gate.is_shut())
    asked = store.asked["stat"] + store.asked["list"]
    shown = [machine.control().job(job["id"]) for _ in range(5)]
    assert store.asked["stat"] + store.asked["list"] == asked
    assert all(each["total_known"] and each["active"] == {"/data/a": 0, "/data/b": 0, "/data/c": 0} for each in shown)
    gate.open()
    machine("job", "wait", job["id"])


def test_a_preload_killed_midway_goes_on_and_fetches_nothing_twice(slow: Any) -> None:
    job = slow.json("preload", "/data")
    kept = midway(slow, job["id"])
    assert kept["state"] == "running"
    assert 0 < kept["done"]["files"] < FILES
    slow.until(slow.gate.is_shut)
    disk.await_index(slow, lambda _: slow.gate.admit(BATCH_MAX_FILES // 4))
    slow.kill()
    slow.gate.open()
    after = slow.json("job", "show", job["id"])
    assert after["done_files"] >= kept["done"]["files"]
    slow("job", "wait", job["id"])
    ended = slow.json("job", "show", job["id"])
    assert (ended["state"], ended["done_files"], ended["done_bytes"]) == ("finished", FILES, FILES * SIZE)
    # Asked for twice was what waited in front of the gate, and what had come after the index was written last.
    assert slow.store.asked["read"] <= FILES + UNDER_WAY + BATCH_MAX_FILES
    assert slow("cat", "/data/00007").stdout == "00007" * (SIZE // 5)
    # What the job says it has brought is there.
    slow("preload", "/data", "--wait")
    [again] = [each for each in slow.json("job", "ls") if each["id"] != job["id"]]
    assert again["results"]["fetched_bytes"] == 0


HALTING = """
import sys
from penstock.home import locate
from penstock.jobs import JobKind, JobLimits, JobRunner, JobStore, run
from penstock.jobs.core_tree import CoreTree

run.CHECKPOINT_INTERVAL_S = 0

class Halting(CoreTree):
    left = 20

    def _step(self):
        Halting.left -= 1
        if Halting.left == 0:
            print("reached", flush=True)
            sys.stdin.read()

    def evict(self, paths):
        self._step()
        return super().evict(paths)

    def verify(self, paths):
        self._step()
        return super().verify(paths)

home = locate()
runner = JobRunner(JobStore(home.jobs), lambda: Halting(home.data_socket), JobLimits(workers=1))
runner.start()
runner.wait(runner.submit(JobKind(sys.argv[1]), "/data")["id"], 60)
"""
"""Runs a job on the real core, and stands still in its twentieth batch: fast as they are, it is caught midway."""


@pytest.mark.parametrize("kind", ["evict", "verify"])
def test_an_evict_or_verify_killed_midway_goes_on_in_the_next_node(machine: Any, kind: str) -> None:
    count = 2000
    root = machine.files("lake", {f"{number:06}": b"x" * 100 for number in range(count)})
    machine("attach", f"file://{root}", "/data", "--freshness", "immutable")
    machine("preload", "/data", "--wait")
    halted = machine.spawn(sys.executable, "-c", HALTING, kind, stdin=True)
    assert halted.stdout.readline() == "reached\n"
    halted.kill()
    halted.wait()
    machine.kill()
    kept = json.loads((machine.home.jobs / "2.json").read_text())
    assert (kept["kind"], kept["state"]) == (kind, "running")
    assert 0 < kept["done"]["files"] < count
    last = json.loads(machine("job", "wait", "2").stdout.splitlines()[-1])
    assert (last["state"], last["done_files"], last["failed_files"]) == ("finished", count, 0)
    before = machine.control().status()["bytes_from_source"]
    assert machine("cat", "/data/000000", f"/data/{count - 1:06}").stdout == "x" * 200
    if kind == "evict":
        # What left the cache in its last second before the kill may still be listed, but it is not served.
        assert machine.control().status()["bytes_from_source"] - before == 200


def test_a_cancelled_job_stops_and_a_retry_finishes_it(slow: Any) -> None:
    job = slow.json("preload", "/data")
    midway(slow, job["id"])
    assert "cancelled" in slow("job", "cancel", job["id"]).stdout
    slow.gate.open()
    waited = slow("job", "wait", job["id"], check=1)
    assert json.loads(waited.stdout.splitlines()[-1])["state"] == "cancelled"
    assert 0 < slow.json("job", "show", job["id"])["done_files"] < FILES
    slow("job", "retry", job["id"], "--wait")
    assert slow.json("job", "show", job["id"])["done_files"] == FILES


def test_a_job_whose_path_is_detached_fails_with_words(slow: Any) -> None:
    job = slow.json("preload", "/data")
    midway(slow, job["id"])
    slow("detach", "/data")
    slow.gate.open()
    waited = slow("job", "wait", job["id"], check=1)
    assert "[not-found]" in waited.stderr
    assert slow.json("job", "show", job["id"])["error"]["code"] == "not-found"


def test_failed_files_are_told_with_reasons_and_done_again(machine: Any) -> None:
    root = machine.files("lake", {"good": b"1" * 100, "bad": b"2" * 100})
    machine("attach", f"file://{root}", "/data", "--freshness", "immutable")
    machine("ls", "-r", "/data")
    (root / "bad").unlink()
    failed = machine("preload", "/data", "--wait", check=1)
    assert "/data/bad" in failed.stderr
    job = machine.json("job", "ls")[-1]
    assert (job["state"], job["done_files"], job["failed_files"]) == ("failed", 1, 1)
    assert machine.json("job", "show", job["id"])["failures"][0]["path"] == "/data/bad"


def test_a_job_in_a_stopped_node_goes_on_in_the_next(slow: Any) -> None:
    job = slow.json("preload", "/data")
    midway(slow, job["id"])
    slow("down")
    assert json.loads((slow.home.jobs / f"{job['id']}.json").read_text())["state"] == "running"
    slow.gate.open()
    slow("job", "wait", job["id"])


def test_a_watcher_that_is_interrupted_leaves_the_job_alone(slow: Any) -> None:
    job = slow.json("preload", "/data")
    watcher = slow.spawn(sys.executable, "-m", "penstock.cli", "job", "wait", job["id"])
    assert watcher.stdout.readline()
    os.kill(watcher.pid, signal.SIGINT)
    _, errors = watcher.communicate(timeout=60)
    assert watcher.returncode == 130
    assert f"penstock job wait {job['id']}" in errors
    slow.gate.open()
    slow("job", "wait", job["id"])


def test_a_rate_limit_holds_on_average(slow: Any) -> None:
    slow.gate.open()
    done = slow("preload", "/data", "--wait", "--max-rate", "2MB")
    last = json.loads(done.stdout.splitlines()[-1])
    shown = slow.json("job", "show", last["id"])
    assert shown["finished"] - shown["started"] >= 0.9 * (FILES * SIZE - (1 << 20)) / 2e6


def test_idle_time_does_not_pass_while_a_job_runs(machine: Any) -> None:
    remote = machine.remote({f"{number:03}": b"x" * 100_000 for number in range(60)}, bytes_per_s=2_000_000)
    # Whichever command starts the node: one that had nothing to do for a second is gone before the next.
    machine.environment["PENSTOCK_NODE__IDLE_TIMEOUT"] = "1s"
    machine("attach", "s3://bucket", "/data", "--endpoint", remote.endpoint, "--credentials", "anonymous")
    machine("preload", "/data")
    machine.until(lambda: not machine.home.node_file.exists())
    kept = json.loads(next(machine.home.jobs.glob("*.json")).read_text())
    assert kept["state"] == "finished"
