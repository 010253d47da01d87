"""The control API over a core that is not real: documents, pins, jobs, errors."""

import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from penstock import config
from penstock.errors import (
    ERROR_TYPES,
    AlreadyExistsError,
    DiskError,
    NotFoundError,
    PermissionDeniedError,
    UnavailableError,
)
from penstock.home import Home, locate
from penstock.jobs import JobRunner, JobStore
from penstock.policies.attachments import request
from penstock.server import service as services
from penstock.server.api import STATUS_OF_CODE, create_app
from penstock.server.service import NodeService

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it would rather have another HTTP client
    from fastapi.testclient import TestClient

DEADLINE_S = 20.0


class FakeCore:
    """Attaches in memory, as the core does."""

    def __init__(self) -> None:
        self.specs: dict[str, Any] = {}
        self.pins: list[str] = []
        self.kept: list[tuple[str, str, bool]] = []
        self.decided: int | None = None
        self.probes: list[bool] = []
        self.clients = 0
        self.staged_files = 0
        self.capabilities = {"weak_versions": False, "read_only": False, "conditional_replace": True}
        self.refuse: Exception | None = None

    def attach(self, spec_json: str, probe: bool) -> str:
        spec = json.loads(spec_json)
        self.probes.append(probe)
        if self.refuse is not None:
            raise self.refuse
        if spec["path"] in self.specs:
            raise AlreadyExistsError(f"attach {spec['path']}", "something is attached there")
        self.specs[spec["path"]] = spec
        return json.dumps(self._status(spec))

    def detach(self, path: str) -> None:
        if path not in self.specs:
            raise NotFoundError(f"detach {path}", "nothing is attached there")
        del self.specs[path]

    def probe(self, path: str) -> str:
        if path not in self.specs:
            raise NotFoundError(f"probe {path}", "nothing is attached at that path")
        if self.refuse is not None:
            raise self.refuse
        return json.dumps({**self._status(self.specs[path]), "latency_ms": 3.0})

    def attachments(self) -> str:
        return json.dumps([self._status(spec) for spec in self.specs.values()])

    def status(self) -> str:
        metrics = {"clients": self.clients, "source_bytes": 7, "cache_hit_bytes": 9}
        stage = {
            "files": self.staged_files,
            "bytes": 3 * self.staged_files,
            "failures": [{"attachment": spec["id"], "key": f"{spec['prefix']}a"} for spec in self.specs.values()],
            "conflicted": [{"attachment": "gone", "key": "b"}],
        }
        known = {"metrics": metrics, "hit_ratio": 0.5, "memory_budget_bytes": 1, "cache": {"tiers": []}, "stage": stage}
        return json.dumps(known)

    def metrics_port(self) -> int | None:
        return None

    def set_pins(
        self, paths: Sequence[str], kept: Sequence[tuple[str, str, bool]] = (), decided: int | None = None, /
    ) -> None:
        self.pins, self.kept, self.decided = list(paths), list(kept), decided

    def written(self) -> tuple[int, int]:
        return (0, 0)

    def prune(self, target_bytes: int) -> str:
        return json.dumps({"freed_bytes": 5, "remaining_bytes": target_bytes})

    def _status(self, spec: Any) -> dict[str, Any]:
        return {"spec": spec, "healthy": True, "failure": None, "capabilities": self.capabilities}


class FakeTree:
    def stat(self, path: str) -> Any:
        raise NotFoundError(f"stat {path}", "no such file")

    def close(self) -> None:
        return


class Bench:
    def __init__(self, home: Home, *flags: str) -> None:
        self.home, self.core = home, FakeCore()
        home.prepare()
        settings = config.load(home, flags=flags, environment={}, system_file=home.name / "none").settings
        jobs = JobRunner(JobStore(home.jobs), FakeTree)  # type: ignore[arg-type]
        self.service = NodeService(home, settings, self.core, jobs)
        self.service.restore()
        self.http = TestClient(create_app(self.service))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return locate(tmp_path / "h", {})


@pytest.fixture
def bench(home: Home) -> Iterator[Bench]:
    made = Bench(home)
    yield made
    made.service.jobs.stop(DEADLINE_S)


def test_an_attachment_is_kept_and_attached_again_without_asking_the_source(bench: Bench, home: Home) -> None:
    answer = bench.http.post("/v1/attachments", json=request("s3://bucket/train", "/data", freshness="5min"))
    assert answer.status_code == 201
    assert (answer.json()["url"], answer.json()["healthy"]) == ("s3://bucket/train", True)
    again = Bench(home)
    assert again.core.probes == [False]
    shown = again.http.get("/v1/attachments").json()
    assert [(each["id"], each["path"], each["freshness"]) for each in shown] == [
        (answer.json()["id"], "/data", {"seconds": 300.0})
    ]


