"""The process that touches mount points, against a real kernel: what it sees, and that it never holds its node up."""

import os
import struct
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from penstock.errors import TimedOutError
from penstock.policies.mounts import mount_at
from penstock.server import mounter as mounters
from penstock.server.mounter import Mounter

pytestmark = pytest.mark.usefixtures("can_mount")


@pytest.fixture
def target(tmp_path: Path) -> Iterator[str]:
    """An empty directory, nothing mounted on it afterwards."""
    made = tmp_path / "mnt"
    made.mkdir()
    yield str(made)
    with Mounter() as mounter:
        while mount_at(mounter.table(), str(made)):
            mounter.unmount(str(made), lazy=True)


def test_a_mount_without_its_server_is_dead_and_goes_away(target: str) -> None:
    with Mounter() as mounter:
        assert mounter.look(target)[0].state == "directory"
        mounted = mounter.mount(target, allow_other=False)
        shown = mount_at(mounter.table(), target)
        assert shown is not None
        assert (shown.kind, shown.source) == ("fuse.penstock", "penstock")
        assert not os.get_inheritable(mounted.descriptor)
        os.close(mounted.descriptor)
        assert mounter.look(target)[0].state == "dead"
        assert mounter.unmount(target, lazy=False)
        assert mounter.look(target)[0].state == "directory"
        assert mounter.unmount(target, lazy=False), "nothing there is nothing to do"


@pytest.mark.parametrize("lazy", [False, True])
def test_who_waits_for_a_server_that_ends_meets_a_dead_mount(target: str, lazy: bool) -> None:
    with Mounter() as mounter, Mounter() as other, ThreadPoolExecutor() as pool:
        descriptor = mounter.mount(target, allow_other=False).descriptor
        try:
            unique = struct.unpack_from("=Q", os.read(descriptor, 1 << 17), 8)[0]
            os.write(descriptor, struct.pack("=IiQIIIIHHI40x", 80, 0, unique, 7, 31, 1 << 17, 0, 12, 9, 1 << 16))
            waiting = [
                pool.submit(lambda: mounter.look(f"{target}/data")[0].state),
                pool.submit(lambda: other.unmount(f"{target}/data", lazy=lazy)),
            ]
            time.sleep(0.2)
            assert os.read(descriptor, 1 << 17)
            assert not any(each.done() for each in waiting)
        finally:
            os.close(descriptor)
        assert [each.result() for each in waiting] == ["dead", True]


def test_who_waits_for_a_mount_that_nobody_serves_is_given_up(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounters, "ANSWER_TIMEOUT_S", 0.5)
    with Mounter() as mounter:
        mounted = mounter.mount(target, allow_other=False)
        try:
            with pytest.raises(TimedOutError, match="did not answer"):
                mounter.look(target)
            assert mounter.look("/")[0].state == "directory", "another process answers"
            assert mounter.unmount(target, lazy=True)
        finally:
            os.close(mounted.descriptor)


def test_states_tell_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with Mounter() as mounter:
        assert mounter.look(str(tmp_path / "none"))[0] == (str(tmp_path / "none"), "missing", False)
        assert mounter.look(str(tmp_path / "file/x"))[0].state == "missing"
        assert mounter.look(str(tmp_path / "link"))[0] == (str(tmp_path / "file"), "file", False)
        facts, others = mounter.look(str(tmp_path), [str(tmp_path / "link"), "/"])
        assert (facts.state, facts.empty) == ("directory", False)
        assert others == [str(tmp_path / "file"), "/"]


def test_users_of_a_directory_are_found_by_what_they_hold(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 4096)
    mapping = (
        "import mmap, sys; f = open(sys.argv[1]); m = mmap.mmap(f.fileno(), 0, prot=1); print(flush=True); input()"
    )
    mapped = subprocess.Popen(
        ["python3", "-c", mapping, str(tmp_path / "file")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert mapped.stdout is not None
        mapped.stdout.readline()
        with Mounter() as mounter, (tmp_path / "file").open("rb"):
            holders, _ = mounter.holders(str(tmp_path))
            assert {(each.pid, each.path) for each in holders} == {
                (os.getpid(), str(tmp_path / "file")),
                (mapped.pid, str(tmp_path / "file")),
            }
            assert mounter.holders(str(tmp_path / "fil")) == ([], mounter.holders("/none")[1])
    finally:
        mapped.communicate(b"\n")


def test_the_process_ends_with_its_node(tmp_path: Path) -> None:
    mounter = Mounter()
    mounter.look(str(tmp_path))
    process = mounter._process
    assert process is not None
    mounter.__exit__(None, None, None)
    assert process.returncode == 0
