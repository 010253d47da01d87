"""Writers whose node is killed: every acknowledged state is there afterwards, byte for byte, and nothing is torn."""

from __future__ import annotations

import http.client
import json
import os
import random
import select
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import penstock
from fault.ledger import Ledger, State, whole
from fault.steps import Steps
from integration.conftest import Machine, alive
from penstock.errors import NotFoundError

KILLS, KILLS_MOUNTED = 40, 60
"""A hundred in all; shared out to so many homes at the same time:"""
HOMES = 2
KILLS_IN_SOAK = 250
WRITERS = 3
LONGEST_LIFE_S = 0.5
"""From the first acknowledgement to a kill at any moment."""
PATIENCE_S = 2.5
"""For an order to be killed at a step; then it is any moment."""
ORDERED = 0.7
"""Share of the kills that have an order."""
SOURCE_CHECKED_EVERY = 8
GONE_S = 2.5
"""Writers have noticed by then that their node is gone."""

STEPS = ["write", "sync", "journal", "rename", "part", "completion", "copy", "removal", "adoption", "settling"]
MOST_TIMES = {"write": 8, "sync": 4, "journal": 8, "part": 4}
"""How many times of a step an order may let pass."""


class Siege:
    """One home whose node is killed again and again, with a bucket of its own, writers and their ledger."""

    def __init__(self, machine: Machine, seed: str, is_mounted: bool) -> None:
        self.machine, self.seed, self.chance = machine, seed, random.Random(seed)
        # Another file system than that of the home, where there is one.
        memory = Path("/dev/shm")
        self.book = Path(tempfile.mkdtemp(prefix="ledger-", dir=memory if memory.is_dir() else None))
        self.ledger, self.steps = Ledger(self.book, WRITERS), Steps(self.book)
        self.landed: Counter[str] = Counter()
        self.kills = self.under_way = self.hung = 0
        self.wanted = [*STEPS, "lent"] if is_mounted else STEPS
        machine.environment |= self.steps.environment
        self.remote = machine.remote({})
        self.mount = machine.target() if is_mounted else None
        writers = str(Path(__file__).with_name("writers.py"))
        path = {
            "PYTHONPATH": os.pathsep.join(map(str, [Path(__file__).parents[1], Path(__file__).parents[2] / "python"]))
        }
        self.writers = machine.spawn(
            sys.executable,
            writers,
            str(machine.home.name),
            str(self.book),
            str(self.mount or ""),
            str(WRITERS),
            stdin=True,
            **path,
        )
        assert self._tell("start") == "up"
        self.where = {"endpoint": self.remote.endpoint, "credentials": "anonymous"}
        with self._client() as client:
            client.attach("s3://bucket/runs", "/runs", writable=True, **self.where)
        if self.mount is not None:
            machine("mount", str(self.mount), "--path", "/runs")

    def run(self, kills: int) -> None:
        """Kills the node so often, each time while writers write, and looks at what is there after its next start."""
        for number in range(kills):
            self._live(number)
            self._start(at_once=self.chance.random() < 0.15)
            self._check()
            if number % SOURCE_CHECKED_EVERY == SOURCE_CHECKED_EVERY - 1:
                for name in self.ledger.states:
                    self.ledger.check_source(name, self._stored(name))

    def end(self) -> None:
        """The source alone has what it was said to have, and all of it after a last persist."""
        self.machine.kill()
        for name in self.ledger.states:
            self.ledger.check_source(name, self._stored(name))
        self._start()
        self._check()
        if self.mount is not None:
            self.machine("umount", str(self.mount))
        with self._client() as client:
            client.persist("/runs", timeout=60)
            assert client.status()["stage"]["conflicts"] == 0, client.status()["stage"]
        for name in self.ledger.states:
            self.ledger.check(name, self._stored(name))
        # All that this machine knows is lost.
        self.machine.kill()
        shutil.rmtree(self.machine.home.name)
        assert self._tell("start") == "up"
        with self._client() as client:
            client.attach("s3://bucket/runs", "/runs", **self.where)
            for name in self.ledger.states:
                self.ledger.check(name, seen(client, name))

    def close(self) -> None:
        self.machine.close()
        shutil.rmtree(self.book)

    def _live(self, number: int) -> None:
        node, acknowledged = self.machine.pid(), self.ledger.acknowledged
        self._say([node, f"{self.seed}/{number}", self.ledger.known()])

        def is_begun() -> bool:
            self.ledger.read()
            return self.ledger.acknowledged > acknowledged or not alive(node)

        self.machine.until(is_begun)
        if self.chance.random() < ORDERED:
            step = min(self.wanted, key=lambda step: (self.landed[step], self.chance.random()))
            times = self.chance.randint(1, MOST_TIMES.get(step, 2))
            self.steps.kill_at(step, times, self.chance.random() < 0.5)
            await_end(node, PATIENCE_S)
        else:
            time.sleep(self.chance.random() * LONGEST_LIFE_S)
        self._is_killed(node)
        if not select.select([self.writers.stdout], [], [], GONE_S)[0]:
            # The kernel waits for the node in a mount, and the node for the kernel: the next start ends that.
            self.hung += 1
            self.machine("up")
        assert self._answer() == "over"
        self.ledger.end_life()
        assert not self.ledger.wrong, self.ledger.wrong

    def _is_killed(self, node: int) -> None:
        """Kills the node, unless it did that itself, and counts what it was in the middle of."""
        if alive(node):
            self.machine.kill()
        self._count()

    def _count(self) -> None:
        under_way = self.steps.under_way()
        self.landed.update(under_way)
        self.under_way += bool(under_way)
        self.kills += 1
        self.steps.go_on()

    def _start(self, at_once: bool = False) -> None:
        """Starts the node; ``at_once`` has it killed by what it begins to do by itself."""
        if at_once:
            step = self.chance.choice(["journal", "completion", "part", "copy", "removal", "adoption", "settling"])
            self.steps.order(f"{step} {self.chance.randint(1, 3)} {self.chance.choice(['begin', 'end'])}")
            if self._tell("start") == "up":
                await_end(self.machine.pid(), 0.3)
                self._is_killed(self.machine.pid())
            else:
                self._count()
        assert (answer := self._tell("start")) == "up", answer

    def _check(self) -> None:
        with self._client() as client:
            found = {name: seen(client, name) for name in self.ledger.states}
            self.ledger.check_moves(found)
            for name, state in found.items():
                self.ledger.check(name, state)
            assert client.status()["stage"]["conflicts"] == 0, client.status()["stage"]
        if self.mount is not None:
            self.machine.until(lambda: is_served(self.mount))
            for name in self.ledger.states:
                self.ledger.check(name, seen_by_mount(self.mount, name))

    def _client(self) -> Any:
        return penstock.connect(self.machine.home.name, start=False)

    def _stored(self, name: str) -> State:
        """What the source holds, asked by plain HTTP."""
        connection = http.client.HTTPConnection(self.remote.endpoint.removeprefix("http://"), timeout=30)
        connection.request("GET", f"/bucket/runs/{name}")
        response = connection.getresponse()
        content = response.read()
        connection.close()
        assert response.status in (200, 404), response.status
        return whole(name, content) if response.status == 200 else None

    def _tell(self, order: object) -> str:
        self._say(order)
        return self._answer()

    def _say(self, order: object) -> None:
        self.writers.stdin.write(json.dumps(order) + "\n")  # type: ignore[union-attr]
        self.writers.stdin.flush()  # type: ignore[union-attr]

    def _answer(self) -> str:
        answer: str = self.writers.stdout.readline().rstrip("\n")  # type: ignore[union-attr]
        assert answer, self.writers.stderr.read()  # type: ignore[union-attr]
        return answer


