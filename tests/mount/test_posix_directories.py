"""Mode, owner and time of directories, as programs set them and find them again, on a mount and in the source."""

from __future__ import annotations

import http.client
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import penstock
from integration.test_writing import Sea, attach
from mount.test_posix import OLD_NS, kept, mode, persist, restarted, run
from mount.test_posix import runs as runs

Facts = tuple[int, int]
"""Permission bits and nanoseconds."""


def odd_tree(directory: Path) -> Path:
    """Directories of odd modes and times, full and empty, one in another; times are set when all else is there."""
    modes = {"": 0o750, "open": 0o777, "shut": 0o700, "shut/deep": 0o711, "empty": 0o500, "empty-too": 0o755}
    for name in modes:
        (directory / name).mkdir()
    for name in ("open/a", "shut/deep/b", "c"):
        (directory / name).write_bytes(name.encode() * 1000)
    for number, (name, bits) in enumerate(sorted(modes.items(), reverse=True)):
        (directory / name).chmod(bits)
        os.utime(directory / name, ns=(OLD_NS, OLD_NS + number))
    return directory


def facts(root: Path) -> dict[str, Facts]:
    """Of a directory and all below it."""
    found = {".": root, **{str(path.relative_to(root)): path for path in root.rglob("*")}}
    stats = {name: path.stat() for name, path in found.items()}
    return {
        name: (stat.S_IMODE(each.st_mode), each.st_mtime_ns)
        for name, each in stats.items()
        if stat.S_ISDIR(each.st_mode)
    }


def test_chmod_chown_and_touch_of_a_directory_are_shown_at_once_and_after_a_kill_and_eviction(runs: Any) -> None:
    for name in ("d", "other"):
        (runs.root / name).mkdir()
        (runs.root / name / "a").write_bytes(b"content")
    run("chmod", "700", str(runs.mount / "d"))
    run("chown", "1234:567", str(runs.mount / "d"))
    run("touch", "-d", "2001-02-03T04:05:06.5Z", str(runs.mount / "d"))
    said = "700 1234 567 981173106"

    def shown() -> list[str]:
        one = run("stat", "-c", "%a %u %g %Y", str(runs.mount / "d")).strip()
        listed = run("find", str(runs.mount), "-mindepth", "1", "-type", "d", "-printf", "%f %m %U %G %T@\n")
        (line,) = [line for line in listed.splitlines() if line.startswith("d ")]
        return [one, line.partition(" ")[2].partition(".")[0]]

    assert shown() == [said, said]
    restarted(runs)
    assert shown() == [said, said]
    persist(runs)
    assert kept(runs, "d") == {"mode": "700", "uid": "1234", "gid": "567", "mtime": "981173106500000000"}
    assert os.listxattr(runs.root / "other") == os.listxattr(runs.root / "d" / "a") == []
    assert (runs.root / "d" / "a").read_bytes() == (runs.mount / "d" / "a").read_bytes() == b"content"
    restarted(runs)
    assert shown() == [said, said]
    runs("umount", str(runs.mount))
    runs("evict", "/runs")
    runs("mount", str(runs.mount), "--path", "/runs")
    assert shown() == [said, said]
    entry = runs.client.stat("/runs/d")
    assert (entry.mode, entry.uid, entry.gid, entry.modified_ms) == (0o700, 1234, 567, 981173106500)
    assert [each.mode for each in runs.client.list("/runs")] == [0o700, None]


def test_a_tree_that_cp_tar_and_rsync_bring_has_its_modes_and_times_also_after_a_kill(
    runs: Any, tmp_path: Path
) -> None:
    local = odd_tree(tmp_path / "local")
    expected = facts(local)
    assert len(expected) == len(set(expected.values())) == 6
    (runs.mount / "packed").mkdir()
    run("cp", "-a", str(local), str(runs.mount / "copied"))
    run("sh", "-c", f"tar --format=posix -cf - -C {local} . | tar -xpf - -C {runs.mount}/packed")
    names = ["copied", "packed"]
    if shutil.which("rsync"):
        run("rsync", "-a", f"{local}/", f"{runs.mount}/synced")
        names.append("synced")
    assert [facts(runs.mount / name) for name in names] == [expected] * len(names)
    restarted(runs)
    assert [facts(runs.mount / name) for name in names] == [expected] * len(names)
    persist(runs)
    assert [facts(runs.mount / name) for name in names] == [expected] * len(names)
    restarted(runs)
    assert [facts(runs.mount / name) for name in names] == [expected] * len(names)
    deep, nanoseconds = expected["shut/deep"]
    for name in names:
        assert kept(runs, f"{name}/shut/deep") == {"mode": f"{deep:o}", "mtime": str(nanoseconds)}
        assert run("diff", "-r", str(local), str(runs.mount / name)) == ""
    if "synced" in names:
        assert run("rsync", "-ai", f"{local}/", f"{runs.mount}/synced") == "", "nothing is left to be said"


