"""Large files that are sent while they are written: soon in the source, each byte once, and nothing left behind."""

from __future__ import annotations

import http.client
import os
import re
from typing import Any

import pytest

import penstock

MIB = 1 << 20
PIECE = bytes(range(256)) * 4096
LARGE = 40


@pytest.fixture
def runs(machine: Any) -> Any:
    """A machine with a simulated remote at ``/runs``."""
    machine.store = machine.remote({})
    machine.client = penstock.connect(machine.home.name)
    where = {"endpoint": machine.store.endpoint, "credentials": "anonymous"}
    machine.client.attach("s3://bucket/runs", "/runs", writable=True, **where)
    yield machine
    machine.client.close()


def ask(machine: Any, target: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(machine.store.endpoint.removeprefix("http://"), timeout=30)
    connection.request("GET", target)
    response = connection.getresponse()
    answer = (response.status, response.read())
    connection.close()
    return answer


def uploads(machine: Any) -> list[bytes]:
    """Keys of the multipart uploads that the store has under way."""
    return re.findall(rb"<Upload>.*?<Key>(.*?)</Key>", ask(machine, "/bucket?uploads")[1], re.DOTALL)


def metric(machine: Any, name: str) -> int:
    value: int = machine.client.status()["metrics"][name]
    return value


def test_a_node_that_is_killed_while_it_sends_a_file_leaves_no_upload_after_its_next_start(runs: Any) -> None:
    file = runs.client.open("/runs/half.bin", "wb")
    for _ in range(LARGE):
        file.write(PIECE)
    runs.until(lambda: metric(runs, "stream_bytes") > 0)
    assert uploads(runs) == [b"runs/half.bin"]
    runs.kill()
    with pytest.raises(penstock.errors.PenstockError):
        file.close()
    runs.client = penstock.connect(runs.home.name)
    runs.until(lambda: uploads(runs) == [])
    assert ask(runs, "/bucket/runs/half.bin")[0] == 404
    assert [each["size"] for each in runs.client.status()["stage"]["recovered"]] == [LARGE * MIB]


def test_what_was_sent_before_a_kill_is_used_after_it(runs: Any) -> None:
    with runs.client.open("/runs/model.bin", "wb") as file:
        for _ in range(LARGE):
            file.write(PIECE)
        runs.until(lambda: metric(runs, "stream_bytes") == LARGE * MIB)
        assert ask(runs, "/bucket/runs/model.bin")[0] == 404
    runs.kill()
    runs.client = penstock.connect(runs.home.name)
    runs.client.persist("/runs", timeout=60)
    assert ask(runs, "/bucket/runs/model.bin") == (200, PIECE * LARGE)
    assert uploads(runs) == []


def test_a_file_that_is_written_through_a_mount_is_sent_as_it_grows_and_patched_at_its_end(
    runs: Any, can_mount: None
) -> None:
    mount = runs.target()
    runs("mount", str(mount), "--path", "/runs")
    content = bytearray(PIECE * LARGE)
    with (mount / "archive.zip").open("wb", buffering=0) as file:
        for _ in range(LARGE):
            file.write(PIECE)
        runs.until(lambda: metric(runs, "stream_bytes") == LARGE * MIB)
        content[8:12] = b"HEAD"
        os.pwrite(file.fileno(), b"HEAD", 8)
    runs.client.persist("/runs", timeout=60)
    assert ask(runs, "/bucket/runs/archive.zip") == (200, bytes(content))
    assert metric(runs, "stream_bytes_again") == 8 * MIB
    # A name that is given for a while: sent once, under the last one.
    with (mount / ".tmpQx7").open("wb", buffering=0) as file:
        for _ in range(LARGE):
            file.write(PIECE)
    (mount / ".tmpQx7").rename(mount / "model.safetensors")
    runs.client.persist("/runs", timeout=60)
    assert ask(runs, "/bucket/runs/model.safetensors") == (200, PIECE * LARGE)
    assert metric(runs, "stream_bytes") == LARGE * MIB
    # One that is renamed all the same leaves no upload.
    with (mount / "first.bin").open("wb", buffering=0) as file:
        for _ in range(LARGE):
            file.write(PIECE)
        runs.until(lambda: metric(runs, "stream_bytes") == 2 * LARGE * MIB)
    (mount / "first.bin").rename(mount / "second.bin")
    runs.client.persist("/runs", timeout=60)
    assert ask(runs, "/bucket/runs/second.bin") == (200, PIECE * LARGE)
    assert ask(runs, "/bucket/runs/first.bin")[0] == 404
    runs.until(lambda: uploads(runs) == [])
    runs("umount", str(mount))
