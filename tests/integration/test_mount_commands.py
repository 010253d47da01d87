"""``mount``, ``umount``, ``mounts``: a tree that every program can read, and what a wrong command is told."""

import hashlib
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from penstock.server.mounter import READ_AHEAD_KIB

pytestmark = pytest.mark.usefixtures("can_mount")

CONTENT = {"train/a.bin": b"a" * 100_000, "train/deep/b.bin": os.urandom(3 << 20), "top.txt": b"top\n"}


@pytest.fixture
def lake(machine: Any) -> Any:
    """A machine with something attached at /data."""
    machine("attach", f"file://{machine.files('lake', CONTENT)}", "/data")
    return machine


def digest(path: Path) -> str:
    """What a program of its own reads there."""
    done = subprocess.run(["sha256sum", str(path)], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.split()[0]


def test_every_program_reads_the_tree_through_a_mount(lake: Any) -> None:
    target = lake.target()
    assert lake("mount", str(target)).stdout.startswith(f"mounted / at {target} (")
    assert sorted(path.name for path in (target / "data").iterdir()) == ["top.txt", "train"]
    for name, content in CONTENT.items():
        assert digest(target / "data" / name) == hashlib.sha256(content).hexdigest()
    with pytest.raises(OSError, match="Read-only file system"):
        (target / "data/new").write_bytes(b"x")
    assert lake("umount", str(target)).stdout == f"unmounted {target}\n"
    assert list(target.iterdir()) == []
    assert lake.mounted() == []


def test_a_part_of_the_tree_is_mounted_alone(lake: Any) -> None:
    target = lake.target()
    lake("mount", str(target), "--path", "/data/train")
    assert sorted(path.name for path in target.iterdir()) == ["a.bin", "deep"]
    assert [each.point for each in lake.mounted()] == [str(target)]


def test_owner_and_modes_are_as_asked_for(lake: Any) -> None:
    target = lake.target()
    lake("mount", str(target), "--owner", "1234:567", "--file-mode", "0664", "--umask", "027", "--allow-other")
    for path, mode in ((target / "data/top.txt", 0o640), (target / "data/train", 0o550), (target, 0o550)):
        facts = path.stat()
        assert (facts.st_uid, facts.st_gid, stat.S_IMODE(facts.st_mode)) == (1234, 567, mode), path
    options = Path("/proc/self/mountinfo").read_text()
    line = next(line for line in options.splitlines() if f" {target} " in line)
    assert "ro,nosuid,nodev" in line
    assert "default_permissions,allow_other" in line


def test_the_kernel_reads_far_ahead_of_a_sequential_reader(lake: Any) -> None:
    lake("mount", str(lake.target()))
    figures = [Path(f"/sys/class/bdi/{each.device}/read_ahead_kb").read_text() for each in lake.mounted()]
    assert figures == [f"{READ_AHEAD_KIB}\n"] * 2


@pytest.mark.skipif(os.getuid() != 0, reason="needs to become another user")
@pytest.mark.parametrize("allowed", [False, True])
def test_other_users_get_in_only_where_they_are_allowed(lake: Any, allowed: bool) -> None:
    target = lake.target()
    lake("mount", str(target), *(["--allow-other"] if allowed else []))
    for directory in target.parents:
        directory.chmod(directory.stat().st_mode | 0o001)
    command = ["cat", str(target / "data/top.txt")]
    done = subprocess.run(command, user=65534, group=65534, extra_groups=[], capture_output=True, timeout=30)
    assert (done.returncode, done.stdout) == ((0, b"top\n") if allowed else (1, b""))


def test_mounts_are_shown_with_their_way_and_status_counts_them(lake: Any) -> None:
    assert "nothing is mounted" in lake("mounts").stdout
    assert lake.json("mounts") == []
    target = lake.target()
    made = lake.json("mount", str(target))
    [shown] = lake.json("mounts")
    assert (shown["id"], shown["target"], shown["path"], shown["state"]) == (made["id"], str(target), "/", "mounted")
    assert [(each["path"], each["alive"]) for each in shown["kernel_mounts"]] == [("/", True), ("/data", True)]
    assert all(each["way"] for each in shown["kernel_mounts"])
    header, row = lake("mounts").stdout.splitlines()
    assert header.split() == ["TARGET", "SHOWS", "WAY", "STATE"]
    assert row.split()[:2] == [str(target), "/"]
    status = lake("status").stdout
    assert f"1 ({target})" in status
    assert "when told to" in status
    assert lake.json("status")["problems"] == []
    assert f"/ at {target}" in lake("doctor", check=None).stdout


def test_a_relative_directory_and_a_link_name_the_same_mount(lake: Any) -> None:
    target = lake.target()
    (lake.directory / "link").symlink_to(target)
    assert lake.json("mount", "link")["target"] == str(target)
    lake("umount", "link")
    assert lake.mounted() == []


@pytest.mark.parametrize(
    ("target", "options", "code", "needle"),
    [
        ("none", [], 1, "there is no such directory; mkdir -p "),
        ("lake/top.txt", [], 1, "it is not a directory"),
        ("lake/train", [], 2, "the source of /data"),
        (".", [], 2, "lies in it"),
        ("full", [], 1, "the directory is not empty"),
        ("home", [], 2, "a directory of the node"),
        ("home/cache/inside", [], 2, "a directory of the node"),
        ("empty", ["--path", "/nowhere"], 1, "the tree has nothing at that path; `penstock attachments`"),
        ("empty", ["--path", "/data/none"], 1, "the tree has nothing at that path"),
        ("empty", ["--path", "/data/top.txt"], 1, "it is a file"),
        ("empty", ["--owner", "root"], 2, "write two numbers"),
        ("/proc", [], 1, "proc of proc is mounted there"),
        ("mounted", [], 1, "umount {target}` first"),
        ("mounted/data/train", [], 2, "a mount of this node"),
    ],
)
def test_a_mount_that_cannot_be_is_refused_with_what_helps(
    lake: Any, target: str, options: list[str], code: int, needle: str
) -> None:
    for name in ("empty", "full", "full/x", "home/cache/inside", "mounted"):
        (lake.directory / name).mkdir()
    lake("mount", "mounted")
    before = lake.mounted()
    refused = lake("mount", target, *options, check=code)
    assert needle.format(target=lake.directory / target) in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert lake.mounted() == before
    assert len(lake.json("mounts")) == 1


def test_umount_of_what_is_no_mount_is_told(lake: Any) -> None:
    target = lake.target()
    assert "`penstock mounts` shows" in lake("umount", str(target), check=1).stderr
    lake("mount", str(target))
    assert f"a part of the mount {target}" in lake("umount", str(target / "data"), check=1).stderr


def test_umount_names_who_uses_it_and_lazily_it_goes_while_files_stay_open(lake: Any) -> None:
    target = lake.target()
    lake("mount", str(target))
    before = lake.mounted()
    with (target / "data/train/deep/b.bin").open("rb") as stream:
        assert stream.read(10) == CONTENT["train/deep/b.bin"][:10]
        refused = lake("umount", str(target), check=1)
        assert f"(pid {os.getpid()}, {target}/data/train/deep/b.bin)" in refused.stderr
        assert "[busy]" in refused.stderr
        assert lake.mounted() == before
        lake("umount", str(target), "--lazy")
        assert lake.mounted() == []
        assert lake.json("mounts") == []
        assert stream.read() == CONTENT["train/deep/b.bin"][10:]
    lake("mount", str(target))


def test_a_working_directory_in_a_mount_is_use(lake: Any) -> None:
    target = lake.target()
    lake("mount", str(target))
    sleeper = subprocess.Popen(["sleep", "1000"], cwd=target)
    try:
        assert f"sleep (pid {sleeper.pid}, {target})" in lake("umount", str(target), check=1).stderr
    finally:
        sleeper.kill()
        sleeper.wait()
    lake("umount", str(target))


def test_in_the_foreground_it_lasts_until_a_signal(lake: Any) -> None:
    target = lake.target()
    for number in (signal.SIGTERM, signal.SIGINT):
        process = lake.spawn(sys.executable, "-m", "penstock.cli", "mount", str(target), "--foreground")
        assert f"mounted / at {target}" in process.stdout.readline()
        assert (target / "data/top.txt").read_bytes() == b"top\n"
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
        assert (process.returncode, output, errors) == (0, f"unmounted {target}\n", "")
        assert lake.mounted() == []
        assert lake.json("mounts") == []


def test_in_the_foreground_it_fails_when_the_mount_vanishes(lake: Any) -> None:
    target = lake.target()
    process = lake.spawn(sys.executable, "-m", "penstock.cli", "mount", str(target), "--foreground")
    assert f"mounted / at {target}" in process.stdout.readline()
    lake("umount", str(target))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "somebody unmounted it" in errors


def test_in_the_foreground_it_takes_over_what_an_earlier_one_left(lake: Any) -> None:
    target = lake.target()
    first = lake.spawn(sys.executable, "-m", "penstock.cli", "mount", str(target), "--foreground")
    assert f"mounted / at {target}" in first.stdout.readline()
    first.kill()
    first.communicate()
    lake.kill()
    second = lake.spawn(sys.executable, "-m", "penstock.cli", "mount", str(target), "--foreground")
    assert f"mounted / at {target}" in second.stdout.readline()
    assert (target / "data/top.txt").read_bytes() == b"top\n"
    lake._note()
    second.terminate()
    assert second.communicate(timeout=60)[0] == f"unmounted {target}\n"


def test_a_busy_mount_in_the_foreground_goes_all_the_same(lake: Any) -> None:
    target = lake.target()
    process = lake.spawn(sys.executable, "-m", "penstock.cli", "mount", str(target), "--foreground")
    assert f"mounted / at {target}" in process.stdout.readline()
    with (target / "data/top.txt").open("rb") as stream:
        process.terminate()
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0
        assert "unmounted all the same" in errors
        assert lake.mounted() == []
        assert stream.read() == b"top\n"