def await_end(node: int, limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while alive(node) and time.monotonic() < deadline:
        time.sleep(0.005)


def seen(client: Any, name: str) -> State:
    try:
        with client.open(f"/runs/{name}") as file:
            return whole(name, file.read())
    except NotFoundError:
        return None


def seen_by_mount(mount: Path, name: str) -> State:
    try:
        return whole(name, (mount / name).read_bytes())
    except FileNotFoundError:
        return None


def is_served(mount: Path | None) -> bool:
    """Whether a mount answers, after the node that served it was killed."""
    try:
        return mount is not None and os.path.ismount(mount) and next(mount.iterdir(), None) is not None
    except OSError:
        return False


@pytest.fixture
def besiege(tmp_path: Path, record_property: Callable[[str, object], None]) -> Iterator[Callable[..., None]]:
    """Has the nodes of several homes killed, so often in all, and tells what they were in the middle of."""
    sieges: list[Siege] = []

    def run(kills: int, is_mounted: bool) -> None:
        seed = os.environ.get("TEST_SEED", str(time.time_ns() % 1_000_000))
        print(f"seed {seed}: set TEST_SEED to see it again")
        for number in range(HOMES):
            directory = tmp_path / str(number)
            directory.mkdir()
            sieges.append(Siege(Machine(directory), f"{seed}/{number}", is_mounted))
        with ThreadPoolExecutor(HOMES) as homes:
            list(homes.map(lambda siege: siege.run(kills // HOMES), sieges))
            list(homes.map(Siege.end, sieges))
        landed = sum((siege.landed for siege in sieges), Counter[str]())
        made, under_way = sum(siege.kills for siege in sieges), sum(siege.under_way for siege in sieges)
        changes = sum(siege.ledger.acknowledged for siege in sieges)
        cut_short = sum(siege.ledger.cut_short for siege in sieges)
        told = f"{made} kills, {under_way} with something under way: {dict(landed.most_common())}; "
        told += f"{changes} changes acknowledged, {cut_short} cut short, "
        told += f"{sum(siege.hung for siege in sieges)} times the next start ended what hung"
        print(told)
        record_property("told", told)
        assert made >= kills
        assert under_way * 2 >= made
        assert not (missed := set(sieges[0].wanted) - set(landed)), f"never killed at {missed}"

    yield run
    for siege in sieges:
        siege.close()


@pytest.mark.timeout(300)
def test_what_was_acknowledged_before_a_kill_is_there_after_it_and_in_the_source_in_the_end(
    besiege: Callable[..., None],
) -> None:
    besiege(KILLS, is_mounted=False)


@pytest.mark.timeout(300)
def test_what_was_acknowledged_through_a_mount_before_a_kill_is_there_after_it(
    besiege: Callable[..., None], can_mount: None
) -> None:
    besiege(KILLS_MOUNTED, is_mounted=True)


@pytest.mark.soak
def test_what_was_acknowledged_through_a_mount_before_hundreds_of_kills_is_there_after_them(
    besiege: Callable[..., None], can_mount: None
) -> None:
    besiege(KILLS_IN_SOAK, is_mounted=True)


@pytest.mark.soak
def test_what_was_acknowledged_before_hundreds_of_kills_is_there_after_them(besiege: Callable[..., None]) -> None:
    besiege(KILLS_IN_SOAK, is_mounted=False)
