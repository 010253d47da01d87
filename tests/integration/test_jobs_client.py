"""Jobs as a Python program asks for them."""

from collections.abc import Iterator
from typing import Any

import pytest

import penstock
from fault.store import Gate, Store
from penstock.errors import InvalidInputError, NotFoundError, TimedOutError


@pytest.fixture
def client(machine: Any) -> Iterator[Any]:
    root = machine.files("lake", {f"{number:03}": b"x" * 1000 for number in range(50)})
    machine("attach", f"file://{root}", "/data", "--freshness", "immutable")
    with penstock.connect(machine.home.name, start=False) as made:
        yield made


def test_a_preload_is_waited_for_and_tells_what_it_did(client: Any) -> None:
    job = client.preload("/data")
    done = job.wait(timeout_s=60)
    assert (job.state, done["done_files"], done["results"]) == ("finished", 50, {"fetched_bytes": 50_000})
    assert client.why("/data/007")["complete"]
    assert client.evict("/data").wait()["results"]["freed_bytes"] >= 50_000
    assert client.verify("/data").wait()["results"]["pages"] == 0
    assert [each.state for each in client.jobs()] == ["finished"] * 3
    assert "preload /data (finished)" in repr(client.jobs()[0])


def test_a_job_that_fails_as_a_whole_raises_its_error(client: Any) -> None:
    with pytest.raises(NotFoundError):
        client.preload("/data/none").wait()
    with pytest.raises(NotFoundError, match="nothing is attached there"):
        client.preload("/elsewhere")
    with pytest.raises(InvalidInputError, match="leave it out for no limit"):
        client.preload("/data", max_bytes_per_s=0)


def test_a_wait_that_is_over_leaves_the_job_alone(machine: Any) -> None:
    with Store() as store:
        for number in range(20):
            store.put(f"{number}", b"x" * 1000)
        gate = Gate(store)
        machine("attach", "s3://bucket", "/slow", "--endpoint", store.endpoint, "--credentials", "anonymous")
        with penstock.connect(machine.home.name) as client:
            job = client.preload("/slow")
            with pytest.raises(TimedOutError, match="wait again"):
                job.wait(timeout_s=0.2)
            job.cancel()
            gate.open()
            assert job.wait()["state"] == "cancelled"
            job.retry()
            assert job.wait()["done_files"] == 20


def test_connecting_starts_a_node_and_attachments_are_managed_from_python(
    machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in machine.environment.items():
        monkeypatch.setenv(name, value)
    root = machine.files("lake", {"a": b"hello"})
    with penstock.connect() as client:
        attached = client.attach(f"file://{root}", "/data", freshness="5min")
        assert [each["id"] for each in client.attachments()] == [attached["id"]]
        client.pin("/data")
        assert client.status()["pins"] == ["/data"]
        client.unpin("/data")
        assert bytes(client.read_many(["/data/a"])[0]) == b"hello"
        with pytest.raises(NotFoundError):
            client.read_many(["/data/a", "/data/none"])
        good, bad = client.read_many(["/data/a", "/data/none"], return_errors=True)
        assert (bytes(good), bad.code) == (b"hello", "not-found")
        client.detach("/data")
        assert client.attachments() == []
        machine.pid()