def test_programs_that_say_something_of_the_mounted_directory_itself_go_on(runs: Any, tmp_path: Path) -> None:
    local = odd_tree(tmp_path / "local")
    before = mode(runs.mount)
    run("cp", "-a", f"{local}/.", str(runs.mount))
    run("sh", "-c", f"tar --format=posix -cf - -C {local} . | tar -xpf - -C {runs.mount}")
    assert mode(runs.mount) == before
    below = {name: said for name, said in facts(local).items() if name != "."}
    assert {name: said for name, said in facts(runs.mount).items() if name != "."} == below


@pytest.fixture
def shore(machine: Any, can_mount: None, tmp_path: Path) -> Iterator[Any]:
    """As ``runs``, over a store; ``sea`` is that."""
    sea = Sea(tmp_path)
    for number in range(30):
        sea.put(f"runs/d{number}/a", b"content")
    machine.client = penstock.connect(machine.home.name)
    attach(machine, sea)
    machine.mount, machine.sea = machine.target(), sea
    machine("mount", str(machine.mount), "--path", "/runs")
    yield machine
    machine("umount", str(machine.mount))
    machine.client.close()
    sea.fall()


def headers(sea: Sea, key: str) -> dict[str, str]:
    connection = http.client.HTTPConnection(sea.endpoint.removeprefix("http://"), timeout=60)
    try:
        connection.request("HEAD", f"/bucket/{key}")
        response = connection.getresponse()
        response.read()
        return {name.lower(): value for name, value in response.getheaders()} if response.status == 200 else {}
    finally:
        connection.close()


def test_a_store_keeps_it_with_the_object_of_the_directory_and_nobody_is_asked_to_show_it(shore: Any) -> None:
    def stats() -> int:
        return int(shore.control().status()["metrics"]["source_stat_requests"])

    def modes() -> list[int]:
        listed = run("find", str(shore.mount), "-mindepth", "1", "-maxdepth", "1", "-printf", "%m\n")
        return sorted(int(line, 8) for line in listed.splitlines())

    before, others = stats(), headers(shore.sea, "runs/d4/a")
    assert modes() == [0o755] * 30
    assert stats() == before, "a listing"
    (shore.mount / "d3").chmod(0o700)
    os.utime(shore.mount / "d3", ns=(OLD_NS, OLD_NS))
    assert modes() == [0o700] + [0o755] * 29
    persist(shore)
    said = headers(shore.sea, "runs/d3/")
    assert (said["content-length"], said["x-amz-meta-penstock-posix"]) == ("0", f"mode=700 mtime={OLD_NS}")
    assert headers(shore.sea, "runs/d4/") == {}
    assert headers(shore.sea, "runs/d4/a")["etag"] == others["etag"]
    (shore.mount / "d3").chmod(0o711)
    persist(shore)
    assert headers(shore.sea, "runs/d3/")["x-amz-meta-penstock-posix"] == f"mode=711 mtime={OLD_NS}"
    restarted(shore)
    before = stats()
    assert modes() == [0o711] + [0o755] * 29
    assert ((shore.mount / "d3").stat().st_mtime_ns, stats()) == (OLD_NS, before)
    shore.sea.fall()
    (shore.mount / "d5").chmod(0o710)
    assert mode(shore.mount / "d5") == 0o710
    shore.sea.rise()
    persist(shore)
    assert headers(shore.sea, "runs/d5/")["x-amz-meta-penstock-posix"] == "mode=710"


def test_a_rename_takes_it_along_and_a_directory_that_is_made_anew_has_none_of_it(shore: Any) -> None:
    said = "x-amz-meta-penstock-posix"
    (shore.mount / "d").mkdir(mode=0o700)
    (shore.mount / "d" / "a").write_bytes(b"content")
    (shore.mount / "empty").mkdir(mode=0o711)
    os.utime(shore.mount / "d", ns=(OLD_NS, OLD_NS))
    assert (mode(shore.mount / "d"), mode(shore.mount / "empty")) == (0o700, 0o711)
    before = "d", "empty"
    for after in (("moved", "bare"), ("d", "empty")):
        for old, new in zip(before, after, strict=True):
            (shore.mount / old).rename(shore.mount / new)
        full, empty = before = after
        for _ in range(2):  # before and after the store has it
            assert (mode(shore.mount / full), (shore.mount / full).stat().st_mtime_ns) == (0o700, OLD_NS)
            assert mode(shore.mount / empty) == 0o711
            persist(shore)
        assert headers(shore.sea, f"runs/{full}/")[said] == f"mode=700 mtime={OLD_NS}"
        assert headers(shore.sea, f"runs/{empty}/")[said] == "mode=711"
    assert headers(shore.sea, "runs/moved/") == headers(shore.sea, "runs/bare/") == {}
    for is_known in (False, True):
        (shore.mount / "empty").rmdir()
        if is_known:
            persist(shore)
        (shore.mount / "empty").mkdir()
        assert mode(shore.mount / "empty") == 0o755
        persist(shore)
        assert mode(shore.mount / "empty") == 0o755
        assert headers(shore.sea, "runs/empty/").keys() & {said, "etag"} == {"etag"}
        (shore.mount / "empty").chmod(0o700)
        persist(shore)
    restarted(shore)
    assert (mode(shore.mount / "empty"), mode(shore.mount / "d")) == (0o700, 0o700)
