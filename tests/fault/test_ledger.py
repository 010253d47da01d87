"""Writers whose node is killed: every acknowledged state is there afterwards, byte for byte, and nothing is torn."""

from __future__ import annotations

import http.client
import os
import random
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import fsspec
import pytest

import penstock
from fault import oracle
from penstock.errors import NotFoundError, PenstockError

KILLS = 25
KILLS_IN_SOAK = 500
WRITERS = 4
NAMES = 6
SIZES = [0, 200, 4096, 100_001, 262_144, 262_145, 700_001, 3_000_001, 20_000_003, 41_000_003]
WEIGHTS = [2, 2, 2, 2, 2, 2, 2, 2, 2, 1]
LONGEST_LIFE_S = 0.6
"""From the first acknowledgement to the kill."""

State = tuple[int, int] | None
"""Version and size of what a path holds; ``None`` for nothing."""


class Ledger:
    """What each path may hold: one state once that was acknowledged, the old and the new one while it is not."""

    def __init__(self) -> None:
        self.states: dict[str, set[State]] = {
            f"{writer}/{name}": {None} for writer in range(WRITERS) for name in range(NAMES)
        }
        self.acknowledged = 0
        self.cut_short = 0

    def check(self, name: str, found: State) -> None:
        """Fails on a state that is neither acknowledged nor under way; what was found counts from now on."""
        assert found in self.states[name], f"{name} holds {found} and none of {self.states[name]}"
        self.states[name] = {found}


