"""Mode, owner and time of files, as programs set them and find them again, on a mount and in the source."""

from __future__ import annotations

import os
import pickle
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import safetensors.numpy

from integration.conftest import Machine, make_writable_lake
from mount.test_writing import run
from penstock.integrations.fsspec import PenstockFileSystem

ENTRY = "user.penstock.penstock-posix"
"""The metadata entry, as a directory that is a source keeps it."""
OLD_NS = 1_000_000_000_123_456_789


@pytest.fixture
def runs(machine: Any, can_mount: None) -> Iterator[Any]:
    """A machine with /runs to be written, mounted at ``mount``; ``root`` is the directory that is its source."""
    made = make_writable_lake(machine)
    made.mount = made.target()
    made("mount", str(made.mount), "--path", "/runs")
    yield made
    made("umount", str(made.mount))
    made.client.close()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def kept(runs: Any, name: str) -> dict[str, str]:
    """What the source has of a file besides its bytes."""
    said = os.getxattr(runs.root / name, ENTRY).decode()
    return dict(entry.split("=") for entry in said.split())


def persist(runs: Any) -> dict[str, Any]:
    runs.client.persist("/runs", timeout=120)
    metrics: dict[str, Any] = runs.control().status()["metrics"]
    return metrics


def restarted(runs: Any) -> None:
    """The node dies and another one goes on; the mount stays."""
    runs.kill()
    runs("up")


def local_tree(directory: Path) -> Path:
    """Files of three modes and of times that only nanoseconds tell from whole seconds."""
    directory.mkdir()
    for number, bits in enumerate([0o755, 0o640, 0o444, 0o600]):
        path = directory / f"{number}"
        path.write_bytes(b"x" * number * 100_000)
        path.chmod(bits)
        os.utime(path, ns=(OLD_NS, OLD_NS + number))
    return directory


def attributes(directory: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (mode(path), path.stat().st_mtime_ns) for path in directory.iterdir()}


def test_attributes_of_what_cp_and_tar_bring_are_kept_by_the_source_and_shown_after_a_kill(
    runs: Any, tmp_path: Path
) -> None:
    local = local_tree(tmp_path / "local")
    expected = attributes(local)
    run("cp", "-a", str(local), str(runs.mount / "copied"))
    run(
        "sh",
        "-c",
        f"mkdir {runs.mount}/packed && tar --format=posix -cf - -C {local} . | tar -xpf - -C {runs.mount}/packed",
    )
    assert attributes(runs.mount / "copied") == attributes(runs.mount / "packed") == expected
    restarted(runs)
    assert attributes(runs.mount / "copied") == expected, "before the source has them, or just after"
    metrics = persist(runs)
    assert metrics["copies"] <= len(expected), "what is said of a file that waits goes with it"
    assert kept(runs, "copied/1") == {"mode": "640", "mtime": str(OLD_NS + 1)}
    restarted(runs)
    assert attributes(runs.mount / "copied") == attributes(runs.mount / "packed") == expected
    runs("umount", str(runs.mount))
    runs("evict", "/runs")
    runs("mount", str(runs.mount), "--path", "/runs")
    assert attributes(runs.mount / "copied") == expected, "after eviction"
    assert runs.client.stat("/runs/copied/1").modified_ms == (OLD_NS + 1) // 1_000_000


def test_rsync_transfers_nothing_the_second_time(runs: Any, tmp_path: Path) -> None:
    if not shutil.which("rsync"):
        pytest.skip("needs rsync")
    local = local_tree(tmp_path / "local")
    run("rsync", "-a", f"{local}/", f"{runs.mount}/synced/")
    persist(runs)
    again = run("rsync", "-ai", f"{local}/", f"{runs.mount}/synced/")
    assert [line for line in again.splitlines() if not line.startswith(".d")] == []
    assert attributes(runs.mount / "synced") == attributes(local)


