"""``ls``, ``stat``, ``cat``, ``du``, ``cp``, ``cache``, ``bench``, ``doctor`` as a user gives them."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

LAKE = {
    "train/0001.bin": b"1" * 1000,
    "train/0002.bin": b"2" * 2000,
    "train/deep/0003.bin": b"3" * 3000,
    "read me.txt": "grüße\n".encode(),
    "large.bin": os.urandom(3 << 20),
}


@pytest.fixture
def lake(machine: Any) -> Any:
    root = machine.files("lake", LAKE)
    machine("attach", f"file://{root}", "/data")
    return machine


def test_ls_lists_names_facts_and_everything_below(lake: Any) -> None:
    assert lake("ls", "/data").stdout == "large.bin\nread me.txt\ntrain/\n"
    assert lake("ls").stdout == "data/\n"
    assert lake("ls", "/data/large.bin").stdout == "large.bin\n"
    assert lake("ls", "-r", "/data/train").stdout.split() == ["0001.bin", "0002.bin", "deep/", "deep/0003.bin"]
    assert "2,000" in lake("ls", "-l", "/data/train").stdout
    entries = lake.json("ls", "-r", "penstock:///data")
    assert {each["name"]: each["size"] for each in entries if each["kind"] == "file"} == {
        name: len(content) for name, content in LAKE.items()
    }
    assert lake.json("ls", "/data/train/deep")[0]["version"]


def test_stat_tells_size_time_and_version(lake: Any) -> None:
    known = lake.json("stat", "/data/large.bin")
    assert (known["path"], known["kind"], known["size"]) == ("/data/large.bin", "file", 3 << 20)
    assert known["version"]
    assert "3.0 MiB" in lake("stat", "/data/large.bin").stdout
    assert lake.json("stat", "/data/train")["kind"] == "directory"


def test_cat_writes_exactly_the_bytes(lake: Any) -> None:
    command = [sys.executable, "-m", "penstock.cli", "cat", "/data/large.bin", "/data/read me.txt"]
    done = subprocess.run(command, capture_output=True, env=lake.environment, timeout=60)
    assert done.stdout == LAKE["large.bin"] + LAKE["read me.txt"]


def test_cat_into_a_closed_pipe_is_silent(lake: Any) -> None:
    command = f"{sys.executable} -m penstock.cli cat /data/large.bin | head -c 10 | wc -c"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=lake.environment, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("10", "")


def test_du_sums_up_by_child(lake: Any) -> None:
    known = lake.json("du", "/data")
    assert (known["size"], known["files"]) == (sum(map(len, LAKE.values())), 5)
    assert {each["name"]: each["size"] for each in known["children"]}["train/"] == 6000
    assert "/data (total)" in lake("du", "/data").stdout


def test_cp_brings_files_and_directories_to_the_local_disk(lake: Any) -> None:
    assert "copied 1 file" in lake("cp", "/data/large.bin", ".").stdout
    assert (lake.directory / "large.bin").read_bytes() == LAKE["large.bin"]
    lake("cp", "-r", "/data", "out")
    for name, content in LAKE.items():
        assert (lake.directory / "out" / name).read_bytes() == content
    assert "add -f" in lake("cp", "/data/large.bin", ".", check=1).stderr
    assert "add -r" in lake("cp", "/data/train", ".", check=1).stderr
    assert "[read-only]" in lake("cp", "large.bin", "/data/x", check=1).stderr
    assert "[not-found]" in lake("cp", "/data/none", ".", check=1).stderr


@pytest.mark.parametrize("command", ["ls", "stat", "cat", "du", "preload", "evict", "verify", "bench"])
def test_a_path_that_is_not_there_is_one_clear_line(lake: Any, command: str) -> None:
    failed = lake(command, "/nowhere/x", check=1)
    assert failed.stderr.count("\n") == 1
    assert "[not-found]" in failed.stderr


def test_cat_of_a_directory_says_so(lake: Any) -> None:
    assert "[is-a-directory]" in lake("cat", "/data/train", check=1).stderr


def test_the_cache_is_shown_explained_and_pruned(lake: Any) -> None:
    assert lake.json("cache", "ls") == []
    lake("cat", "/data/train/0001.bin")
    assert lake.json("cache", "why", "/data/train/0001.bin")["complete"]
    assert not lake.json("cache", "why", "/data/large.bin")["complete"]
    assert "never read" in lake("cache", "why", "/data/large.bin").stdout
    lake("preload", "/data", "--wait")
    assert len(lake.json("cache", "ls")) == 5
    assert "large.bin" in lake("cache", "ls").stdout
    lake("pin", "/data/large.bin")
    pruned = lake.json("cache", "prune", "--to", "0")
    assert pruned["remaining_bytes"] >= 3 << 20
    assert [entry["pinned"] for entry in lake.json("cache", "ls")] == [True]
    lake("unpin", "/data/large.bin")
    assert "0 B remain" in lake("cache", "prune", "--to", "0").stdout


def test_a_preload_of_more_than_the_cache_holds_says_so(machine: Any) -> None:
    machine("up", "--set", "cache.size=16MiB")
    root = machine.files("lake", {f"{number}": b"x" * 100_000 for number in range(200)})
    machine("attach", f"file://{root}", "/data")
    assert "not all of it can stay" in machine("preload", "/data", "--wait").stderr
    assert machine("preload", "/data/1", "--wait").stderr == ""


def test_a_node_that_cannot_cache_says_so_when_it_is_started(machine: Any) -> None:
    assert "reads go uncached" in machine("up", "--set", "cache.directory=/proc/nothing").stderr


@pytest.mark.parametrize("freshness", ["0", "immutable"])
def test_an_empty_directory_is_there_by_its_name_as_in_its_parent(machine: Any, freshness: str) -> None:
    root = machine.files("lake", {"a": b"x"})
    (root / "empty").mkdir()
    machine("attach", f"file://{root}", "/data", "--freshness", freshness)
    assert machine.json("stat", "/data/empty")["kind"] == "directory"
    assert machine("ls", "/data").stdout == "a\nempty/\n"
    assert machine("ls", "/data/empty").stdout == ""
    assert machine.json("stat", "/data/empty")["kind"] == "directory"
    assert "not-found" in machine("stat", "/data/none", check=1).stderr


def test_a_pin_of_what_is_not_there_yet_says_so(lake: Any) -> None:
    assert lake("pin", "/data/train").stderr == ""
    assert "nothing has that name yet" in lake("pin", "/data/trian").stderr
    assert lake.json("status")["pins"] == ["/data/train", "/data/trian"]


def test_bench_measures_cold_and_warm_and_says_what_came_from_the_source(lake: Any) -> None:
    lake("preload", "/data", "--wait")
    known = lake.json("bench", "/data", "--cold")
    first, again, batch = known["measurements"]
    assert first["bytes"] == again["bytes"] == batch["bytes"] == sum(map(len, LAKE.values()))
    assert first["bytes_from_source"] >= first["bytes"]
    assert again["bytes_from_source"] == batch["bytes_from_source"] == 0
    assert "read_many" in lake("bench", "/data").stdout


def test_doctor_finds_a_healthy_machine_well(lake: Any) -> None:
    done = lake("doctor", "--json", check=None)
    findings = json.loads(done.stdout)
    subjects = {finding["subject"] for finding in findings}
    assert {"kernel", "fuse", "open files", "home", "configuration", "cache space", "cache speed", "node"} <= subjects
    assert {"version", "source /data"} <= subjects
    levels = {finding["level"] for finding in findings}
    assert done.returncode == (1 if "failure" in levels else 0)
    own = [each for each in findings if each["subject"] in ("node", "version", "home", "configuration")]
    assert {each["level"] for each in own} == {"ok"}


def test_doctor_looks_at_the_disk_that_the_running_node_uses(machine: Any) -> None:
    used = machine.directory / "elsewhere"
    machine("up", "--set", f"cache.directory={used}")
    found = {each["subject"]: each["text"] for each in json.loads(machine("doctor", "--json", check=None).stdout)}
    assert found["cache space"].endswith(f"in {used}")
    assert found["cache speed"].endswith(f"in {used}")


def test_doctor_without_a_node_and_with_a_bad_configuration(machine: Any) -> None:
    machine.home.prepare()
    machine.home.config.write_text("[cache]\nsise = 1\n")
    done = machine("doctor", check=1)
    assert "did you mean cache.size?" in done.stdout
    assert "none runs" in done.stdout


def test_doctor_tells_a_source_that_is_gone(machine: Any) -> None:
    remote = machine.remote({"a": b"x" * (2 << 20)})
    machine("attach", "s3://bucket", "/data", "--endpoint", remote.endpoint, "--credentials", "anonymous")
    text = machine("doctor", check=None).stdout
    assert "credentials anonymous: anonymous" in text
    assert "/s over 2.0 MiB of /data/a" in text
    remote.stop()
    done = machine("doctor", check=1)
    assert "FAILURE  source /data" in done.stdout


def test_json_is_the_only_thing_on_standard_output(lake: Any) -> None:
    for arguments in (
        ("status",),
        ("attachments",),
        ("ls", "/data"),
        ("stat", "/data"),
        ("du", "/data"),
        ("job", "ls"),
        ("cache", "ls"),
        ("config", "show"),
    ):
        lake.json(*arguments)


def test_output_that_cannot_be_written_is_told_and_fails(lake: Any) -> None:
    for arguments in ("cat /data/large.bin", "ls /data"):
        command = f'exec "{sys.executable}" -m penstock.cli {arguments} > /dev/full'
        done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, env=lake.environment)
        assert (done.returncode, done.stderr) == (1, "error: write the output: No space left on device\n")
        command = command.replace("> /dev/full", ">&-")
        done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, env=lake.environment)
        assert (done.returncode, done.stderr) == (0, "")
