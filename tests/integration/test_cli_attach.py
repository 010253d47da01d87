"""``attach``, ``detach``, ``attachments``: what is in the tree, and what a wrong attachment is told."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest


def test_a_directory_is_attached_shown_and_detached(machine: Any) -> None:
    root = machine.files("lake", {"train/a.bin": b"a" * 100, "train/b.bin": b"b" * 200})
    attached = machine.json("attach", f"file://{root}", "/data", "--freshness", "5min")
    assert (attached["path"], attached["healthy"], attached["freshness"]) == ("/data", True, {"seconds": 300})
    assert machine("attachments").stdout.splitlines()[1].split()[:2] == ["/data", f"file://{root}"]
    assert machine("ls", "/data/train").stdout == "a.bin\nb.bin\n"
    assert machine("detach", "/data/").stdout == "detached /data\n"
    assert "nothing is attached" in machine("attachments").stdout
    assert machine.json("attachments") == []
    assert "not-found" in machine("ls", "/data", check=1).stderr


def test_attachments_pins_and_cache_outlive_the_node(machine: Any) -> None:
    root = machine.files("lake", {"a": b"x" * 5000})
    first = machine.json("attach", f"file://{root}", "/data")
    machine("pin", "/data")
    machine("preload", "/data", "--wait")
    machine("down")
    [again] = machine.json("attachments")
    assert (again["id"], again["created"]) == (first["id"], first["created"])
    assert machine.json("status")["pins"] == ["/data"]
    assert machine.json("cache", "why", "/data/a")["complete"]
    machine.kill()
    assert [each["id"] for each in machine.json("attachments")] == [first["id"]]
    assert machine("cat", "/data/a").stdout == "x" * 5000


def test_a_source_that_nobody_asked_since_the_start_is_not_said_to_answer(machine: Any) -> None:
    root = machine.files("lake", {"a": b"x"})
    machine("attach", f"file://{root}", "/data")
    assert machine("attachments").stdout.splitlines()[1].split()[-1] == "ok"
    machine("down")
    machine("up")
    assert machine("attachments").stdout.splitlines()[1].endswith("not asked yet")
    assert machine.json("attachments")[0]["asked"] is False
    machine("cat", "/data/a")
    assert machine("attachments").stdout.splitlines()[1].split()[-1] == "ok"


def test_the_longest_attached_path_wins_and_the_same_path_is_refused(machine: Any) -> None:
    outer = machine.files("outer", {"inner/x": b"outer", "y": b"outer"})
    inner = machine.files("inner", {"x": b"inner"})
    machine("attach", f"file://{outer}", "/data")
    machine("attach", f"file://{inner}", "/data/inner")
    assert machine("cat", "/data/inner/x", "/data/y").stdout == "innerouter"
    assert "[already-exists]" in machine("attach", f"file://{inner}", "/data", check=1).stderr
    machine("detach", "/data/inner")
    assert machine("cat", "/data/inner/x").stdout == "outer"


def test_a_missing_directory_fails_at_once_and_nothing_is_half_attached(machine: Any) -> None:
    refused = machine("attach", f"file://{machine.directory}/none", "/data", check=1)
    assert refused.stderr.count("\n") == 1
    assert machine.json("attachments") == []
    assert list(machine.home.attachments.iterdir()) == []
    machine("attach", f"file://{machine.directory}/none", "/data", "--no-probe", check=None)


@pytest.mark.parametrize("silent", [True, False], ids=["silent", "refusing"])
def test_an_endpoint_that_does_not_answer_fails_within_the_deadline(machine: Any, silent: bool) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        if silent:
            listener.listen()
        machine("up", "--set", "deadlines.attach=2s")
        refused = machine(
            *("attach", "s3://bucket/x", "/data", "--endpoint", f"http://127.0.0.1:{port}"),
            *("--credentials", "anonymous"),
            check=1,
        )
    assert ("no listing came within 2 s" if silent else "nothing listens") in refused.stderr
    # As many tries as are made may take longer than two seconds.
    assert "[timeout]" in refused.stderr or "[unavailable]" in refused.stderr
    assert machine.json("attachments") == []


def test_missing_credentials_are_told_with_the_fix(machine: Any) -> None:
    refused = machine(
        *("attach", "s3://bucket", "/data", "--endpoint", "http://127.0.0.1:9", "--credentials", "profile:nobody"),
        check=None,
        AWS_CONFIG_FILE="/none",
        AWS_SHARED_CREDENTIALS_FILE="/none",
        AWS_EC2_METADATA_DISABLED="true",
    )
    assert refused.returncode in (1, 2)
    assert "nobody" in refused.stderr
    assert machine.json("attachments") == []


def test_a_bucket_of_the_simulated_remote_is_read(machine: Any) -> None:
    remote = machine.remote({"p/a": b"hello"})
    options = ("--endpoint", remote.endpoint, "--credentials", "anonymous")
    machine("attach", "s3://bucket/p", "/data", *options)
    assert machine("cat", "/data/a").stdout == "hello"
    missing = machine("attach", "s3://other", "/other", *options, check=1)
    assert "other" in missing.stderr
    [shown] = machine.json("attachments")
    assert shown["url"] == "s3://bucket/p"
    assert shown["identity"] == "anonymous"


def test_a_prefix_with_nothing_in_it_is_attached_with_a_note(machine: Any) -> None:
    remote = machine.remote({"train/a": b"content"})
    options = ("--endpoint", remote.endpoint, "--credentials", "anonymous")
    assert "nothing is below trian/ yet" in machine("attach", "s3://bucket/trian", "/slip", *options).stderr
    assert "if that is one object" in machine("attach", "s3://bucket/train/a", "/object", *options).stderr
    assert machine("attach", "s3://bucket/train", "/data", *options).stderr == ""


def test_no_secret_reaches_documents_logs_or_answers(machine: Any) -> None:
    remote = machine.remote({"a": b"hello"})
    machine(
        *("attach", "s3://bucket", "/data", "--endpoint", remote.endpoint, "--credentials", "env"),
        check=None,
        AWS_ACCESS_KEY_ID="AKIAIOSFODNN7EXAMPLE",
        AWS_SECRET_ACCESS_KEY="wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY",
    )
    said = json.dumps([machine.control().status(), machine.control().attachments()])
    written = "".join(
        path.read_text(errors="replace")
        for path in Path(machine.home.name).rglob("*")
        if path.is_file() and path.suffix in (".json", ".jsonl", ".err")
    )
    assert "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY" not in said + written
    assert "AKIAIOSFODNN7EXAMPLE" not in said + written


def test_start_never_waits_for_a_source(machine: Any) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        options = ("--endpoint", f"http://127.0.0.1:{port}", "--credentials", "anonymous", "--no-probe")
        for number in range(5):
            machine("attach", f"s3://bucket{number}", f"/data{number}", *options)
        machine.kill()
        machine("up")
        assert len(machine.json("attachments")) == 5
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_pins_are_refused_outside_attachments_and_removed_by_their_own_path(machine: Any) -> None:
    machine("attach", "memory://m", "/m")
    assert "[not-found]" in machine("pin", "/elsewhere", check=1).stderr
    machine("pin", "/m/a/")
    assert "pin is on /m/a" in machine("unpin", "/m/a/b", check=1).stderr
    machine("unpin", "/m/a")
    assert machine.json("status")["pins"] == []


def test_documents_are_private(machine: Any) -> None:
    machine("attach", "memory://m", "/m")
    [document] = machine.home.attachments.iterdir()
    assert document.stat().st_mode & 0o077 == 0
