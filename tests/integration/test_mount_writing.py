"""What is attached as writable is written through its mount by every program; the rest of the tree is read-only."""

import errno
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from integration.conftest import make_writable_lake

pytestmark = pytest.mark.usefixtures("can_mount")


@pytest.fixture
def lake(machine: Any) -> Any:
    """A machine with /runs to be written and /data to be read, mounted at ``root``."""
    made = make_writable_lake(machine)
    made.client.attach(f"file://{made.files('lake', {'top.txt': b'top'})}", "/data")
    made.root_of_source, made.root = made.root, made.target()
    made("mount", str(made.root))
    yield made
    made.client.close()


def run(command: str, directory: Path) -> str:
    """What a shell prints there."""
    done = subprocess.run(["sh", "-ec", command], cwd=directory, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rights(directory: Path) -> dict[str, str]:
    """How each kernel mount at or below a directory is mounted, by its path from there."""
    lines = [line.split() for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()]
    shown = {fields[4]: fields[5].split(",")[0] for fields in lines}
    return {os.path.relpath(point, directory): how for point, how in shown.items() if Path(directory) in parents(point)}


def parents(point: str) -> list[Path]:
    return [Path(point), *Path(point).parents]


def test_what_programs_write_is_seen_by_others_and_comes_to_its_source(lake: Any) -> None:
    content = os.urandom(3 << 20)
    (lake.directory / "content").write_bytes(content)
    runs, half = lake.root / "runs", content[:1_000_000]
    assert run("echo one > a && echo two >> a && cat a && mv a b && ls", runs) == "one\ntwo\nb\n"
    run(f"cp {lake.directory}/content half && truncate -s 1000000 half", runs)
    assert (runs / "half").read_bytes() == half
    assert lake.client.open("/runs/b").read() == b"one\ntwo\n"
    assert lake.client.open("/runs/half").read() == half
    lake("persist", "/runs")
    assert (lake.root_of_source / "b").read_bytes() == b"one\ntwo\n"
    assert (lake.root_of_source / "half").read_bytes() == half
    assert run("rm b half && ls", runs) == ""
    lake("persist", "/runs")
    assert not (lake.root_of_source / "half").exists()


def test_directories_are_made_filled_renamed_and_removed(lake: Any) -> None:
    runs = lake.root / "runs"
    assert run("mkdir -p d/e && echo one > d/e/a && mv d/e f && cat f/a && ls", runs) == "one\nd\nf\n"
    assert sorted(each.name for each in lake.client.list("/runs")) == ["d", "f"]
    with pytest.raises(OSError, match="not empty"):
        (runs / "f").rmdir()
    assert run("rmdir d && rm -r f && ls", runs) == ""


def test_only_what_is_attached_to_be_written_is_mounted_to_be_written(lake: Any) -> None:
    assert rights(lake.root) == {".": "ro", "data": "ro", "runs": "rw"}
    for path in ("new", "data/new"):
        with pytest.raises(OSError, match="Read-only") as refused:
            (lake.root / path).write_bytes(b"x")
        assert refused.value.errno == errno.EROFS
    [mounted] = lake.json("mounts")
    shown = {each["path"]: (each["writable"], each["why"]) for each in mounted["kernel_mounts"]}
    assert shown["/runs"] == (True, "its files are written")
    assert not shown["/"][0]
    assert not shown["/data"][0]
    modes = {name: oct((lake.root / name).stat().st_mode & 0o777) for name in ("data", "data/top.txt", "runs")}
    assert modes == {"data": "0o555", "data/top.txt": "0o444", "runs": "0o755"}


def test_the_next_node_mounts_it_to_be_written_again_and_shows_what_was_closed(lake: Any) -> None:
    (lake.root / "runs/a").write_bytes(b"before")
    lake.kill()
    lake("up")
    lake.until(lambda: lake.json("mounts")[0]["state"] == "mounted")
    lake.until(lambda: rights(lake.root) == {".": "ro", "data": "ro", "runs": "rw"})
    assert (lake.root / "runs/a").read_bytes() == b"before"
    (lake.root / "runs/a").write_bytes(b"after")
    assert (lake.root / "runs/a").read_bytes() == b"after"


def test_what_is_attached_below_what_is_written_appears_in_its_mount_and_makes_nothing_there(lake: Any) -> None:
    inner = lake.root / "runs/inner/deep"
    assert not inner.exists(), "the kernel keeps that it was not there"
    lake.client.attach(f"file://{lake.files('inner', {'x': b'of inner'})}", "/runs/inner/deep")
    lake.until(lambda: rights(lake.root).get("runs/inner/deep") == "ro")
    assert (inner / "x").read_bytes() == b"of inner"
    lake("persist", "/runs")
    assert not (lake.root_of_source / "inner").exists()


def test_a_root_is_written_once_something_that_is_written_is_attached_at_it(lake: Any) -> None:
    around = lake.files("around", {"x": b"around"})
    with (lake.root / "data/top.txt").open("rb", buffering=0) as stream:
        lake.client.attach(f"file://{around}", "/", writable=True)
        assert rights(lake.root) == {".": "rw", "data": "ro", "runs": "rw"}
        assert stream.read() == b"top", "who has a file open reads on"
    (lake.root / "y").write_bytes(b"new")
    assert (lake.root / "x").read_bytes() == b"around"
    lake("persist", "/")
    assert (around / "y").read_bytes() == b"new"


def test_a_part_of_what_is_written_is_mounted_alone_with_other_rights(lake: Any) -> None:
    (lake.root / "runs/part").mkdir()
    (lake.root / "runs/part/a").write_bytes(b"a")
    alone = lake.target("alone")
    lake("mount", str(alone), "--path", "/runs/part", "--file-mode", "0600", "--umask", "0077")
    assert rights(alone) == {".": "rw"}
    (alone / "b").write_bytes(b"b")
    assert (oct((alone / "b").stat().st_mode & 0o777), oct(alone.stat().st_mode & 0o777)) == ("0o600", "0o700")
    assert (lake.root / "runs/part/b").read_bytes() == b"b"
