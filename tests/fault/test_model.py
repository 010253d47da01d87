"""A mount, a client and fsspec beside a plain dictionary, through crashes, restarts, evictions, a source that is away,
and somebody else's writes to it: whoever asks is told what the dictionary says.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import hypothesis
import pytest
from hypothesis import strategies
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import penstock
from integration.test_writing import Sea
from penstock.errors import NotFoundError, PenstockError

NAMES = ["a", "b", "d/x", "d/y", "e/x"]
BESIDE = "beside"
SIZES = [0, 1, 4096, 70_000, 262_145, 900_001]
EXAMPLES, EXAMPLES_IN_SOAK = 4, 60
STEPS = 30
BETWEEN = 5
"""Other steps before the node ends again: it is these that take long."""

names = strategies.sampled_from(NAMES)
picks = strategies.integers(0, 59)
"""Of what there is: what is drawn must not depend on what was refused."""
contents = strategies.tuples(strategies.integers(0, 1 << 32), strategies.sampled_from(SIZES))


class World:
    """One home with a mount and a source that can go away, for one example after another."""

    def __init__(self, machine: Any, directory: Path) -> None:
        self.machine, self.sea, self.numbers = machine, Sea(directory), itertools.count()
        self.client: Any = penstock.connect(machine.home.name)
        where = {"endpoint": self.sea.endpoint, "credentials": "anonymous", "freshness": "0s"}
        self.client.attach("s3://bucket/runs", "/runs", writable=True, **where)
        self.mount = machine.target()
        machine("mount", str(self.mount), "--path", "/runs")
        self.done: dict[str, int] = {}
        self.failure: BaseException | None = None

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        """Keeps the first failure: what depends on time does not come again, and then Hypothesis tells only that."""
        self.failure = self.failure or sys.exception()
        try:
            yield
        except Exception as error:
            self.failure = self.failure or error
            raise

    def come_back(self) -> None:
        """A node runs again, and serves the mount."""
        self.client = penstock.connect(self.machine.home.name)
        self.machine.until(self._is_served)

    @property
    def fs(self) -> Any:
        home = os.fspath(self.machine.home.name)
        return fsspec.filesystem("penstock", home=home, start=False, skip_instance_cache=True)

    def _is_served(self) -> bool:
        """Whether the mount answers, also while nobody can say what is in it."""
        try:
            return os.path.ismount(self.mount) and os.statvfs(self.mount).f_bsize > 0
        except OSError:
            return False

    def close(self) -> None:
        self.client.close()
        with contextlib.suppress(AssertionError):
            self.machine("umount", str(self.mount), check=None)
        self.sea.fall()


def content_of(content: tuple[int, int]) -> bytes:
    seed, size = content
    return random.Random(seed).randbytes(size)


class Model(RuleBasedStateMachine):
    """What was done to a directory of its own, in a dictionary."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[str, bytes] = {}
        self.is_away = False
        self.path = ""
        self.since_end = self.since_turn = 0

    @initialize()
    def begin(self) -> None:
        self.path = f"{next(self.world.numbers)}"
        (self.world.mount / self.path).mkdir()
        self._count("example")

    @rule(name=names, content=contents, door=strategies.sampled_from(["client", "fsspec", "mount", "beside"]))
    def write(self, name: str, content: tuple[int, int], door: str) -> None:
        data = content_of(content)

        def work() -> None:
            if door == "client":
                with self.world.client.open(self._tree(name), "wb") as stream:
                    stream.write(data)
            elif door == "fsspec":
                self.world.fs.pipe_file(self._tree(name), data)
            elif door == "mount":
                self._mounted(name).write_bytes(data)
            else:
                written = self._mounted(name).with_name(BESIDE)
                written.write_bytes(data)
                written.replace(self._mounted(name))

        self._carry_out(f"write by {door}", work, {name: data})

    @precondition(lambda self: not self.is_away)
    @rule(pick=picks, content=contents, at=strategies.integers(0, 300_000))
    def change(self, pick: int, content: tuple[int, int], at: int) -> None:
        """As a program that opens what is there and writes into it; behind its end at times."""
        name, piece = self._one(pick), content_of(content)
        if name is None:
            self.write(NAMES[pick % len(NAMES)], content, "mount")
            return
        before = self.known[name]

        def work() -> None:
            with self._mounted(name).open("r+b", buffering=0) as stream:
                stream.seek(at)
                assert stream.write(piece) == len(piece)

        after = before[:at].ljust(at, b"\0") + piece + before[at + len(piece) :]
        self._carry_out("change", work, {name: after if piece else before})

    @rule(pick=picks, door=strategies.sampled_from(["client", "fsspec", "mount"]))
    def remove(self, pick: int, door: str) -> None:
        name = self._one(pick)
        if name is None:
            self.write(NAMES[pick % len(NAMES)], (pick, SIZES[pick % len(SIZES)]), "client")
            return
        ways = {
            "client": lambda: self.world.client.remove(self._tree(name)),
            "fsspec": lambda: self.world.fs.rm_file(self._tree(name)),
            "mount": lambda: self._mounted(name).unlink(),
        }
        self._carry_out("remove", ways[door], {name: None})

    @rule(pick=picks, other=names, door=strategies.sampled_from(["client", "mount"]))
    def rename(self, pick: int, other: str, door: str) -> None:
        name = self._one(pick)
        if name in (None, other):
            return
        ways = {
            "client": lambda: self.world.client.rename(self._tree(name), self._tree(other)),
            "mount": lambda: self._mounted(name).rename(self._mounted(other)),
        }
        self._carry_out("rename", ways[door], {other: self.known[name], name: None})

    @rule(source=strategies.sampled_from(["d", "e"]), door=strategies.sampled_from(["client", "mount"]))
    def rename_directory(self, source: str, door: str) -> None:
        target = "e" if source == "d" else "d"
        moved = [name for name in self.known if name.startswith(f"{source}/")]
        if not moved or any(name.startswith(f"{target}/") for name in self.known):
            return
        at = self.world.mount / self.path
        ways = {
            "client": lambda: self.world.client.rename(self._tree(source), self._tree(target)),
            "mount": lambda: (at / source).rename(at / target),
        }
        changes: dict[str, bytes | None] = dict.fromkeys(moved)
        changes |= {f"{target}/{name.partition('/')[2]}": self.known[name] for name in moved}
        self._carry_out("rename directory", ways[door], changes)

    @precondition(lambda self: not self.is_away)
    @rule(name=names, content=contents)
    def overwrite_outside(self, name: str, content: tuple[int, int]) -> None:
        """Somebody else writes to the source, of what has arrived there."""
        self._persist()
        self.known[name] = content_of(content)
        self.world.sea.put(f"runs/{self.path}/{name}", self.known[name])
        self._count("overwrite outside")

    @precondition(lambda self: not self.is_away)
    @rule(door=strategies.sampled_from(["client", "mount", "fsspec"]), is_evicted=strategies.booleans())
    def look(self, door: str, is_evicted: bool) -> None:
        if is_evicted:
            self.world.client.evict(f"/runs/{self.path}").wait(60)
            self._count("evict")
        self._check(door)

    @precondition(lambda self: self.since_end >= BETWEEN)
    @rule(is_crash=strategies.booleans())
    def end_and_begin(self, is_crash: bool) -> None:
        if is_crash:
            self.world.machine.kill()
        else:
            self.world.client.close()
            self.world.machine("down")
        self.world.come_back()
        self.since_end = 0
        self._count("crash" if is_crash else "restart")

    @precondition(lambda self: self.since_turn >= BETWEEN)
    @rule()
    def go_away(self) -> None:
        if self.is_away:
            self.world.sea.rise()
        else:
            self.world.sea.fall()
            self._count("outage")
        self.is_away = not self.is_away
        self.since_turn = 0

    @invariant()
    def count(self) -> None:
        """Called between steps."""
        self.since_end += 1
        self.since_turn += 1

    def teardown(self) -> None:
        with self.world.noting():
            self._end()

    def _end(self) -> None:
        if not self.path:
            return
        if self.is_away:
            self.world.sea.rise()
        for door in ("client", "mount", "fsspec"):
            self._check(door)
        self._persist()
        for name in NAMES:
            assert self.world.sea.get(f"runs/{self.path}/{name}") == self.known.get(name), name

    def _persist(self) -> None:
        self.world.client.persist("/runs", timeout=60)
        stage = self.world.client.status()["stage"]
        assert (stage["files"], stage["conflicts"]) == (0, 0), stage

    def _check(self, door: str) -> None:
        for name in NAMES:
            found = self._read(name, door)
            expected = self.known.get(name)
            assert found == expected, f"{name} by {door}: {_told(found)} and not {_told(expected)}"
        assert self._listed(door) == set(self.known), door
        self._count(f"look by {door}")

    def _read(self, name: str, door: str) -> bytes | None:
        try:
            if door == "mount":
                return (self.world.mount / self.path / name).read_bytes()
            if door == "fsspec":
                return bytes(self.world.fs.cat_file(self._tree(name)))
            with self.world.client.open(self._tree(name)) as stream:
                return bytes(stream.read())
        except (FileNotFoundError, NotFoundError):
            return None

    def _listed(self, door: str) -> set[str]:
        top, root = f"/runs/{self.path}", self.world.mount / self.path
        if door == "mount":
            found = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
        elif door == "fsspec":
            found = {path.removeprefix(f"{top}/") for path in self.world.fs.find(top)}
        else:
            found = {entry.name for entry in self.world.client.walk(top) if entry.is_file}
        # What was not renamed any more.
        return {name for name in found if not name.endswith(BESIDE)}

    def _carry_out(self, what: str, work: Callable[[], object], changes: dict[str, bytes | None]) -> None:
        """Does something; while the source is away it may be refused, and has changed nothing then."""
        try:
            work()
        except (PenstockError, OSError):
            if not self.is_away:
                raise
            self._count("refused")
            return
        for name, content in changes.items():
            if content is None:
                del self.known[name]
            else:
                self.known[name] = content
        self._count(what)

    def _one(self, pick: int) -> str | None:
        return sorted(self.known)[pick % len(self.known)] if self.known else None

    def _tree(self, name: str) -> str:
        return f"/runs/{self.path}/{name}"

    def _mounted(self, name: str) -> Path:
        path = self.world.mount / self.path / name
        path.parent.mkdir(exist_ok=True)
        return path

    def _count(self, what: str) -> None:
        self.world.done[what] = self.world.done.get(what, 0) + 1


