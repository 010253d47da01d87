"""What doctor finds, from facts that are passed in."""

import errno
import re
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from penstock.cli.checks import Finding, Level, disk, machine, node, sources, worst
from penstock.errors import NotFoundError, PenstockError, PermissionDeniedError, UnavailableError
from penstock.home import locate

GIB = 1 << 30


@pytest.mark.parametrize(
    ("levels", "level"),
    [([], "ok"), (["ok"], "ok"), (["ok", "warning"], "warning"), (["failure", "warning", "ok"], "failure")],
)
def test_the_worst_finding_decides(levels: list[str], level: str) -> None:
    assert worst(Finding("x", Level(each), "") for each in levels) == level


def test_only_linux_runs_a_node() -> None:
    assert machine.kernel("Darwin", "23.1").level is Level.FAILURE
    assert machine.kernel("Linux", "6.18.44").text == "Linux 6.18.44"


def test_what_mounts_need_is_told_where_it_is_missing(tmp_path: Path) -> None:
    found = machine.fuse(tmp_path / "fuse", None, privileged=True)
    assert found.level is Level.WARNING
    assert "sudo modprobe fuse" in str(found.next)
    (tmp_path / "fuse").write_text("")
    assert "fusermount3 is not" in machine.fuse(tmp_path / "fuse", None, privileged=False).text
    assert "/bin/fusermount3" in machine.fuse(tmp_path / "fuse", "/bin/fusermount3", privileged=False).text
    assert machine.fuse(tmp_path / "fuse", None, privileged=True).level is Level.OK


def test_passthrough_needs_a_new_kernel_and_privilege() -> None:
    assert "needs Linux 6.9" in machine.passthrough("6.1.0-9-amd64", privileged=True).text
    assert "needs root" in machine.passthrough("6.18.44", privileged=False).text
    assert "by itself" in machine.passthrough("6.18.44", privileged=True).text


def test_an_image_needs_a_new_kernel_that_knows_it_and_privilege() -> None:
    known = "nodev\tfuse\n\terofs\n"
    assert "needs Linux 6.12" in machine.image("6.9.0", known, privileged=True).text
    assert "needs root" in machine.image("6.18.44", known, privileged=False).text
    assert "with EROFS" in machine.image("6.18.44", "\text4\n", privileged=True).text
    assert "by itself" in machine.image("6.18.44", known, privileged=True).text


def test_the_right_to_mount_is_read_from_the_capabilities() -> None:
    assert machine.may_mount("Name:\tx\nCapInh:\t0\nCapEff:\t000001ffffffffff\nSeccomp:\t0\n")
    assert not machine.may_mount("Name:\tx\nCapPrm:\t000001ffffffffff\nCapEff:\t0000000000000000\n")
    assert not machine.may_mount("")


@pytest.mark.parametrize(
    ("hard", "level"), [(256, "failure"), (10000, "warning"), (20000, "ok"), (resource.RLIM_INFINITY, "ok")]
)
def test_too_few_open_files_are_told(hard: int, level: str) -> None:
    assert machine.open_files(hard).level == level


@pytest.mark.parametrize(
    ("free", "level"), [(500 * GIB, "ok"), (100 * GIB + GIB // 2, "warning"), (99 * GIB, "failure")]
)
def test_space_is_what_is_above_the_floor(free: int, level: str) -> None:
    found = disk.space(Path("/cache"), free, 1000 * GIB, 0.1)
    assert found.level == level
    assert (found.next is None) == (level == "ok")


def test_the_longest_mount_point_says_the_kind_of_disk() -> None:
    mounts = [("/", "ext4"), ("/mnt/nas", "nfs4"), ("/mnt/nas/local", "xfs"), ("/mnt/nasty", "ext3")]
    assert disk.file_system_of(Path("/mnt/nas/cache"), mounts) == "nfs4"
    assert disk.file_system_of(Path("/mnt/nas/local/x"), mounts) == "xfs"
    assert disk.file_system_of(Path("/mnt/nasty"), mounts) == "ext3"
    assert disk.file_system_of(Path("/var"), mounts) == "ext4"


def test_the_stage_needs_room_and_says_where_what_it_holds_is_copied(tmp_path: Path) -> None:
    found = disk.stage(tmp_path / "stage", 1, tmp_path)
    assert (found.subject, found.level) in (("stage space", "ok"), ("stage space", "warning"))
    assert "copied" not in found.text
    assert "copied into the cache" in disk.stage(tmp_path / "stage", 1, Path("/proc")).text or found.level != "ok"
    assert disk.stage(tmp_path / "stage", 1 << 60, tmp_path).level is Level.WARNING
    assert disk.stage(Path("/proc/none"), 1, tmp_path).level is Level.FAILURE


@pytest.mark.parametrize(
    ("number", "command"), [(errno.ENOSPC, "df -h"), (errno.EIO, "sudo dmesg"), (errno.EROFS, "findmnt")]
)
def test_a_disk_that_takes_nothing_is_looked_at_by_why(
    number: int, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: object) -> None:
        raise OSError(number, "why")

    monkeypatch.setattr(disk.tempfile, "TemporaryFile", fail)
    found = disk.speed(tmp_path)
    assert (found.level, str(found.next).startswith(command), str(tmp_path) in str(found.next)) == (
        "failure",
        True,
        True,
    )


def test_a_slow_disk_is_measured_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "TEST_BYTES", 2 << 20)
    found = disk.speed(tmp_path)
    assert re.search(r"[MG]iB/s written with fsync", found.text)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(disk, "SLOW_BYTES_PER_S", 1 << 60)
    assert disk.speed(tmp_path).level is Level.WARNING


def test_a_bad_configuration_is_a_failure_and_the_other_checks_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "TEST_BYTES", 1 << 20)
    home = locate(tmp_path / "h", {})
    home.prepare()
    home.config.write_text("[cache]\nsise = 1")
    found = {each.subject: each for each in disk.check(home, tmp_path)}
    assert found["configuration"].level is Level.FAILURE
    assert "cache space" in found


