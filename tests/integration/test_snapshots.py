"""``snapshot create``, ``ls``, ``show``, ``diff``, ``rm``: frozen paths, and what a wrong command is told."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

FILES = {"train/a.bin": b"a" * 1000, "train/deep/b.bin": b"b" * 50, "train/deep.x": b"", "other": b"o"}


@pytest.fixture
def lake(machine: Any) -> Any:
    machine("attach", f"file://{machine.files('lake', FILES)}", "/data", "--freshness", "1h")
    return machine


def test_a_snapshot_says_what_was_frozen(lake: Any) -> None:
    told = lake("snapshot", "create", "/data/train", "--name", "v1").stdout
    assert told == "made snapshot v1 of /data/train: 3 files, 1.0 KiB\n"
    [known] = lake.json("snapshot", "ls")
    assert (known["name"], known["path"], known["files"], known["size_bytes"]) == ("v1", "/data/train", 3, 1050)
    assert known["attachment"]["source"] == {"kind": "file", "directory": str(lake.directory / "lake")}
    files = {each["path"]: each for each in lake.json("snapshot", "show", "v1", "--files")}
    assert {path: each["size"] for path, each in files.items()} == {"a.bin": 1000, "deep/b.bin": 50, "deep.x": 0}
    assert files["a.bin"]["version"] == lake.json("stat", "/data/train/a.bin")["version"]
    assert "a.bin" in lake("snapshot", "show", "v1", "--files").stdout
    assert lake.json("snapshot", "create", "/data", "--name", "all")["files"] == 4


def test_a_snapshot_is_of_now_whatever_is_believed_of_the_source(lake: Any) -> None:
    source = lake.directory / "lake/train"
    lake("ls", "/data/train")
    (source / "new").write_bytes(b"new")
    assert lake.json("snapshot", "create", "/data/train", "--name", "v1")["files"] == 4
    (source / "a.bin").write_bytes(b"A" * 1001)
    (source / "new").unlink()
    (source / "newer").write_bytes(b"newer")
    changes = {"added": 1, "removed": 1, "changed": 1}
    first = [["changed", "a.bin"], ["removed", "new"], ["added", "newer"]]
    assert lake.json("snapshot", "diff", "v1") == {**changes, "first": first}
    lines = ["~ a.bin", "- new", "+ newer", "1 added, 1 removed, 1 changed"]
    assert lake("snapshot", "diff", "v1").stdout.splitlines() == lines
    lake("snapshot", "create", "/data/train", "--name", "v2")
    assert lake.json("snapshot", "diff", "v2", "v1")["added"] == 1
    assert lake("snapshot", "diff", "v2").stdout == "0 added, 0 removed, 0 changed\n"
    assert [file.name for file in lake.home.snapshots.iterdir() if not file.name.endswith(".snapshot")] == []


def test_snapshots_survive_their_node_and_go_when_they_are_removed(lake: Any) -> None:
    lake("snapshot", "create", "/data/train", "--name", "v1")
    lake.kill()
    lake("up")
    assert [each["name"] for each in lake.json("snapshot", "ls")] == ["v1"]
    assert lake("snapshot", "rm", "v1").stdout == "removed snapshot v1\n"
    assert lake.json("snapshot", "ls") == []
    assert lake("snapshot", "ls").stdout.startswith("there is no snapshot")


@pytest.mark.parametrize(
    ("command", "code", "needle"),
    [
        (("create", "/data/none", "--name", "x"), 1, "nothing has that name"),
        (("create", "/data/other", "--name", "x"), 1, "it is a file"),
        (("create", "/elsewhere", "--name", "x"), 1, "nothing is attached"),
        (("create", "/", "--name", "x"), 1, "nothing is attached"),
        (("create", "/data", "--name", "../x"), 2, "no name for one"),
        (("create", "/data", "--name", "v1"), 1, "there is a snapshot v1 already"),
        (("show", "none"), 1, "there is none of that name"),
        (("diff", "v1", "none"), 1, "there is none of that name"),
        (("rm", "none"), 1, "there is none of that name"),
        (("mount", "none", "/tmp"), 1, "there is none of that name"),
        (("mount", "v1", "/proc/none"), 1, "no such directory"),
    ],
)
def test_a_wrong_command_is_told_why(lake: Any, command: tuple[str, ...], code: int, needle: str) -> None:
    lake("snapshot", "create", "/data/train", "--name", "v1")
    assert needle in lake("snapshot", *command, check=code).stderr
    assert [each["name"] for each in lake.json("snapshot", "ls")] == ["v1"]


def test_what_lies_above_another_attachment_is_not_frozen_without_it(lake: Any) -> None:
    lake("attach", f"file://{lake.files('more', {'x': b'x'})}", "/data/train/more")
    told = lake("snapshot", "create", "/data", "--name", "x", check=1).stderr
    assert "/data/train/more is attached below it" in told
    assert lake.json("snapshot", "create", "/data/train/more", "--name", "x")["files"] == 1


def test_a_damaged_document_is_told_of_and_nothing_else_fails(lake: Any) -> None:
    lake("snapshot", "create", "/data/train", "--name", "v1")
    directory: Path = lake.home.snapshots
    (directory / "bad.snapshot").write_bytes(os.urandom(1000))
    short = (directory / "v1.snapshot").read_bytes()[:-1]
    (directory / "short.snapshot").write_bytes(short)
    problems = {each["name"]: each["problem"] for each in lake.json("snapshot", "ls")}
    assert problems["v1"] is None
    assert all("does not end as a snapshot does" in problems[name] for name in ("bad", "short"))
    assert json.loads(lake("snapshot", "show", "v1", "--check", "--json").stdout)["files"] == 3
    assert "does not end as a snapshot does" in lake("snapshot", "show", "bad", check=1).stderr
    lake("snapshot", "rm", "bad")
