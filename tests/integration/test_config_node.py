"""Configuration keys in a real node: each one changes what it says it does.

Keys of jobs are in ``test_jobs.py`` and ``test_jobs_node.py``, ``node.idle_timeout`` and the project's file in
``test_cli_node.py``, ``deadlines.attach`` in ``test_cli_attach.py``, ``log.max_size`` in ``test_logs.py``, a network
file system under the cache in the core's own tests, for no test machine has one.
"""

import http.server
import json
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import penstock
from fault.store import Answer, Handler, Question, Store
from penstock import _native, config
from penstock.client.launch import start_node
from penstock.errors import NoSpaceError

MIB = 1 << 20

COVERED_HERE = {
    *("stage.directory", "stage.size", "stage.recovery_days", "stage.recovery_size"),
    *("cache.directory", "cache.size", "cache.tiers", "cache.free_space_floor", "cache.scrub_interval_days"),
    *("memory.budget", "deadlines.foreground", "source.max_requests", "source.max_attempts", "source.max_rate"),
    *("source.freshness", "node.max_connections", "node.metrics_port", "node.drain_timeout", "log.level"),
    *("jobs.keep", "jobs.max_rate", "source.max_upload_rate"),
}
COVERED_ELSEWHERE = {
    *("cache.allow_network_filesystem", "deadlines.attach", "jobs.max_running", "jobs.workers", "node.idle_timeout"),
    "log.max_size",
}


def test_every_key_is_tried_somewhere() -> None:
    assert {key for key, *_ in config.key_documentation()} == COVERED_HERE | COVERED_ELSEWHERE