def test_the_floor_and_the_limits_of_the_node_that_runs_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "TEST_BYTES", 1 << 20)
    home = locate(tmp_path / "h", {})
    home.prepare()
    [full] = [each for each in disk.check(home, tmp_path, {tmp_path: 1 << 60}) if each.subject == "cache space"]
    assert full.level is Level.FAILURE
    assert "below the floor" in full.text
    with subprocess.Popen(["sleep", "60"]) as other:
        resource.prlimit(other.pid, resource.RLIMIT_NOFILE, (256, 256))
        [limit] = [each for each in machine.check(other.pid) if each.subject == "open files"]
        other.kill()
    assert (limit.level, "256" in limit.text) == (Level.FAILURE, True)


def test_a_home_that_cannot_be_used_is_a_failure() -> None:
    assert disk.rights(locate("/proc/none", {})).level is Level.FAILURE


def test_a_home_whose_sockets_are_elsewhere_says_where(tmp_path: Path) -> None:
    home = locate(tmp_path / ("long" * 30), {})
    try:
        found = disk.rights(home)
    finally:
        home.run.rmdir()
    assert found.level is Level.OK
    assert str(home.run) in found.text
    assert "too long" in found.text
    assert disk.rights(locate(tmp_path, {})).text == str(tmp_path)


STATUS: dict[str, Any] = {
    "pid": 7,
    "uptime_s": 5.0,
    "version": "1.0",
    "problems": [],
    "cache": {"tiers": [{"directory": "/c", "healthy": True}]},
    "stage": {"directory": "/s", "failures": [], "conflicts": 0, "conflicted": [], "recovered": []},
    "mounts": [],
    "metrics": {},
}
MOUNT: dict[str, Any] = {
    "target": "/m",
    "path": "/",
    "state": "mounted",
    "kernel_mounts": [{"way": "passthrough", "alive": True}],
}


def test_a_healthy_node_of_the_same_version_is_well() -> None:
    assert worst(node.check(STATUS, "1.0")) is Level.OK


def test_version_skew_problems_and_a_failing_cache_are_told() -> None:
    ill = {
        **STATUS,
        "problems": ["document damaged"],
        "cache": {"tiers": [{"directory": "/c", "healthy": False, "reason": "read-only"}]},
        "metrics": {"cache_corrupt_pages": 3},
    }
    found = list(node.check(ill, "2.0"))
    assert [each.level for each in found] == ["ok", "warning", "warning", "failure", "warning"]
    assert all(each.next for each in found[1:])


def test_what_does_not_get_into_its_source_is_told() -> None:
    failing = {"path": "/runs/a", "key": "a", "tries": 3, "reason": "no answer"}
    stage = {
        "directory": "/s",
        "failures": [failing] * 5,
        "conflicts": 4,
        "conflicted": [{"path": None, "key": "lost/b", "reason": "the object changed"}] * 4,
        "recovered": [{"allocated": 1 << 20}, {"allocated": 2 << 20}],
    }
    said = [each for each in node.check({**STATUS, "stage": stage}, "1.0") if each.subject == "stage"]
    found = [each.text for each in said]
    assert found[:3] == ["/runs/a is not in its source (tries=3): no answer"] * 3
    assert found[3].startswith("2 more")
    assert found[4] == "not closed when the node ended, kept in /s/recovery: 2 files, 3.0 MiB"
    assert found[5:8] == ["lost/b is in conflict, both contents are kept: the object changed"] * 3
    assert found[8].startswith("4 files in all")
    assert {each.next for each in said[:5]} == {"penstock status"}
    assert {each.next for each in said[5:]} == {"penstock conflicts ls"}


