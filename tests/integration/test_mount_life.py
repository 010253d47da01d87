"""Mounts outlive their node, however it ends, and end when somebody takes them away."""

import contextlib
import hashlib
import itertools
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import penstock
from penstock.errors import PenstockError

pytestmark = pytest.mark.usefixtures("can_mount")

CONTENT = os.urandom(3 << 20)


@pytest.fixture
def lake(machine: Any) -> Any:
    """A machine with /data attached and everything mounted."""
    machine("attach", f"file://{machine.files('lake', {'a.bin': CONTENT})}", "/data")
    machine("mount", str(machine.target()))
    return machine


def log(machine: Any) -> str:
    return str(machine.home.log_file.read_text())


def shows(path: Path) -> bool:
    """Whether the content is there; nothing is where a mount is being made."""
    try:
        return hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(CONTENT).digest()
    except OSError:
        return False


def test_a_killed_node_leaves_dead_mounts_that_the_next_one_heals(lake: Any) -> None:
    path = lake.directory / "mnt/data/a.bin"
    [before] = lake.json("mounts")
    with path.open("rb", buffering=0) as stream:
        assert stream.read(100) == CONTENT[:100]
        lake.kill()
        with pytest.raises(OSError, match=r"Transport endpoint is not connected|Software caused connection abort"):
            path.read_bytes()
        lake("up")
        lake.until(lambda: shows(path))
    [after] = lake.json("mounts")
    assert (after["id"], after["state"], after["problem"]) == (before["id"], "mounted", None)
    assert len(lake.mounted()) == 2, "no dead mount is left below"


def test_the_next_node_can_be_started_from_within_a_dead_mount(lake: Any) -> None:
    path = lake.directory / "mnt/data"
    penstock = Path(sys.executable).with_name("penstock")
    shell = subprocess.Popen(["bash", "-c", f"read; exec {penstock} up"], cwd=path, env=lake.environment, stdin=-1)
    lake.kill()
    shell.communicate(b"\n", timeout=60)
    assert shell.returncode == 0
    lake.until(lambda: shows(path / "a.bin"))


def test_a_node_that_is_killed_many_times_leaves_no_pile_of_mounts(lake: Any) -> None:
    path = lake.directory / "mnt/data/a.bin"
    for _ in range(3):
        lake.kill()
        lake("up")
        lake.until(lambda: shows(path))
        lake.until(lambda: len(lake.mounted()) == 2)


@pytest.mark.parametrize("way", ["down", "SIGTERM"])
def test_a_node_that_stops_takes_its_mounts_away_and_the_next_brings_them_back(lake: Any, way: str) -> None:
    path = lake.directory / "mnt/data/a.bin"
    pid = lake.pid()
    if way == "down":
        lake("down")
    else:
        os.kill(pid, signal.SIGTERM)
        lake.until(lambda: "node stopped" in log(lake))
    assert lake.mounted() == []
    assert len(list(lake.home.mounts.iterdir())) == 1
    lake("up")
    lake.until(lambda: shows(path))


def test_a_node_stops_while_its_mounts_are_in_use_and_says_so(lake: Any) -> None:
    path = lake.directory / "mnt/data/a.bin"
    with path.open("rb", buffering=0):
        lake("down")
        assert lake.mounted() == []
        assert f"({os.getpid()})" in log(lake)
    lake("up")
    lake.until(lambda: shows(path))


@pytest.mark.parametrize("options", [["-R"], ["-l"]])
def test_a_mount_that_somebody_unmounts_is_forgotten(lake: Any, options: list[str]) -> None:
    target = lake.directory / "mnt"
    subprocess.run(["umount", *options, str(target)], check=True, timeout=30)
    lake.until(lambda: lake.json("mounts") == [])
    assert list(lake.home.mounts.iterdir()) == []
    assert f"somebody unmounted {target}" in log(lake)
    lake("down")
    lake("up")
    assert lake.json("mounts") == []
    lake("mount", str(target))


def test_a_nested_mount_that_somebody_unmounts_comes_back(lake: Any) -> None:
    subprocess.run(["umount", str(lake.directory / "mnt/data")], check=True, timeout=30)
    lake.until(lambda: len(lake.mounted()) == 2)
    assert shows(lake.directory / "mnt/data/a.bin")