class Writer(threading.Thread):
    """Writes, replaces and removes files of its own in every way until the node is gone."""

    def __init__(
        self, home: Any, ledger: Ledger, number: int, chance: random.Random, mount: Path | None = None
    ) -> None:
        super().__init__()
        self.ledger, self.number, self.chance, self.mount = ledger, number, chance, mount
        self.client = penstock.connect(home, start=False)
        self.fs = fsspec.filesystem("penstock", home=os.fspath(home), start=False, skip_instance_cache=True)
        self.wrong: str | None = None
        self.start()

    def run(self) -> None:
        try:
            while self._change():
                pass
        except Exception as error:
            self.wrong = repr(error)

    def _change(self) -> bool:
        name = f"{self.number}/{self.chance.randrange(NAMES)}"
        before = self.ledger.states[name]
        (size,) = self.chance.choices(SIZES, WEIGHTS)
        new: State = (self.chance.randrange(1, 1 << 40) if size else 0, size)
        if None not in before and self.chance.random() < 0.2:
            new = None
        self.ledger.states[name] = before | {new}
        try:
            self._carry_out(name, new)
        except (PenstockError, OSError):
            # The node is gone in the middle of it.
            self.ledger.cut_short += 1
            return False
        self.ledger.states[name] = {new}
        self.ledger.acknowledged += 1
        return True

    def _carry_out(self, name: str, new: State) -> None:
        path = f"/runs/{name}"
        if self.mount is not None and self.chance.random() < 0.6:
            self._carry_out_by_mount(self.mount / name, new)
            return
        if new is None:
            self.client.remove(path)
            return
        version, size = new
        content = oracle.content(number_of(name), version, 0, size)
        if self.chance.random() < 0.3:
            self.fs.pipe_file(path, content)
            return
        pieces = self.chance.randrange(1, 4)
        with self.client.open(path, "wb") as file:
            for piece in range(pieces):
                file.write(content[size * piece // pieces : size * (piece + 1) // pieces])

    def _carry_out_by_mount(self, path: Path, new: State) -> None:
        if new is None:
            path.unlink()
            return
        version, size = new
        content = oracle.content(number_of(f"{path.parent.name}/{path.name}"), version, 0, size)
        path.parent.mkdir(exist_ok=True)
        beside = self.chance.random() < 0.4
        written = path.with_name("beside") if beside else path
        with written.open("wb", buffering=0) as file:
            left = memoryview(content)
            while left:
                left = left[file.write(left[: 1 << 20]) :]
            if self.chance.random() < 0.3:
                os.fsync(file.fileno())
        if beside:
            written.replace(path)


def number_of(name: str) -> int:
    writer, _, number = name.partition("/")
    return int(writer) * NAMES + int(number)


def whole(name: str, content: bytes) -> State:
    """The state that content is; fails where it is not all of one version."""
    if not content:
        return (0, 0)
    version = oracle.version_in(content, 0)
    oracle.check(number_of(name), version, 0, content)
    return (version, len(content))


def seen(client: Any, name: str) -> State:
    try:
        with client.open(f"/runs/{name}") as file:
            return whole(name, file.read())
    except NotFoundError:
        return None


def seen_by_mount(path: Path) -> State:
    try:
        return whole(f"{path.parent.name}/{path.name}", path.read_bytes())
    except FileNotFoundError:
        return None


def is_served(mount: Path) -> bool:
    """Whether a mount answers, after the node that served it was killed."""
    try:
        return os.path.ismount(mount) and next(mount.iterdir(), None) is not None
    except OSError:
        return False


def stored(remote: Any, name: str) -> State:
    """What the source holds, asked by plain HTTP."""
    connection = http.client.HTTPConnection(remote.endpoint.removeprefix("http://"), timeout=30)
    connection.request("GET", f"/bucket/runs/{name}")
    response = connection.getresponse()
    content = response.read()
    connection.close()
    assert response.status in (200, 404), response.status
    return whole(name, content) if response.status == 200 else None


def write_and_kill(machine: Any, kills: int, mount: Path | None = None) -> None:
    seed = int(os.environ.get("TEST_SEED", time.time_ns() % 1_000_000))
    print(f"seed {seed}: set TEST_SEED to see it again")
    chance, ledger = random.Random(seed), Ledger()
    remote = machine.remote({})
    client = penstock.connect(machine.home.name)
    where = {"endpoint": remote.endpoint, "credentials": "anonymous"}
    client.attach("s3://bucket/runs", "/runs", writable=True, **where)
    if mount is not None:
        machine("mount", str(mount), "--path", "/runs")
    for round_number in range(kills):
        acknowledged = ledger.acknowledged
        writers = [
            Writer(machine.home.name, ledger, number, random.Random(f"{seed}/{round_number}/{number}"), mount)
            for number in range(WRITERS)
        ]
        machine.until(lambda before=acknowledged: ledger.acknowledged > before)
        time.sleep(chance.random() * LONGEST_LIFE_S)
        machine.kill()
        for writer in writers:
            writer.join()
            assert writer.wrong is None, writer.wrong
        client = penstock.connect(machine.home.name)
        for name in ledger.states:
            ledger.check(name, seen(client, name))
        if mount is not None:
            machine.until(lambda: is_served(mount))
            for name in ledger.states:
                ledger.check(name, seen_by_mount(mount / name))
    if mount is not None:
        machine("umount", str(mount))
    print(f"{ledger.acknowledged} changes were acknowledged, {ledger.cut_short} were cut short by {kills} kills")
    assert ledger.cut_short >= kills, "the node was killed while something was written"

    client.persist("/runs", timeout=60)
    assert client.status()["stage"]["conflicts"] == 0, client.status()["stage"]
    for name in ledger.states:
        ledger.check(name, stored(remote, name))
    # All that this machine knows is lost: the source alone tells the same.
    client.close()
    machine.kill()
    shutil.rmtree(machine.home.name)
    client = penstock.connect(machine.home.name)
    client.attach("s3://bucket/runs", "/runs", **where)
    for name in ledger.states:
        ledger.check(name, seen(client, name))
    client.close()


@pytest.mark.timeout(300)
def test_what_was_acknowledged_before_a_kill_is_there_after_it_and_in_the_source_in_the_end(machine: Any) -> None:
    write_and_kill(machine, KILLS)


@pytest.mark.timeout(300)
def test_what_was_acknowledged_through_a_mount_before_a_kill_is_there_after_it(machine: Any, can_mount: None) -> None:
    write_and_kill(machine, KILLS, machine.target())


@pytest.mark.soak
def test_what_was_acknowledged_through_a_mount_before_hundreds_of_kills_is_there_after_them(
    machine: Any, can_mount: None
) -> None:
    write_and_kill(machine, KILLS_IN_SOAK // 2, machine.target())


@pytest.mark.soak
def test_what_was_acknowledged_before_hundreds_of_kills_is_there_after_them(machine: Any) -> None:
    write_and_kill(machine, KILLS_IN_SOAK)
