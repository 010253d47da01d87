"""What programs do to files and directories on a mount, checked against a plain directory and in the source."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import random
import shutil
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import safetensors.numpy

from integration.conftest import make_writable_lake

FIO = ["--direct=0", "--size=16m", "--bs=64k", "--verify=crc32c", "--verify_fatal=1", "--randseed=1"]
OPERATIONS = 4000
SIZE_MAX = 300_000
NAME_STEPS = 400


@contextlib.contextmanager
def mounted_runs(machine: Any, *, may_be_killed: bool = False) -> Iterator[Any]:
    """A machine with /runs to be written, mounted at ``mount``; ``root`` is the directory that is its source."""
    made = make_writable_lake(machine)
    made.mount = made.target()
    made("mount", str(made.mount), "--path", "/runs")
    yield made
    if may_be_killed:
        made("umount", str(made.mount), "--force", check=None)
    else:
        made("umount", str(made.mount))
    made.client.close()


@pytest.fixture
def runs(machine: Any, can_mount: None) -> Iterator[Any]:
    """See :func:`mounted_runs`; its node lives to the end."""
    with mounted_runs(machine) as made:
        yield made


def run(*command: str, directory: Path | None = None) -> str:
    plain = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b"}
    plain |= {"GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}
    done = subprocess.run(command, cwd=directory, env=plain, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
    return done.stdout


def contents(directory: Path) -> dict[str, str]:
    """Every file below a directory by its name, as a checksum."""
    found = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file() and ".penstock" not in path.parts:
            found[str(path.relative_to(directory))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def files(directory: Path, chance: random.Random) -> Path:
    """A tree of files of many sizes, two of which are executable."""
    for number in range(40):
        path = directory / f"{number % 3}/{number % 5}/{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(chance.randbytes(chance.choice([0, 1, 4096, 100_000, 262_145, 1_500_000])))
    return directory


def test_a_tree_that_programs_copy_pack_and_move_comes_to_the_source_byte_for_byte(runs: Any, tmp_path: Path) -> None:
    local = files(tmp_path / "local", random.Random(1))
    expected = contents(local)
    run("cp", "-a", str(local), str(runs.mount / "copied"))
    run("sh", "-c", f"tar -cf - -C {local} . | (mkdir {runs.mount}/packed && tar -xf - -C {runs.mount}/packed)")
    if shutil.which("rsync"):
        run("rsync", "-a", f"{local}/", f"{runs.mount}/synced/")
        assert contents(runs.mount / "synced") == expected
    (runs.mount / "copied").rename(runs.mount / "moved")
    for name in ("moved", "packed"):
        assert contents(runs.mount / name) == expected
    runs.client.persist("/runs", timeout=120)
    for name in ("moved", "packed"):
        assert contents(runs.root / name) == expected
    assert not (runs.root / "copied").exists()
    shutil.rmtree(runs.mount / "packed")
    runs.client.persist("/runs", timeout=120)
    assert not (runs.root / "packed").exists()


def test_what_the_source_has_is_renamed_at_once_and_nothing_of_it_is_fetched_or_uploaded(runs: Any) -> None:
    expected = contents(files(runs.root / "cold", random.Random(2)))
    with (runs.root / "cold" / "huge").open("wb") as huge:
        # More than a rename could bring here first.
        huge.truncate(300 << 20)
    (runs.mount / "cold").rename(runs.mount / "warm")
    assert sorted(path.name for path in runs.mount.iterdir()) == ["warm"]
    assert (runs.mount / "warm" / "huge").stat().st_size == 300 << 20
    runs.client.persist("/runs", timeout=120)
    metrics = runs.control().status()["metrics"]
    assert metrics["copies"] == len(expected) + 1
    assert (metrics["uploads"], metrics["source_read_requests"]) == (0, 0)
    assert not (runs.root / "cold").exists()
    assert (runs.root / "warm" / "huge").stat().st_size == 300 << 20
    (runs.root / "warm" / "huge").unlink()
    assert contents(runs.root / "warm") == expected


def test_names_that_are_given_taken_and_changed_in_any_order_hold_what_those_of_a_plain_directory_hold(
    runs: Any, tmp_path: Path
) -> None:
    chance, plain = random.Random(3), tmp_path / "plain"
    plain.mkdir()
    directories = (runs.mount, plain)
    names = ["a", "b", "c", "d"]

    def append(path: Path) -> None:
        with path.open("ab") as file:
            file.write(piece)

    def patch(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(at)
            file.write(piece)

    steps = {
        "write": lambda directory: (directory / name).write_bytes(piece),
        "append": lambda directory: append(directory / name),
        "patch": lambda directory: patch(directory / name),
        "cut": lambda directory: os.truncate(directory / name, at),
        "rename": lambda directory: (directory / name).rename(directory / other),
        "remove": lambda directory: (directory / name).unlink(),
        "read": lambda directory: (directory / name).read_bytes(),
    }
    for step in range(NAME_STEPS):
        name, other, at = chance.choice(names), chance.choice(names), chance.randrange(2000)
        piece = chance.randbytes(chance.choice([1, 500, 3000]))
        kind = chance.choice([*steps, "rename", "rename"])
        outcomes = []
        for directory in directories:
            try:
                outcomes.append(steps[kind](directory) if kind == "read" else bool(steps[kind](directory)) or None)
            except OSError as error:
                outcomes.append(error.errno)
        if kind in ("write", "rename"):
            outcomes = [type(outcome) for outcome in outcomes]
        assert outcomes[0] == outcomes[1], (step, kind, name, other)
        assert contents(runs.mount) == contents(plain), (step, kind, name, other)
        if step % 40 == 0:
            runs.client.persist("/runs", timeout=60)
            assert contents(runs.root) == contents(plain)


def test_git_works_in_it(runs: Any, tmp_path: Path) -> None:
    repository = runs.mount / "repository"
    run("git", "init", "-q", str(repository))
    for number in range(10):
        (repository / f"{number % 3}.txt").write_text(f"{number}\n" * 100)
        run("git", "add", "-A", directory=repository)
        run("git", "commit", "-qm", f"change {number}", directory=repository)
    run("git", "gc", "-q", directory=repository)
    assert run("git", "status", "--porcelain", directory=repository) == ""
    assert run("git", "fsck", "--strict", directory=repository) == ""
    run("git", "clone", "-q", str(repository), str(tmp_path / "cloned"))
    assert run("git", "log", "--format=%s", directory=tmp_path / "cloned").splitlines()[0] == "change 9"


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_sqlite_works_in_it(runs: Any, journal: str) -> None:
    with sqlite3.connect(runs.mount / "a.db") as database:
        database.execute(f"pragma journal_mode={journal}")
        database.execute("create table rows (number integer primary key, content blob)")
        for start in range(0, 1000, 100):
            database.executemany("insert into rows values (?, ?)", [(start + n, b"%d" % n * 50) for n in range(100)])
            database.commit()
        database.execute("delete from rows where number % 2")
        database.commit()
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)
    database.close()
    runs.client.persist("/runs", timeout=120)
    copy = sqlite3.connect(runs.root / "a.db")
    assert copy.execute("select count(*), sum(number) from rows").fetchone() == (500, sum(range(0, 1000, 2)))
    copy.close()


def test_arrays_and_tensors_are_saved_and_read_back(runs: Any) -> None:
    arrays = {name: numpy.random.default_rng(seed).random((300, 1000)) for seed, name in enumerate("abc")}
    numpy.savez(runs.mount / "arrays.npz", **arrays)
    safetensors.numpy.save_file(arrays, runs.mount / "model.safetensors")
    mapped = numpy.lib.format.open_memmap(runs.mount / "mapped.npy", "w+", dtype="f8", shape=(300, 1000))
    mapped[:] = arrays["a"]
    mapped.flush()
    del mapped
    for directory in (runs.mount, runs.root):
        with numpy.load(directory / "arrays.npz") as loaded:
            assert all((loaded[name] == array).all() for name, array in arrays.items())
        loaded = safetensors.numpy.load_file(directory / "model.safetensors")
        assert all((loaded[name] == array).all() for name, array in arrays.items())
        assert (numpy.load(directory / "mapped.npy") == arrays["a"]).all()
        runs.client.persist("/runs", timeout=120)


def test_torch_saves_and_loads_a_checkpoint(runs: Any) -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    state = {f"layer{number}": torch.randn(400, 500) for number in range(4)}
    torch.save(state, runs.mount / "state.tmp")
    (runs.mount / "state.tmp").replace(runs.mount / "state.pt")
    runs.client.persist("/runs", timeout=120)
    for path in (runs.mount / "state.pt", runs.root / "state.pt"):
        loaded = torch.load(path, mmap=True)
        assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


def test_who_follows_a_file_sees_it_grow_and_the_client_what_was_closed_last(runs: Any) -> None:
    (runs.mount / "events").write_bytes(b"first\n")
    lines = [b"line %d\n" % number for number in range(300)]

    def append() -> None:
        with (runs.mount / "events").open("ab", buffering=0) as stream:
            for line in lines:
                stream.write(line)

    expected, followed = b"first\n" + b"".join(lines), b""
    writing = (runs.mount / "events").open("ab", buffering=0)
    with (runs.mount / "events").open("rb", buffering=0) as stream:
        writer = threading.Thread(target=append)
        writer.start()
        end = time.monotonic() + 60
        while len(followed) < len(expected):
            assert time.monotonic() < end, "it does not grow"
            followed += stream.read()
            assert expected.startswith(followed)
        writer.join()
    writing.close()
    assert runs.client.open("/runs/events").read() == expected


@pytest.mark.skipif(shutil.which("fio") is None, reason="needs fio")
@pytest.mark.parametrize("options", [["--rw=write"], ["--rw=randwrite"], ["--rw=randrw", "--ioengine=mmap"]])
def test_fio_verifies_what_it_wrote(runs: Any, tmp_path: Path, options: list[str]) -> None:
    run("fio", "--name=verify", f"--filename={runs.mount}/fio", *FIO, *options, directory=tmp_path)
    run("fio", "--name=again", f"--filename={runs.mount}/fio", *FIO, *options, "--verify_only", directory=tmp_path)


class Exerciser:
    """Random changes of one file, made to a plain file as well; both always hold the same."""

    def __init__(self, runs: Any, plain: Path, seed: int) -> None:
        self.runs, self.chance = runs, random.Random(seed)
        self.paths = (runs.mount / "exercised", plain)
        self.opened = [path.open("w+b", buffering=0) for path in self.paths]

    def step(self) -> None:
        operation = self.chance.choice(
            [self.write, self.write, self.read, self.read, self.cut, self.map, self.map_read, self.reopen, self.sync]
        )
        if self.chance.random() < 0.01:
            operation = self.chance.choice([self.evict, self.persist, self.rename])
        operation()

    def write(self) -> None:
        offset, data = self.chance.randrange(SIZE_MAX), self.chance.randbytes(self.chance.randrange(1, 30_000))
        for opened in self.opened:
            assert os.pwrite(opened.fileno(), data, offset) == len(data)

    def read(self) -> None:
        offset, size = self.chance.randrange(SIZE_MAX), self.chance.randrange(1, 60_000)
        one, other = (os.pread(opened.fileno(), size, offset) for opened in self.opened)
        assert one == other, f"{size} bytes at {offset}"

    def cut(self) -> None:
        size = self.chance.randrange(SIZE_MAX)
        for opened in self.opened:
            opened.truncate(size)

    def map(self) -> None:
        size = os.fstat(self.opened[1].fileno()).st_size
        if size < 2:
            return
        start = self.chance.randrange(size - 1)
        data = self.chance.randbytes(self.chance.randrange(1, min(20_000, size - start) + 1))
        for opened in self.opened:
            with mmap.mmap(opened.fileno(), size) as mapped:
                mapped[start : start + len(data)] = data

    def map_read(self) -> None:
        one, other = (os.fstat(opened.fileno()).st_size for opened in self.opened)
        assert one == other
        if one:
            with (
                mmap.mmap(self.opened[0].fileno(), one, prot=mmap.PROT_READ) as mapped,
                mmap.mmap(self.opened[1].fileno(), one, prot=mmap.PROT_READ) as expected,
            ):
                assert mapped[:] == expected[:]

    def reopen(self) -> None:
        for opened in self.opened:
            opened.close()
        self.opened = [path.open("r+b", buffering=0) for path in self.paths]

    def sync(self) -> None:
        for opened in self.opened:
            os.fsync(opened.fileno())
        name = self.paths[0].name
        assert self.runs.client.open(f"/runs/{name}").read() == self.paths[1].read_bytes()

    def evict(self) -> None:
        self.runs("evict", "/runs")

    def persist(self) -> None:
        self.sync()
        self.runs.client.persist("/runs", timeout=60)
        assert (self.runs.root / self.paths[0].name).read_bytes() == self.paths[1].read_bytes()

    def rename(self) -> None:
        other = self.paths[0].with_name("other" if self.paths[0].name == "exercised" else "exercised")
        self.paths[0].rename(other)
        self.paths = (other, self.paths[1])


@pytest.mark.timeout(240)
def test_a_file_that_is_changed_at_random_in_every_way_is_what_a_plain_file_is(runs: Any, tmp_path: Path) -> None:
    seed = int(os.environ.get("TEST_SEED", time.time_ns() % 1_000_000))
    print(f"seed {seed}: set TEST_SEED to see it again")
    exerciser = Exerciser(runs, tmp_path / "plain", seed)
    for _ in range(OPERATIONS):
        exerciser.step()
    exerciser.persist()
    for opened in exerciser.opened:
        opened.close()