def test_a_connection_that_is_aborted_is_made_again(lake: Any) -> None:
    target = lake.directory / "mnt"
    # Aborts the connection first; does not unmount, because of what is nested.
    forced = subprocess.run(["umount", "-f", str(target)], capture_output=True, text=True, timeout=30)
    assert "busy" in forced.stderr
    lake.until(lambda: "has to be made again" in log(lake))
    lake.until(lambda: shows(target / "data/a.bin"))
    assert lake.json("status")["problems"] == []
    assert len(lake.mounted()) == 2


def test_a_node_leaves_for_idleness_once_nothing_is_mounted(lake: Any) -> None:
    lake("down")
    lake("up", PENSTOCK_NODE__IDLE_TIMEOUT="1s")
    lake.until(lambda: shows(lake.directory / "mnt/data/a.bin"))
    assert "when told to" in lake("status").stdout
    lake("umount", str(lake.directory / "mnt"))
    lake.until(lambda: not lake.home.node_file.exists())
    assert "nobody needs the node" in log(lake)


def test_a_mount_that_cannot_come_back_is_a_problem_and_can_be_forgotten(lake: Any) -> None:
    target = lake.directory / "mnt"
    lake("down")
    target.rmdir()
    lake("up")
    lake.until(lambda: lake.json("status")["problems"])
    assert "there is no such directory" in lake("mounts").stdout
    assert "1 of them not mounted now" in lake("status").stdout
    lake("umount", str(target))
    assert lake.json("status")["problems"] == []
    assert list(lake.home.mounts.iterdir()) == []


def test_what_is_mounted_before_the_sources_answer_serves_them_later(machine: Any) -> None:
    remote = machine.remote({"a.bin": CONTENT})
    machine("attach", "s3://bucket", "/data", "--endpoint", remote.endpoint, "--credentials", "anonymous")
    target = machine.target()
    machine("mount", str(target))
    machine.kill()
    machine("up")
    machine.until(lambda: shows(target / "data/a.bin"))


def test_the_node_holds_no_descriptor_or_path_in_its_own_mounts(lake: Any) -> None:
    target = str(lake.directory / "mnt")
    assert shows(lake.directory / "mnt/data/a.bin")
    pid = lake.pid()
    links = [Path(f"/proc/{pid}/cwd"), Path(f"/proc/{pid}/root"), *Path(f"/proc/{pid}/fd").iterdir()]
    assert not any(str(link.readlink()).startswith(target) for link in links if link.is_symlink())


RENAMES = """
import itertools, os, sys
for number in itertools.count():
    os.rename(f"{sys.argv[1]}/{number}", f"{sys.argv[1]}/{number + 1}")
"""


def is_stuck(pid: int) -> bool:
    """Whether the thread that has a kernel forget names waits for a directory that somebody changes."""
    states = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        name, _, facts = (task / "stat").read_text().partition(") ")
        states.append((name.partition("(")[2], facts[0]))
    return ("expire", "D") in states


def test_a_node_that_is_killed_while_the_kernel_waits_for_it_to_forget_a_name_is_ended_by_the_next(
    machine: Any,
) -> None:
    """Nothing else would end it: its thread waits for who changes a directory, who waits for its answer."""
    remote = machine.remote({"runs/d/0": CONTENT[:1000]}, first_byte_ms=200.0)
    client = penstock.connect(machine.home.name)
    where = {"endpoint": remote.endpoint, "credentials": "anonymous", "freshness": "0s"}
    client.attach("s3://bucket/runs", "/runs", writable=True, **where)
    mount = machine.target()
    machine("mount", str(mount), "--path", "/runs")
    renaming = machine.spawn(sys.executable, "-c", RENAMES, str(mount / "d"))
    node, stop = machine.pid(), threading.Event()

    def write() -> None:
        with contextlib.suppress(PenstockError):
            for number in itertools.count():
                if stop.is_set():
                    return
                with client.open(f"/runs/d/x{number}", "wb") as stream:
                    stream.write(b"x")

    writing = threading.Thread(target=write)
    writing.start()
    machine.until(lambda: is_stuck(node))
    os.kill(node, signal.SIGKILL)
    stop.set()
    machine("up")
    writing.join()
    assert renaming.wait(30) == 1
    machine.until(lambda: os.path.ismount(mount) and any((mount / "d").iterdir()))
    assert machine.pid() != node
    machine("umount", str(mount))