def test_a_mount_that_shows_nothing_is_told() -> None:
    dead = {**MOUNT, "target": "/dead", "kernel_mounts": [{"way": "passthrough", "alive": False}]}
    failed = {**MOUNT, "target": "/failed", "state": "failed", "kernel_mounts": []}
    found = list(node.mounts([MOUNT, dead, failed]))
    assert [each.level for each in found] == ["ok", "warning", "warning"]
    assert "by passthrough" in found[0].text


class Entry:
    def __init__(self, name: str, size: int = 0, is_directory: bool = False) -> None:
        self.name, self.size, self.is_directory = name, size, is_directory


class FakeClient:
    """A tree with one cached and one uncached file."""

    def walk(self, path: str) -> Iterator[Entry]:
        yield from [Entry("d", is_directory=True), Entry("small", 5), Entry("cached", 2 << 20), Entry("cold", 2 << 20)]

    def why(self, path: str) -> dict[str, int]:
        return {"cached_bytes": 0 if path.endswith("cold") else 1}

    def open(self, path: str) -> Any:
        assert path == "/data/cold"
        import io

        return io.BytesIO(bytes(2 << 20))


ATTACHMENT: dict[str, Any] = {
    "id": "1",
    "path": "/data",
    "url": "s3://bucket",
    "source": {"kind": "s3", "credentials": "profile:team"},
    "identity": "AKIA…WXYZ",
    "clock_skew_s": 0.5,
    "latency_ms": 12.0,
    "weak": False,
}


def findings(failure: Exception | None = None, **changes: Any) -> list[Finding]:
    attachment = {**ATTACHMENT, **changes}

    def probe(path: str) -> dict[str, Any]:
        assert path == "/data"
        if failure is not None:
            raise failure
        return attachment

    return list(sources.check(FakeClient(), [attachment], probe))  # type: ignore[arg-type]


def test_a_source_that_answers_tells_identity_clock_and_throughput() -> None:
    found = findings()
    assert worst(found) is Level.OK
    text = "\n".join(each.text for each in found)
    for needle in ("s3://bucket answers in 12 ms", "profile:team: AKIA…WXYZ", "agree", "/data/cold"):
        assert needle in text


@pytest.mark.parametrize(("skew", "level"), [(0.2, "ok"), (-120.0, "warning"), (1000.0, "failure")])
def test_a_clock_that_is_off_is_told_before_signatures_are_refused(skew: float, level: str) -> None:
    assert sources.clock("source /data", skew).level == level


def test_a_source_that_refuses_is_a_failure_with_its_words_and_is_not_measured() -> None:
    found = findings(PermissionDeniedError("stat", "the key is unknown", "check the profile"))
    assert found[0].level is Level.FAILURE
    assert "the key is unknown" in found[0].text
    assert not any("throughput" in each.text or "/s over" in each.text for each in found)


@pytest.mark.parametrize(
    ("error", "command"),
    [
        (PermissionDeniedError("stat", "the key is unknown"), "penstock down && penstock up"),
        (UnavailableError("stat", "no answer"), "penstock doctor"),
        (NotFoundError("stat", "no such bucket"), "penstock detach /data"),
    ],
)
def test_what_helps_with_a_source_depends_on_what_it_says(error: PenstockError, command: str) -> None:
    assert str(findings(error)[0].next).startswith(command)


def test_a_clock_that_is_far_off_is_told_in_days() -> None:
    assert "1055 d 17 h ahead" in sources.clock("source /data", 91_214_358.0).text


def test_a_slow_answer_is_a_warning() -> None:
    assert worst(findings(latency_ms=900.0)) is Level.WARNING


def test_weak_versions_are_a_warning() -> None:
    assert worst(findings(weak=True)) is Level.WARNING


def test_nothing_attached_is_no_fault() -> None:
    [found] = sources.check(FakeClient(), [], dict)  # type: ignore[arg-type]
    assert (found.level, found.next) == (Level.OK, "penstock attach s3://bucket/prefix /data")


class NestedClient(FakeClient):
    """A source at the root, another one below it."""

    def walk(self, path: str) -> Iterator[Entry]:
        yield from [Entry("moto/cold", 8 << 20), Entry("motorcycle/cold", 8 << 20)]

    def open(self, path: str) -> Any:
        return super().open("/data/cold")


def test_the_throughput_of_a_source_is_not_measured_with_a_file_of_one_that_lies_below_it() -> None:
    found = sources.throughput(NestedClient(), "/", ["/moto"])  # type: ignore[arg-type]
    assert found.text.endswith("of /motorcycle/cold")