def test_a_script_that_the_source_has_is_made_executable_and_run(runs: Any) -> None:
    (runs.root / "script").write_text("#!/bin/sh\necho it runs\n")
    script = runs.mount / "script"
    with pytest.raises(PermissionError):
        subprocess.run([str(script)], check=True)
    before = script.stat().st_mtime_ns
    run("chmod", "+x", str(script))
    assert run(str(script)) == "it runs\n"
    metrics = persist(runs)
    assert (metrics["copies"], metrics["uploads"]) == (1, 0)
    assert (run(str(script)), mode(script), script.stat().st_mtime_ns) == ("it runs\n", 0o755, before)
    assert kept(runs, "script")["mode"] == "755"
    restarted(runs)
    assert run(str(script)) == "it runs\n"


def test_touch_and_install_and_a_new_mode_at_creation(runs: Any, tmp_path: Path) -> None:
    (runs.root / "old").write_bytes(b"content")
    run("touch", "-d", "2001-02-03T04:05:06Z", str(runs.mount / "old"))
    assert (runs.mount / "old").stat().st_mtime == 981173106
    (tmp_path / "tool").write_text("#!/bin/sh\n")
    run("install", "-m", "750", str(tmp_path / "tool"), str(runs.mount / "tool"))
    (tmp_path / "tool").chmod(0o711)
    run("cp", str(tmp_path / "tool"), str(runs.mount / "copied"))
    modes = [mode(runs.mount / name) for name in ("tool", "copied")]
    assert modes == [0o750, 0o711]
    metrics = persist(runs)
    assert (metrics["copies"], metrics["uploads"]) == (1, 2), "what is touched is not uploaded"
    assert (runs.mount / "old").stat().st_mtime == 981173106
    assert (runs.mount / "old").read_bytes() == (runs.root / "old").read_bytes() == b"content"
    assert [mode(runs.mount / name) for name in ("tool", "copied")] == modes
    assert kept(runs, "old") == {"mtime": "981173106000000000"}


def test_git_keeps_the_executable_bit_and_finds_nothing_changed_once_the_source_has_it(runs: Any) -> None:
    repository = runs.mount / "repository"
    run("git", "init", "-q", str(repository))
    (repository / "script").write_text("#!/bin/sh\n")
    (repository / "script").chmod(0o755)
    (repository / "plain").write_text("text\n")
    run("git", "add", "-A", directory=repository)
    run("git", "commit", "-qm", "both", directory=repository)
    listed = run("git", "ls-files", "-s", directory=repository).splitlines()
    assert [line[:6] for line in listed] == ["100644", "100755"]
    persist(runs)
    assert run("git", "status", "--porcelain", directory=repository) == ""
    (repository / "script").unlink()
    run("git", "checkout", "-q", "script", directory=repository)
    assert mode(repository / "script") == 0o755


def test_owners_are_shown_and_a_rename_takes_all_of_it_along(runs: Any) -> None:
    (runs.mount / "a").write_bytes(b"a")
    persist(runs)
    os.chown(runs.mount / "a", 1234, 567)
    os.utime(runs.mount / "a", ns=(OLD_NS, OLD_NS))
    facts = (runs.mount / "a").stat()
    assert (facts.st_uid, facts.st_gid, facts.st_mtime_ns) == (1234, 567, OLD_NS)
    persist(runs)
    (runs.mount / "a").rename(runs.mount / "b")
    persist(runs)
    facts = (runs.mount / "b").stat()
    assert (facts.st_uid, facts.st_gid, facts.st_mtime_ns) == (1234, 567, OLD_NS)
    assert kept(runs, "b") == {"uid": "1234", "gid": "567", "mtime": str(OLD_NS)}
    (runs.mount / "b").write_bytes(b"another")
    assert (runs.mount / "b").stat().st_uid == 1234
    assert (runs.mount / "b").stat().st_mtime_ns != OLD_NS


