"""New files that the kernel writes by itself: what others see of them meanwhile, and what a crash leaves."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mount.test_writing import mounted_runs
from mount.test_writing import runs as runs

MIB = 1024 * 1024
STEPS = 1500
SIZE_MAX = 600_000
"""Twice what the journal holds by itself."""
SMALL_IN_A_ROW = 8
"""After so many the next is expected to be small, too, and begun in memory."""

WRITER = """
import os, sys
descriptor = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
os.write(descriptor, b"a" * {size})
os.fsync(descriptor)
print("synced", flush=True)
sys.stdin.readline()
os.write(descriptor, b"b" * {size})
os.pwrite(descriptor, b"c" * 100, 0)
print("written", flush=True)
sys.stdin.readline()
os.pwrite(descriptor, b"d" * 100, 50)
print("written again", flush=True)
sys.stdin.readline()
"""


def counted(runs: Any, work: Callable[[], object]) -> dict[str, int]:
    """By how much the node's counters grew while something was done."""
    before = runs.control().status()["metrics"]
    work()
    after = runs.control().status()["metrics"]
    return {name: after[name] - before[name] for name in after}


def read(runs: Any, name: str) -> bytes:
    with runs.client.open(f"/runs/{name}") as stream:
        content: bytes = stream.read()
        return content


def persisted(runs: Any, name: str) -> bytes:
    runs.client.persist(f"/runs/{name}", timeout=60)
    content: bytes = (runs.root / name).read_bytes()
    return content


def new(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)


def flush(descriptor: int) -> None:
    """What a program does that ends and has inherited a descriptor."""
    os.close(os.dup(descriptor))


def write_small_files(directory: Path, count: int = SMALL_IN_A_ROW) -> None:
    for number in range(count):
        (directory / f"small-{number}").write_bytes(b"small")


def test_a_new_file_is_written_by_the_kernel_alone(runs: Any) -> None:
    content = random.Random(1).randbytes(40 * MIB)

    def save() -> None:
        (runs.mount / "large").write_bytes(content)
        (runs.mount / "small").write_bytes(content[:1000])
        (runs.mount / "large").write_bytes(content[::-1])

    grown = counted(runs, save)
    assert (grown["kernel_writes"], grown["kernel_lent_opens"], grown["stage_commits"]) == (0, 3, 3)
    assert read(runs, "large") == content[::-1] == (runs.mount / "large").read_bytes()
    assert (persisted(runs, "large"), persisted(runs, "small")) == (content[::-1], content[:1000])
    evicted = counted(runs, lambda: read(runs, "large"))
    assert evicted["source_bytes"] == 0, "the newest version is warm"


def test_small_files_that_follow_each_other_are_in_the_journal_alone_until_one_is_large(runs: Any) -> None:
    content = random.Random(2).randbytes(MIB)
    write_small_files(runs.mount)

    def save() -> None:
        for number in range(20):
            (runs.mount / f"more-{number}").write_bytes(content[number : number + 100_000])

    grown = counted(runs, save)
    assert (grown["kernel_lent_opens"], grown["kernel_writes"], grown["stage_commits"]) == (0, 20, 20)
    grown = counted(runs, lambda: (runs.mount / "large").write_bytes(content))
    assert (grown["kernel_lent_opens"], grown["kernel_written_bytes"]) == (0, MIB), "it goes on where it was begun"
    grown = counted(runs, lambda: (runs.mount / "next").write_bytes(content))
    assert (grown["kernel_lent_opens"], grown["kernel_writes"]) == (1, 0)
    assert read(runs, "more-3") == content[3:100_003] == persisted(runs, "more-3")
    assert read(runs, "large") == content == persisted(runs, "large") == persisted(runs, "next")


