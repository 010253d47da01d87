"""Jobs in a real node: watched, cancelled, retried, and killed midway with SIGKILL."""

import json
import os
import signal
import sys
from typing import Any

import pytest

FILES = 1200
SIZE = 5000


@pytest.fixture
def slow(machine: Any) -> Any:
    """A machine with a remote that needs some seconds for all of its files."""
    contents = {f"{number:05}": f"{number:05}".encode() * (SIZE // 5) for number in range(FILES)}
    machine.store = machine.remote(contents, first_byte_ms=2.0, bytes_per_s=3 << 20)
    options = ("--endpoint", machine.store.endpoint, "--credentials", "anonymous")
    machine("attach", "s3://bucket", "/data", *options)
    return machine


def midway(machine: Any, job_id: str) -> dict[str, Any]:
    """Waits until a job has done some of its files and kept a cursor; returns its document."""
    document = machine.home.jobs / f"{job_id}.json"

    def some() -> dict[str, Any] | None:
        kept = json.loads(document.read_text())
        return kept if kept["cursor"] or kept["state"] != "running" else None

    return dict(machine.until(some))


def test_a_preload_tells_totals_progress_and_rate_as_json_lines(slow: Any) -> None:
    done = slow("preload", "/data", "--wait")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) >= 2
    last = lines[-1]
    assert (last["state"], last["done_files"], last["done_bytes"]) == ("finished", FILES, FILES * SIZE)
    assert (last["total_files"], last["total_known"], last["failed_files"]) == (FILES, True, 0)
    assert any(line["total_known"] and line["done_files"] < FILES for line in lines)
    assert any(line["rate_bytes_per_s"] > 0 and line["eta_s"] for line in lines)
    assert last["results"]["fetched_bytes"] == FILES * SIZE


def test_a_preload_killed_midway_goes_on_and_fetches_nothing_twice(slow: Any) -> None:
    job = slow.json("preload", "/data")
    kept = midway(slow, job["id"])
    assert kept["state"] == "running"
    assert 0 < kept["done"]["files"] < FILES
    slow.kill()
    after = slow.json("job", "show", job["id"])
    assert after["done_files"] >= kept["done"]["files"]
    slow("job", "wait", job["id"])
    ended = slow.json("job", "show", job["id"])
    assert (ended["state"], ended["done_files"], ended["done_bytes"]) == ("finished", FILES, FILES * SIZE)
    assert slow.store.counters()["get"] <= FILES * 1.3
    assert slow("cat", "/data/00007").stdout == "00007" * (SIZE // 5)


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
    waited = slow("job", "wait", job["id"], check=1)
    assert json.loads(waited.stdout.splitlines()[-1])["state"] == "cancelled"
    assert 0 < slow.json("job", "show", job["id"])["done_files"] < FILES
    slow("job", "retry", job["id"], "--wait")
    assert slow.json("job", "show", job["id"])["done_files"] == FILES


def test_a_job_whose_path_is_detached_fails_with_words(slow: Any) -> None:
    job = slow.json("preload", "/data")
    midway(slow, job["id"])
    slow("detach", "/data")
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
    slow("job", "wait", job["id"])


def test_a_watcher_that_is_interrupted_leaves_the_job_alone(slow: Any) -> None:
    job = slow.json("preload", "/data")
    watcher = slow.spawn(sys.executable, "-m", "penstock.cli", "job", "wait", job["id"])
    assert watcher.stdout.readline()
    os.kill(watcher.pid, signal.SIGINT)
    _, errors = watcher.communicate(timeout=30)
    assert watcher.returncode == 130
    assert f"penstock job wait {job['id']}" in errors
    slow("job", "wait", job["id"])


def test_a_rate_limit_holds_on_average(slow: Any) -> None:
    done = slow("preload", "/data", "--wait", "--max-rate", "2MB")
    last = json.loads(done.stdout.splitlines()[-1])
    shown = slow.json("job", "show", last["id"])
    assert shown["finished"] - shown["started"] >= 0.9 * (FILES * SIZE - (1 << 20)) / 2e6


def test_idle_time_does_not_pass_while_a_job_runs(machine: Any) -> None:
    remote = machine.remote({f"{number:03}": b"x" * 100_000 for number in range(60)}, bytes_per_s=2_000_000)
    machine("up", PENSTOCK_NODE__IDLE_TIMEOUT="1s")
    machine("attach", "s3://bucket", "/data", "--endpoint", remote.endpoint, "--credentials", "anonymous")
    machine("preload", "/data")
    machine.until(lambda: not machine.home.node_file.exists())
    kept = json.loads(next(machine.home.jobs.glob("*.json")).read_text())
    assert kept["state"] == "finished"