def test_python_the_command_line_and_fsspec_tell_mode_and_owner_where_somebody_said_them(runs: Any) -> None:
    (runs.mount / "a").write_bytes(b"a")
    (runs.mount / "plain").write_bytes(b"b")
    persist(runs)
    (runs.mount / "a").chmod(0o640)
    os.chown(runs.mount / "a", 1234, -1)
    for _ in range(2):  # before and after the source has them
        entry, plain = runs.client.stat("/runs/a"), runs.client.stat("/runs/plain")
        assert (entry.mode, entry.uid, entry.gid) == (0o640, 1234, None)
        assert (plain.mode, plain.uid, plain.gid) == (None, None, None)
        assert [each.mode for each in runs.client.list("/runs")] == [0o640, None]
        assert [each.mode for each in runs.client.walk("/runs")] == [0o640, None]
        assert pickle.loads(pickle.dumps(entry)) == entry
        said = {name: value for name, value in runs.json("stat", "/runs/a").items() if name in ("mode", "uid", "gid")}
        assert said == {"mode": "640", "uid": 1234, "gid": None}
        shown = [line.split() for line in runs("stat", "/runs/a").stdout.splitlines()]
        assert ["mode", "640"] in shown
        assert ["owner", "1234:-"] in shown
        assert "mode" not in runs("stat", "/runs/plain").stdout
        fs = PenstockFileSystem(home=str(runs.home.name), start=False, skip_instance_cache=True)
        assert (fs.info("/runs/a")["mode"], fs.info("/runs/a")["uid"]) == (0o640, 1234)
        assert not {"mode", "uid", "gid"} & fs.info("/runs/plain").keys()
        persist(runs)


def test_a_script_is_executable_from_a_new_home_that_asks_for_attributes(runs: Any, tmp_path: Path) -> None:
    for name in ("script", "plain"):
        (runs.mount / name).write_text("#!/bin/sh\necho it runs\n")
    (runs.mount / "script").chmod(0o755)
    os.utime(runs.mount / "script", ns=(OLD_NS, OLD_NS))
    persist(runs)
    (tmp_path / "elsewhere").mkdir()
    elsewhere = Machine(tmp_path / "elsewhere")
    mounts = []
    try:
        for name, options, bits, looks in (("listed", (), 0o444, 0), ("asked", ("--posix",), 0o755, 2)):
            elsewhere("attach", f"file://{runs.root}", f"/{name}", *options)
            mounts.append(elsewhere.target(name))
            elsewhere("mount", str(mounts[-1]), "--path", f"/{name}")
            before = elsewhere.control().status()["metrics"]["source_stat_requests"]
            assert sorted(each.name for each in mounts[-1].iterdir()) == ["plain", "script"]
            assert (mode(mounts[-1] / "script"), mode(mounts[-1] / "plain")) == (bits, 0o444)
            after = elsewhere.control().status()["metrics"]["source_stat_requests"]
            assert after - before == looks, "one for each version where they are asked for"
        assert (mounts[-1] / "script").stat().st_mtime_ns == OLD_NS
        assert run(str(mounts[-1] / "script")) == "it runs\n"
        assert [each["mode"] for each in elsewhere.json("ls", "/asked")] == [None, "755"]
    finally:
        for target in mounts:
            elsewhere("umount", str(target))
        elsewhere.close()


def test_safetensors_saves_with_its_chmod_and_rename_and_its_bytes_go_once(runs: Any) -> None:
    weights = {"a": numpy.arange(3_000_000, dtype=numpy.float32)}
    target, written = runs.mount / "model.safetensors", runs.mount / ".tmpmodel"
    safetensors.numpy.save_file(weights, written)
    written.chmod(0o640)
    written.rename(target)
    metrics = persist(runs)
    assert metrics["upload_bytes"] == target.stat().st_size
    assert (mode(target), kept(runs, "model.safetensors")["mode"]) == (0o640, "640")
    assert (safetensors.numpy.load_file(target)["a"] == weights["a"]).all()