def test_the_configured_freshness_is_taken_where_an_attachment_leaves_it_open(home: Home) -> None:
    bench = Bench(home, "source.freshness=immutable")
    bench.http.post("/v1/attachments", json=request("memory://m", "/m"))
    assert bench.core.specs["/m"]["freshness"] == "immutable"


def test_a_refused_attach_leaves_nothing(bench: Bench, home: Home) -> None:
    bench.core.refuse = PermissionDeniedError("attach /data", "the key is unknown", "check the profile")
    answer = bench.http.post("/v1/attachments", json=request("s3://bucket", "/data"))
    assert answer.status_code == 403
    assert answer.json() == {
        "code": "permission-denied",
        "message": "attach /data: the key is unknown; check the profile",
        "action": "attach /data",
        "reason": "the key is unknown",
        "advice": "check the profile",
    }
    assert list(home.attachments.iterdir()) == []
    assert bench.http.get("/v1/attachments").json() == []


def test_an_attachment_whose_document_cannot_be_kept_is_undone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("penstock.server.attachments.write_atomically", full)
    answer = bench.http.post("/v1/attachments", json=request("memory://m", "/m"))
    assert answer.json()["code"] == DiskError.code
    assert bench.core.specs == {}


def test_the_same_path_is_refused_and_a_nested_one_is_not(bench: Bench) -> None:
    assert bench.http.post("/v1/attachments", json=request("memory://m", "/a")).status_code == 201
    assert bench.http.post("/v1/attachments", json=request("memory://n", "/a/")).status_code == 409
    assert bench.http.post("/v1/attachments", json=request("memory://n", "/a/b")).status_code == 201


def test_an_attachment_that_fails_at_start_is_shown_with_its_reason_and_can_be_replaced(
    bench: Bench, home: Home
) -> None:
    bench.http.post("/v1/attachments", json=request("memory://m", "/m"))
    again = NodeService(home, bench.service.settings, FakeCore(), bench.service.jobs)
    again.core.refuse = UnavailableError("attach /m", "no such profile")  # type: ignore[attr-defined]
    again.attachments.restore()
    [shown] = again.attachments.all()
    assert (shown["healthy"], shown["reason"]) == (False, "attach /m: no such profile")
    again.core.refuse = None  # type: ignore[attr-defined]
    assert again.attach({**request("memory://n", "/m")})["healthy"]
    assert len(list(home.attachments.iterdir())) == 1


def test_a_document_from_before_there_was_writing_is_read_only_and_asks_for_no_attributes(
    bench: Bench, home: Home
) -> None:
    bench.http.post("/v1/attachments", json=request("memory://m", "/m"))
    [file] = home.attachments.iterdir()
    document = json.loads(file.read_text())
    del document["write"], document["posix"]
    file.write_text(json.dumps(document))
    again = Bench(home)
    assert (again.core.specs["/m"]["write"], again.core.specs["/m"]["posix"]) == (None, False)
    assert again.http.get("/v1/attachments").json()[0]["write_text"] == "read-only"


def test_a_writable_attachment_tells_the_core_how_and_is_so_again_after_a_restart(bench: Bench, home: Home) -> None:
    body = request("memory://m", "/m", writable=True, durability="source")
    assert bench.http.post("/v1/attachments", json=body).json()["write_text"] == "source"
    assert bench.core.specs["/m"]["write"] == {"durability": "source", "single_writer": False}
    assert Bench(home).core.specs["/m"] == bench.core.specs["/m"]


@pytest.mark.parametrize(
    ("capability", "code"), [({"read_only": True}, "read-only"), ({"conditional_replace": False}, "unsupported")]
)
def test_a_source_that_cannot_be_written_safely_is_not_left_attached(
    bench: Bench, home: Home, capability: dict[str, bool], code: str
) -> None:
    bench.core.capabilities |= capability
    refused = bench.http.post("/v1/attachments", json=request("memory://m", "/m", writable=True))
    assert refused.json()["code"] == code
    assert bench.core.specs == {}
    assert list(home.attachments.iterdir()) == []
    assert bench.http.post("/v1/attachments", json=request("memory://m", "/m")).status_code == 201


def test_a_configured_freshness_that_would_hide_writes_is_refused(home: Home) -> None:
    bench = Bench(home, "source.freshness=immutable")
    refused = bench.http.post("/v1/attachments", json=request("memory://m", "/m", writable=True)).json()
    assert (refused["code"], bench.core.specs) == ("invalid-input", {})
    assert "could not be seen to change" in refused["message"]


