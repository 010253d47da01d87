"""Mounts of a user without privilege, by the program that distributions give everybody."""

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from integration.conftest import Machine

DEVICE = Path("/dev/fuse")
NOBODY = 65534

pytestmark = [
    # The rights of the device are everybody's.
    pytest.mark.alone,
    pytest.mark.usefixtures("can_mount"),
    pytest.mark.skipif(os.getuid() != 0, reason="needs to become another user"),
    pytest.mark.skipif(shutil.which("fusermount3") is None, reason="needs fusermount3"),
]


@pytest.fixture
def device() -> Iterator[None]:
    """The FUSE device as distributions ship it: open to everybody."""
    before = stat.S_IMODE(DEVICE.stat().st_mode)
    DEVICE.chmod(0o666)
    yield
    DEVICE.chmod(before)


@pytest.fixture
def nobody() -> Iterator[Any]:
    """A machine whose user is nobody, in a directory that nobody reaches."""
    directory = Path(tempfile.mkdtemp(prefix="penstock-nobody-"))
    os.chown(directory, NOBODY, NOBODY)
    made = Machine(directory)
    # May look everywhere, because the interpreter may lie in root's home; may mount nothing.
    made.as_another = [
        *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
        *("--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search", "--bounding-set=+all"),
    ]
    yield made
    made.close()
    shutil.rmtree(directory)


def files(machine: Any) -> Path:
    root: Path = machine.files("lake", {"a": b"content a", "inner/b": b"content b"})
    target: Path = machine.target()
    os.chown(target, NOBODY, NOBODY)
    return root


def read(path: Path) -> bytes:
    """What the user reads there; nothing where that fails."""
    done = subprocess.run(["cat", path], user=NOBODY, group=NOBODY, capture_output=True, timeout=30)
    return done.stdout


@pytest.mark.usefixtures("device")
def test_one_kernel_mount_shows_every_attachment(nobody: Any) -> None:
    root, target = files(nobody), nobody.directory / "mnt"
    nobody("attach", f"file://{root}", "/data")
    [kernel] = nobody.json("mount", str(target))["kernel_mounts"]
    assert kernel["way"] != "passthrough"
    nobody("attach", f"file://{nobody.files('other', {'c': b'content c'})}", "/data/other")
    assert [each.point for each in nobody.mounted()] == [str(target)]
    assert read(target / "data/a") == b"content a"
    nobody.until(lambda: read(target / "data/other/c") == b"content c")
    nobody("umount", str(target))
    assert nobody.mounted() == []


@pytest.mark.usefixtures("device")
def test_what_is_written_needs_a_mount_of_its_own(nobody: Any) -> None:
    root, target = files(nobody), nobody.directory / "mnt"
    for directory in (root, root / "inner"):
        os.chown(directory, NOBODY, NOBODY)
    nobody("attach", f"file://{root}", "/data", "--writable")
    alone = nobody.target("alone")
    os.chown(alone, NOBODY, NOBODY)
    assert "/data can only be read here" in nobody.json("mount", str(target))["problem"]
    [kernel] = nobody.json("mount", str(alone), "--path", "/data")["kernel_mounts"]
    assert (kernel["writable"], kernel["way"]) == (True, "keep-cache")
    assert kernel["why"].startswith("its files are written; the node lacks CAP_SYS_ADMIN")
    write = ["sh", "-c", 'echo "$1" > "$2" && cat "$2"', "sh"]
    done = subprocess.run([*write, "new", alone / "c"], user=NOBODY, group=NOBODY, capture_output=True, timeout=30)
    assert (done.stdout, done.stderr) == (b"new\n", b"")
    done = subprocess.run([*write, "x", target / "data/d"], user=NOBODY, group=NOBODY, capture_output=True, timeout=30)
    assert b"Read-only file system" in done.stderr
    nobody.until(lambda: read(target / "data/c") == b"new\n")
    nobody("persist", "/data")
    assert (root / "c").read_bytes() == b"new\n"


@pytest.mark.usefixtures("device")
def test_a_killed_node_is_healed_and_a_stopped_one_leaves_nothing(nobody: Any) -> None:
    root, target = files(nobody), nobody.directory / "mnt"
    nobody("attach", f"file://{root}", "/data")
    nobody("mount", str(target))
    nobody.kill()
    assert read(target / "data/a") == b""
    nobody("up")
    nobody.until(lambda: read(target / "data/a") == b"content a")
    assert [each.point for each in nobody.mounted()] == [str(target)]
    nobody("down")
    assert nobody.mounted() == []


@pytest.mark.usefixtures("device")
def test_umount_names_who_uses_it_and_lazily_it_goes(nobody: Any) -> None:
    target = files(nobody).parent / "mnt"
    nobody("mount", str(target))
    stay = f"cd {target} && echo there && exec sleep 1000"
    sleeper = subprocess.Popen(["sh", "-c", stay], user=NOBODY, group=NOBODY, stdout=subprocess.PIPE)
    try:
        assert sleeper.stdout is not None
        assert sleeper.stdout.readline() == b"there\n"
        assert f"sleep (pid {sleeper.pid}, {target})" in nobody("umount", str(target), check=1).stderr
        assert [each.point for each in nobody.mounted()] == [str(target)]
        nobody("umount", str(target), "--lazy")
        assert nobody.mounted() == []
    finally:
        sleeper.kill()
        sleeper.communicate()


@pytest.mark.usefixtures("device")
def test_what_the_program_refuses_is_told_with_what_helps(nobody: Any) -> None:
    target = files(nobody).parent / "mnt"
    refused = nobody("mount", str(target), "--allow-other", check=1)
    assert "user_allow_other" in refused.stderr
    (nobody.directory / "theirs").mkdir()
    refused = nobody("mount", str(nobody.directory / "theirs"), check=1)
    assert "mount on a directory that this user may write" in refused.stderr
    assert nobody.mounted() == []


def test_a_device_that_the_user_may_not_open_is_told(nobody: Any) -> None:
    before = stat.S_IMODE(DEVICE.stat().st_mode)
    DEVICE.chmod(0o600)
    try:
        target = files(nobody).parent / "mnt"
        refused = nobody("mount", str(target), check=1)
    finally:
        DEVICE.chmod(before)
    assert "sudo chmod 666 /dev/fuse" in refused.stderr
    assert "[permission-denied]" in refused.stderr