def _told(content: bytes | None) -> str:
    return "nothing" if content is None else f"{len(content)} bytes from {content[:8].hex()}"


@pytest.fixture
def world(machine: Any, can_mount: None, tmp_path: Path) -> Iterator[World]:
    made = World(machine, tmp_path)
    yield made
    made.close()


def run(world: World, examples: int, record_property: Callable[[str, object], None]) -> None:
    bound = type("Bound", (Model,), {"world": world})
    settings = hypothesis.settings(
        max_examples=examples,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        # Every step is real: to make an example smaller would take longer than to understand it.
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
        print_blob=True,
    )
    try:
        run_state_machine_as_test(bound, settings=settings)
    except hypothesis.errors.Flaky as error:
        raise world.failure or error from error
    record_property("told", world.done)
    print(world.done)
    assert {"crash", "restart"} & set(world.done)


@pytest.mark.timeout(240)
def test_a_mount_a_client_and_fsspec_say_what_a_dictionary_says(
    world: World, record_property: Callable[[str, object], None]
) -> None:
    run(world, EXAMPLES, record_property)


@pytest.mark.soak
def test_a_mount_a_client_and_fsspec_say_what_a_dictionary_says_in_many_stories(
    world: World, record_property: Callable[[str, object], None]
) -> None:
    run(world, EXAMPLES_IN_SOAK, record_property)
    assert {"crash", "restart", "evict", "outage", "overwrite outside", "rename", "rename directory"} <= set(world.done)