def test_a_damaged_document_is_a_problem_and_not_the_end(bench: Bench, home: Home) -> None:
    bench.http.post("/v1/attachments", json=request("memory://m", "/m"))
    (home.attachments / "broken.json").write_text("{")
    (home.attachments / "newer.json").write_text(
        (next(home.attachments.glob("[0-9a-f]*.json"))).read_text().replace('"format": 1', '"format": 2')
    )
    again = Bench(home)
    problems = again.http.get("/v1/status").json()["problems"]
    assert len(problems) == 2
    assert len(again.http.get("/v1/attachments").json()) == 1


def test_a_source_is_asked_again_on_request(bench: Bench) -> None:
    bench.http.post("/v1/attachments", json=request("memory://m", "/m"))
    assert bench.http.get("/v1/attachments/probe", params={"path": "/m/"}).json()["latency_ms"] == 3
    assert bench.http.get("/v1/attachments/probe", params={"path": "/n"}).json()["code"] == "not-found"
    bench.core.refuse = UnavailableError("probe /m", "no answer")
    assert bench.http.get("/v1/attachments/probe", params={"path": "/m"}).json()["code"] == "unavailable"


def test_detach_forgets_the_document(bench: Bench, home: Home) -> None:
    bench.http.post("/v1/attachments", json=request("memory://m", "/m"))
    assert bench.http.delete("/v1/attachments", params={"path": "/m/"}).status_code == 204
    assert list(home.attachments.iterdir()) == []
    missing = bench.http.delete("/v1/attachments", params={"path": "/m"})
    assert (missing.status_code, missing.json()["code"]) == (404, "not-found")


def test_documents_never_hold_a_secret_and_only_the_user_reads_them(bench: Bench, home: Home) -> None:
    bench.http.post("/v1/attachments", json=request("s3://bucket", "/data", credentials="profile:team"))
    [document] = home.attachments.iterdir()
    assert document.stat().st_mode & 0o077 == 0
    assert json.loads(document.read_text())["source"]["credentials"] == "profile:team"


def test_pins_are_kept_and_told_to_the_core_again_after_every_attach(bench: Bench, home: Home) -> None:
    bench.http.post("/v1/attachments", json=request("memory://m", "/m"))
    assert bench.http.post("/v1/pins", json={"path": "/m/a/"}).json() == ["/m/a"]
    assert bench.core.pins == ["/m/a"]
    bench.core.pins = []
    bench.http.post("/v1/attachments", json=request("memory://n", "/n"))
    assert bench.core.pins == ["/m/a"]
    assert Bench(home).core.pins == ["/m/a"]
    assert bench.http.delete("/v1/pins", params={"path": "/m/a"}).json() == []
    missing = bench.http.delete("/v1/pins", params={"path": "/m/a"})
    assert missing.json()["code"] == "not-found"


def test_a_pin_outside_every_attachment_is_refused(bench: Bench) -> None:
    assert bench.http.post("/v1/pins", json={"path": "/nowhere"}).status_code == 404


def test_unpin_below_a_pin_names_the_pin(bench: Bench) -> None:
    bench.http.post("/v1/attachments", json=request("memory://m", "/m"))
    bench.http.post("/v1/pins", json={"path": "/m"})
    assert "the pin is on /m" in bench.http.delete("/v1/pins", params={"path": "/m/a"}).json()["message"]


def test_a_job_is_queued_watched_and_removed(bench: Bench) -> None:
    bench.http.post("/v1/attachments", json=request("memory://m", "/m"))
    job = bench.http.post("/v1/jobs", json={"kind": "preload", "path": "/m", "options": {"max_bytes_per_s": 5}}).json()
    assert job["options"] == {"max_bytes_per_s": 5}
    shown = bench.http.get(f"/v1/jobs/{job['id']}", params={"wait_s": 20}).json()
    assert (shown["state"], shown["error"]["code"]) == ("failed", "not-found")
    assert [each["id"] for each in bench.http.get("/v1/jobs").json()] == [job["id"]]
    assert bench.http.post(f"/v1/jobs/{job['id']}/retry").json()["state"] in ("queued", "running")
    bench.service.jobs.wait(job["id"], DEADLINE_S)
    assert bench.http.delete(f"/v1/jobs/{job['id']}").status_code == 204
    assert bench.http.get("/v1/jobs/99").json()["code"] == "not-found"