@pytest.mark.parametrize("size", [1000, 3 * MIB])
def test_what_was_closed_is_seen_until_the_next_close_though_a_handle_stays_open(runs: Any, size: int) -> None:
    first, second = b"1" * size, b"2" * (size // 2)
    descriptor = new(runs.mount / "a")
    os.write(descriptor, first)
    flush(descriptor)
    with runs.client.open("/runs/a") as stream:
        os.pwrite(descriptor, second, 0)
        os.pwrite(descriptor, second, size)
        assert (stream.read(), read(runs, "a")) == (first, first)
        grown = second + first[len(second) :] + second
        assert (runs.mount / "a").read_bytes() == grown, "who reads the file on the mount sees it grow"
        assert persisted(runs, "a") == first
        flush(descriptor)
        assert (stream.read(), read(runs, "a")) == (b"", grown)
        os.pwrite(descriptor, b"3", 0)
        os.close(descriptor)
        assert read(runs, "a") == b"3" + grown[1:]
        stream.seek(0)
        assert stream.read() == first
    assert persisted(runs, "a") == b"3" + grown[1:]


def test_programs_of_a_shell_write_one_after_another_to_one_file(runs: Any) -> None:
    script = "{ echo one; /bin/echo two; sleep 0.3; /bin/echo three; cat; } > log; cat log; echo four >> log; cat log"
    done = subprocess.run(
        ["sh", "-c", script], cwd=runs.mount, input="in\n", capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "one\ntwo\nthree\nin\none\ntwo\nthree\nin\nfour\n", done.stderr
    assert read(runs, "log") == b"one\ntwo\nthree\nin\nfour\n" == persisted(runs, "log")


def test_a_file_that_is_written_is_renamed_replaced_cut_and_removed(runs: Any) -> None:
    descriptor = new(runs.mount / "a.tmp")
    os.write(descriptor, b"1" * MIB)
    (runs.mount / "a.tmp").rename(runs.mount / "a")
    assert read(runs, "a") == b"1" * MIB
    os.write(descriptor, b"2" * MIB)
    assert read(runs, "a") == b"1" * MIB
    os.fsync(descriptor)
    assert read(runs, "a") == b"1" * MIB + b"2" * MIB
    os.truncate(runs.mount / "a", MIB // 2)
    assert os.fstat(descriptor).st_size == MIB // 2
    other = new(runs.mount / "a")
    assert os.fstat(descriptor).st_size == 0
    os.write(other, b"3" * 10)
    os.close(other)
    os.pwrite(descriptor, b"4", 9)
    os.close(descriptor)
    assert read(runs, "a") == b"3" * 9 + b"4" == persisted(runs, "a")

    descriptor = new(runs.mount / "b")
    os.write(descriptor, b"5" * MIB)
    os.fsync(descriptor)
    (runs.mount / "c").write_bytes(b"6")
    (runs.mount / "c").rename(runs.mount / "b")
    os.write(descriptor, b"7")
    os.ftruncate(descriptor, 3)
    assert (os.fstat(descriptor).st_size, read(runs, "b")) == (3, b"6")
    (runs.mount / "b").unlink()
    os.write(descriptor, b"8")
    os.close(descriptor)
    runs.client.persist("/runs", timeout=60)
    assert not (runs.root / "b").exists()
    assert not (runs.mount / "b").exists()


@pytest.mark.parametrize("before", [0, SMALL_IN_A_ROW])
def test_who_maps_appends_and_reads_a_file_that_others_write_sees_one_file(
    runs: Any, tmp_path: Path, before: int
) -> None:
    write_small_files(runs.mount, before)
    chance = random.Random(seed := int(os.environ.get("TEST_SEED", time.time_ns() % 1_000_000)))
    print(f"seed {seed}: set TEST_SEED to see it again")
    paths = [runs.mount / "a", tmp_path / "a"]
    writers = [[new(path)] for path in paths]
    flags = (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND)

    def both(work: Callable[[list[int], Path], object]) -> None:
        seen = [work(opened, path) for opened, path in zip(writers, paths, strict=True)]
        assert seen[0] == seen[1]

    def step() -> None:
        which, at = chance.randrange(len(writers[0])), chance.randrange(SIZE_MAX)
        data, flag = chance.randbytes(chance.randrange(1, 50_000)), chance.choice(flags)
        what = chance.choice(["write", "write", "write", "read", "cut", "flush", "sync", "open", "close", "client"])
        if what == "write":
            both(lambda opened, _: os.pwrite(opened[which], data, at))
        elif what == "read":
            both(lambda _, path: path.read_bytes())
        elif what == "cut":
            both(lambda _, path: os.truncate(path, at))
        elif what == "flush":
            both(lambda opened, _: flush(opened[which]))
        elif what == "sync":
            both(lambda opened, _: os.fsync(opened[which]))
            assert read(runs, "a") == paths[1].read_bytes()
        elif what == "open" and len(writers[0]) < 6:
            both(lambda opened, path: opened.append(os.open(path, flag)))
        elif what == "close" and len(writers[0]) > 1:
            both(lambda opened, _: os.close(opened.pop(which)))
        elif what == "client":
            read(runs, "a")

    try:
        both(lambda opened, _: flush(opened[0]))
        for _ in range(STEPS):
            step()
    finally:
        both(lambda opened, _: [os.close(descriptor) for descriptor in opened])
    assert read(runs, "a") == paths[1].read_bytes() == persisted(runs, "a")


@pytest.fixture
def lake(machine: Any, can_mount: None) -> Iterator[Any]:
    """As ``runs``, of which the node may be killed."""
    with mounted_runs(machine, may_be_killed=True) as made:
        yield made


@pytest.mark.parametrize("size", [1000, 3 * MIB])
def test_what_was_synced_of_a_file_that_began_in_memory_survives_a_crash(lake: Any, size: int) -> None:
    write_small_files(lake.mount)
    descriptor = new(lake.mount / "a")
    os.write(descriptor, b"a" * size)
    os.fsync(descriptor)
    os.pwrite(descriptor, b"b" * 100, size)
    lake.kill()
    with pytest.raises(OSError):
        os.pwrite(descriptor, b"c", 0)
    with pytest.raises(OSError):
        os.close(descriptor)
    lake("up")
    assert read(lake, "a") == b"a" * size == persisted(lake, "a")


@pytest.mark.parametrize("size", [1000, 3 * MIB])
def test_what_was_synced_survives_a_crash_while_its_writer_goes_on(lake: Any, size: int) -> None:
    command = (sys.executable, "-c", WRITER.format(size=size), str(lake.mount / "a"))
    writer = lake.spawn(*command, stdin=True)

    def tell(answer: str) -> None:
        writer.stdin.write("\n")
        writer.stdin.flush()
        assert writer.stdout.readline() == answer

    assert writer.stdout.readline() == "synced\n"
    assert read(lake, "a") == b"a" * size, "now a copy of it is committed"
    lake.kill()
    tell("written\n")
    lake("up")
    assert read(lake, "a") == b"a" * size
    tell("written again\n")
    assert read(lake, "a") == b"a" * size == persisted(lake, "a")
    writer.kill()
    writer.wait()


def test_what_was_written_behind_a_version_after_its_sync_is_cut_off_by_the_next_start(lake: Any) -> None:
    """Killed before a copy could be made: the version is the first part of the file, and stays that."""
    writer = lake.spawn(
        sys.executable,
        "-c",
        WRITER.replace('os.pwrite(descriptor, b"c" * 100, 0)', "").format(size=MIB),
        str(lake.mount / "a"),
        stdin=True,
    )
    assert writer.stdout.readline() == "synced\n"
    lake.kill()
    writer.stdin.write("\n")
    writer.stdin.flush()
    assert writer.stdout.readline() == "written\n"
    lake("up")
    assert read(lake, "a") == b"a" * MIB
    writer.stdin.write("\n")
    writer.stdin.flush()
    assert writer.stdout.readline() == "written again\n"
    assert read(lake, "a") == b"a" * MIB == persisted(lake, "a")
    writer.kill()
    writer.wait()