class Refusing(http.server.BaseHTTPRequestHandler):
    """Answers every request with 500, and counts them: 503 would be waited out, which is no attempt."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.requests += 1  # type: ignore[attr-defined]
        self.send_response(500)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def refusing() -> Iterator[Any]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    server.requests = 0  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def silent() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def up(machine: Any, *settings: str) -> None:
    start_node(machine.home, settings, explicit=str(machine.home.name))


def attach(machine: Any, files: dict[str, bytes] | None = None, path: str = "/data") -> Path:
    root: Path = machine.files("lake", files or {"a": b"x" * MIB, "b": b"y" * MIB, "c": b"z" * MIB})
    with penstock.connect(machine.home.name) as client:
        client.attach(f"file://{root}", path)
    return root


def cached(machine: Any) -> int:
    return sum(tier["used_bytes"] for tier in machine.control().status()["cache"]["tiers"])


def extents(directory: Path) -> int:
    return sum(1 for path in directory.rglob("*.x") if path.is_file())


def test_cache_directory_is_where_content_goes(machine: Any) -> None:
    up(machine, f"cache.directory={machine.directory}/elsewhere")
    attach(machine)
    machine("preload", "/data", "--wait")
    assert extents(machine.directory / "elsewhere") == 3
    assert extents(machine.home.cache) == 0


def test_cache_size_is_never_exceeded(machine: Any) -> None:
    up(machine, "cache.size=2MiB")
    attach(machine)
    machine("preload", "/data", "--wait", check=None)
    assert 0 < cached(machine) <= 2 * MIB
    assert machine("cat", "/data/a", "/data/b", "/data/c").stdout == "x" * MIB + "y" * MIB + "z" * MIB


def test_cache_tiers_are_used_in_order(machine: Any) -> None:
    tiers = [{"directory": f"{machine.directory}/{name}", "size": 2 * MIB} for name in ("fast", "slow")]
    up(machine, f"cache.tiers={json.dumps(tiers)}")
    attach(machine)
    machine("cat", "/data/a", "/data/b", "/data/c")
    used = [tier["used_bytes"] for tier in machine.json("status")["cache"]["tiers"]]
    assert used == [2 * MIB, MIB]


def test_a_free_space_floor_above_what_is_free_means_reading_without_caching(machine: Any) -> None:
    up(machine, "cache.free_space_floor=0.999")
    attach(machine)
    assert machine("cat", "/data/a").stdout == "x" * MIB
    assert cached(machine) == 0
    assert "below the floor" in machine("doctor", check=None, PENSTOCK_CACHE__FREE_SPACE_FLOOR="0.999").stdout


def test_scrub_interval_says_how_soon_every_page_is_checked(machine: Any) -> None:
    # With something to check from the start on: a pass that finds nothing ends, and the next one begins minutes later.
    attach(machine)
    machine("preload", "/data", "--wait")
    machine("down")
    up(machine, "cache.scrub_interval_days=0.00001")
    machine.until(lambda: machine.control().status()["metrics"]["scrub_pages"] > 0)


@pytest.fixture
def dead(machine: Any) -> Any:
    """A remote that is known by its names, and gone; whatever is written stays on this machine."""
    remote = machine.remote({"before": b""})

    def attach_and_stop(*settings: str) -> penstock.Client:
        up(machine, *settings)
        client = penstock.connect(machine.home.name, start=False)
        where = {"endpoint": remote.endpoint, "credentials": "anonymous"}
        client.attach("s3://bucket", "/runs", writable=True, freshness="1h", **where)
        assert [entry.name for entry in client.walk("/runs")] == ["before"]
        remote.stop()
        return client

    return attach_and_stop


def write(client: penstock.Client, path: str, content: bytes) -> None:
    with client.open(path, "wb") as file:
        file.write(content)


def test_stage_directory_is_where_written_files_wait_and_does_not_move_while_they_do(machine: Any, dead: Any) -> None:
    elsewhere = machine.directory / "elsewhere"
    with dead(f"stage.directory={elsewhere}") as client:
        write(client, "/runs/a", b"x" * MIB)
    assert any(path.stat().st_size == MIB for path in elsewhere.rglob("*") if path.is_file())
    machine("down")
    refused = machine("up", check=1).stderr
    assert f"--set stage.directory={elsewhere}" in refused
    machine("up", "--set", f"stage.directory={elsewhere}")
    assert machine("cat", "/runs/a").stdout == "x" * MIB


def test_an_empty_stage_may_move(machine: Any) -> None:
    for directory in ("one", "two"):
        up(machine, f"stage.directory={machine.directory}/{directory}")
        machine("down")
    up(machine)


def test_stage_size_bounds_what_waits(machine: Any, dead: Any) -> None:
    with dead("stage.size=8MiB") as client:
        write(client, "/runs/a", b"x" * 5 * MIB)
        with pytest.raises(NoSpaceError):
            write(client, "/runs/b", b"y" * 5 * MIB)
        write(client, "/runs/c", b"z" * MIB)
    stage = machine.json("status")["stage"]
    assert (stage["size_bytes"], stage["files"], stage["bytes"]) == (8 * MIB, 2, 6 * MIB)


@pytest.mark.parametrize(("days", "kept"), [("7", 1), ("0", 0)])
def test_files_that_nobody_closed_are_kept_for_recovery_days(machine: Any, dead: Any, days: str, kept: int) -> None:
    client = dead(f"stage.recovery_days={days}")
    file = client.open("/runs/half", "wb")
    file.write(b"h" * 3 * MIB)
    file.flush()
    machine.kill()
    file.discard()
    client.close()
    # What a start finds is kept from then on; what is too old goes with the next.
    for _ in range(2):
        up(machine, f"stage.recovery_days={days}")
        machine("down")
    assert sum(1 for path in (machine.home.stage / "recovery").rglob("*") if path.is_file()) == kept


def test_files_that_nobody_closed_are_kept_up_to_recovery_size_and_the_newest_three_always(
    machine: Any, dead: Any
) -> None:
    client = dead("stage.recovery_size=4MiB")
    for number in range(6):
        file = client.open(f"/runs/half-{number}", "wb")
        file.write(bytes([number]) * 2 * MIB)
        file.flush()
        machine.kill()
        file.discard()
        up(machine, "stage.recovery_size=4MiB")
    client.close()
    recovery = machine.home.stage / "recovery"
    machine.until(lambda: len([*recovery.iterdir()]) == 3)
    assert {path.read_bytes()[0] for path in recovery.iterdir()} == {3, 4, 5}
    kept = machine.json("status")["stage"]["recovered"]
    assert (len(kept), sum(each["allocated"] for each in kept)) == (3, 6 * MIB)


def test_memory_budget_is_what_status_shows(machine: Any) -> None:
    up(machine, "memory.budget=64MiB")
    assert machine.json("status")["memory"]["budget_bytes"] == 64 * MIB


def test_foreground_deadline_ends_a_read_that_nobody_answers(machine: Any, silent: int) -> None:
    up(machine, "deadlines.foreground=1s")
    options = ("--endpoint", f"http://127.0.0.1:{silent}", "--credentials", "anonymous", "--no-probe")
    machine("attach", "s3://bucket", "/data", *options)
    told = machine("cat", "/data/a", check=1).stderr
    assert "[timeout]" in told
    assert "deadline_s=1" in told


def test_max_attempts_bounds_the_tries_of_one_request(machine: Any, refusing: Any) -> None:
    counts = []
    for attempts in (1, 3):
        up(machine, f"source.max_attempts={attempts}")
        options = ("--endpoint", f"http://127.0.0.1:{refusing.server_port}", "--credentials", "anonymous")
        machine("attach", "s3://bucket", "/data", *options, "--no-probe", check=None)
        refusing.requests = 0
        failed = machine("stat", "/data/a", check=1)
        assert any(f"[{code}]" in failed.stderr for code in ("unavailable", "rate-limited", "timeout"))
        counts.append(refusing.requests)
        machine("detach", "/data")
        machine("down")
    assert counts[0] < counts[1]


class Crowd:
    """Holds every read until so many are under way, and counts how many there are at most."""

    def __init__(self, store: Store, wanted: int) -> None:
        self.wanted, self.now, self.most = wanted, 0, 0
        self.changed = threading.Condition()
        store.judge = lambda question: self.hold if question.kind == "read" else None

    def hold(self, handler: Handler, question: Question, right: Answer) -> None:
        with self.changed:
            self.now += 1
            self.most = max(self.most, self.now)
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.most >= self.wanted, timeout=60)
        # Long enough for one too many to come.
        time.sleep(0.02)
        with self.changed:
            self.now -= 1
        handler.send(right)


@pytest.mark.parametrize("requests", [1, 5])
def test_max_requests_bounds_what_is_under_way_at_one_source(machine: Any, requests: int) -> None:
    up(machine, f"source.max_requests={requests}", "deadlines.foreground=100s")
    with Store() as store:
        for number in range(60):
            store.put(f"{number:03}", b"x" * 1000)
        crowd = Crowd(store, requests)
        machine("attach", "s3://bucket", "/data", "--endpoint", store.endpoint, "--credentials", "anonymous")
        # In the foreground: of what jobs may have, a part is kept free.
        with penstock.connect(machine.home.name, start=False) as client:
            assert len(client.read_many([f"/data/{number:03}" for number in range(60)])) == 60
    assert crowd.most == requests


@pytest.mark.parametrize("key", ["source.max_rate", "jobs.max_rate"])
def test_a_rate_limits_what_comes_from_the_source(machine: Any, key: str) -> None:
    up(machine, f"{key}=2MiB")
    attach(machine, {f"{number}": b"x" * (MIB // 2) for number in range(10)})
    begun = time.monotonic()
    machine("preload", "/data", "--wait")
    assert time.monotonic() - begun >= 1.5


def test_a_rate_limits_what_is_written_to_the_source_and_no_close(machine: Any) -> None:
    up(machine, "source.max_upload_rate=2MiB")
    root = machine.files("written", {})
    root.mkdir(exist_ok=True)
    with penstock.connect(machine.home.name, start=False) as client:
        client.attach(f"file://{root}", "/runs", writable=True)
        begun = time.monotonic()
        for number in range(10):
            with client.open(f"/runs/{number}", "wb") as file:
                file.write(b"x" * (MIB // 2))
        client.persist("/runs", timeout=60)
        assert time.monotonic() - begun >= 1.5
    assert sum(each.stat().st_size for each in root.iterdir() if each.is_file()) == 5 * MIB


def test_freshness_of_attachments_that_say_nothing(machine: Any) -> None:
    up(machine, "source.freshness=0")
    root = attach(machine, {"a": b"old"})
    assert machine.json("attachments")[0]["freshness"] == {"seconds": 0.0}
    assert machine("cat", "/data/a").stdout == "old"
    (root / "a").write_bytes(b"newer")
    assert machine("cat", "/data/a").stdout == "newer"


def test_max_connections_refuses_one_client_too_many(machine: Any) -> None:
    up(machine, "node.max_connections=1")
    # By a process of its own, which takes its connection along.
    machine("attach", f"file://{machine.files('lake', {'a': b'x'})}", "/data")
    first = _native.Core(str(machine.home.data_socket), "first")
    first.ping()
    failed = machine("ls", "/data", check=1)
    assert "[resource-limit]" in failed.stderr or "[unavailable]" in failed.stderr
    first.close()
    machine.until(lambda: machine("ls", "/data", check=None).returncode == 0)


def test_metrics_port_serves_prometheus_text_or_nothing(machine: Any) -> None:
    with socket.socket() as kept:
        # Taken but not listened at, so that only who permits the same gets the port: the node.
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.bind(("127.0.0.1", 0))
        port = kept.getsockname()[1]
        up(machine, f"node.metrics_port={port}")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
            assert "penstock_source_requests_total" in answer.read().decode()
    machine("down")
    up(machine, "node.metrics_port=off")
    assert machine.json("status")["metrics_port"] is None


def test_drain_timeout_bounds_the_wait_for_reads_under_way(machine: Any, silent: int) -> None:
    up(machine, "node.drain_timeout=500ms", "deadlines.foreground=60s")
    options = ("--endpoint", f"http://127.0.0.1:{silent}", "--credentials", "anonymous", "--no-probe")
    machine("attach", "s3://bucket", "/data", *options)
    reader = machine.spawn(sys.executable, "-m", "penstock.cli", "cat", "/data/a")
    machine.until(lambda: machine.control().status()["in_flight"] > 0)
    machine("down")
    _, told = reader.communicate(timeout=60)
    assert reader.returncode == 1
    assert "[timeout]" not in told, "it waited for its own deadline"
    assert "requests did not finish before the drain's deadline" in machine.home.log_file.read_text()


def test_log_level_says_what_is_kept(machine: Any) -> None:
    up(machine, "log.level=error")
    attach(machine)
    machine("down")
    assert machine.home.log_file.read_text() == ""
    up(machine, "log.level=info")
    machine("down")
    assert "node started" in machine.home.log_file.read_text()


def test_only_so_many_ended_jobs_are_kept(machine: Any) -> None:
    up(machine, "jobs.keep=2")
    attach(machine)
    for _ in range(4):
        machine("evict", "/data")
    assert [job["id"] for job in machine.json("job", "ls")] == ["3", "4"]


def test_the_default_cache_is_chosen_once_and_stays(machine: Any) -> None:
    up(machine)
    size = machine.json("status")["cache"]["tiers"][0]["size_bytes"]
    assert 0 < size <= 50 << 30
    machine("down")
    (machine.home.state / "default-cache-size").write_text(str(5 * MIB))
    up(machine)
    assert machine.json("status")["cache"]["tiers"][0]["size_bytes"] == 5 * MIB