def test_a_job_outside_every_attachment_is_refused_at_once(bench: Bench) -> None:
    answer = bench.http.post("/v1/jobs", json={"kind": "evict", "path": "/nowhere"})
    assert answer.json()["code"] == "not-found"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/jobs", {"kind": "dance", "path": "/"}),
        ("POST", "/v1/jobs", {"kind": "preload", "path": "relative"}),
        ("POST", "/v1/jobs", {"kind": "preload", "path": "/", "colour": "blue"}),
        ("POST", "/v1/attachments", {"path": "/a", "source": {"kind": "gs"}}),
        ("POST", "/v1/attachments", {"path": "/a", "source": {"kind": "memory", "name": "m"}, "freshness": "x"}),
        ("POST", "/v1/attachments", {**request("memory://m", "/a"), "write": {"durability": "replicated"}}),
        ("POST", "/v1/cache/prune", {"size_bytes": -1}),
        ("POST", "/v1/pins", {}),
        ("DELETE", "/v1/attachments", None),
        ("POST", "/v1/mounts", {"path": "/"}),
        ("POST", "/v1/mounts", {"target": "relative"}),
        ("POST", "/v1/mounts", {"target": "/"}),
        ("POST", "/v1/mounts", {"target": "/mnt", "path": "relative"}),
        ("POST", "/v1/mounts", {"target": "/mnt", "file_mode": 4096}),
        ("POST", "/v1/mounts", {"target": "/mnt", "uid": -1}),
        ("DELETE", "/v1/mounts", None),
        ("DELETE", "/v1/mounts?target=relative", None),
    ],
)
def test_a_request_that_cannot_be_right_is_answered_like_every_error(
    bench: Bench, method: str, path: str, body: Any
) -> None:
    answer = bench.http.request(method, path, json=body)
    assert answer.status_code == 400
    assert answer.json()["code"] == "invalid-input"
    assert set(answer.json()) == {"code", "message", "action", "reason", "advice"}


def test_an_unknown_request_points_at_version_skew(bench: Bench) -> None:
    answer = bench.http.get("/v2/dance")
    assert answer.status_code == 404
    assert "restart the node" in answer.json()["advice"]


def test_a_defect_is_answered_with_words_and_no_trace(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(bench.service, "status", broken)
    answer = bench.http.get("/v1/status")
    assert answer.status_code == 500
    assert answer.json()["code"] == "internal"
    assert "Traceback" not in answer.text


def test_status_shows_what_an_operator_asks_for(bench: Bench) -> None:
    status = bench.http.get("/v1/status").json()
    assert {"pid", "hit_ratio", "bytes_from_source", "bytes_from_cache", "in_flight", "backlog_bytes", "memory"} <= set(
        status
    )
    assert {"cache", "attachments", "jobs", "pins", "problems", "version", "home", "metrics_port"} <= set(status)
    assert status["memory"]["resident_bytes"] > 1 << 20
    bench.core.staged_files = 2
    status = bench.http.get("/v1/status").json()
    assert (status["backlog_bytes"], status["stage"]["files"]) == (6, 2)
    assert status["stage"]["directory"] == str(bench.home.stage)


def test_what_fails_is_named_as_the_tree_has_it(bench: Bench) -> None:
    bench.http.post("/v1/attachments", json=request("s3://bucket/prefix", "/m"))
    stage = bench.http.get("/v1/status").json()["stage"]
    assert [each["path"] for each in stage["failures"]] == ["/m/a"]
    assert [each["path"] for each in stage["conflicted"]] == [None]


def test_prune_asks_the_core(bench: Bench) -> None:
    answer = bench.http.post("/v1/cache/prune", json={"size_bytes": 3}).json()
    assert answer == {"freed_bytes": 5, "remaining_bytes": 3}


def test_a_node_is_idle_without_clients_jobs_and_mounts_and_busy_with_them(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(services.time, "monotonic", lambda: now[0])
    bench.http.get("/v1/status")
    now[0] = 1000.0
    assert bench.service.idle_s() == 900
    bench.core.clients = 1
    assert bench.service.idle_s() == 0
    bench.core.clients = 0
    now[0] = 1500.0
    assert bench.service.idle_s() == 500
    bench.http.get("/v1/pins")
    assert bench.service.idle_s() == 0
    now[0] = 2000.0
    bench.core.staged_files = 1
    assert bench.service.idle_s() == 0
    bench.core.staged_files = 0
    now[0] = 2500.0
    assert bench.service.idle_s() == 500
    monkeypatch.setattr(bench.service.mounts, "in_use", lambda: True)
    assert bench.service.idle_s() == 0


def test_every_error_code_has_a_fitting_status() -> None:
    assert set(STATUS_OF_CODE) == set(ERROR_TYPES)
    assert all(400 <= status < 600 for status in STATUS_OF_CODE.values())
