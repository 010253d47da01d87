"""A mount, a client and fsspec beside a plain dictionary: what is done, and what the dictionary says then."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
from hypothesis import strategies
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from fault.quarrel import Quarrel
from penstock.errors import NotFoundError, PenstockError

if TYPE_CHECKING:
    from fault.world import Place, World

MIB = 1 << 20
BESIDE = "beside"
BETWEEN, BETWEEN_TURNS = 5, 3
"""Other steps before the node ends again, and before the source goes away or comes back: it is these that take long."""
DOORS = ["client", "fsspec", "mount"]

picks = strategies.integers(0, 59)
"""Of what there is: what is drawn must not depend on what was refused."""
seeds = strategies.integers(0, 1 << 32)
contents = strategies.tuples(seeds, picks)
places = strategies.integers(0, 1000)
doors = strategies.sampled_from(DOORS)
changes_by_others = strategies.tuples(picks, strategies.none() | seeds)
ends = strategies.sampled_from(["", "", "before", "during", "after"])
"""When the node is killed, of what happens around a conflict."""


class Model(RuleBasedStateMachine):
    """What was done to a directory of its own, in a dictionary."""

    world: World
    names: tuple[str, ...] = ("a", "b", "d/x", "d/y", "e/x")
    sizes: tuple[int, ...] = (0, 1, 4096, 70_000, 262_145, 900_001)
    pieces: tuple[int, ...] = sizes

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[str, bytes] = {}
        self.before: dict[str, bytes] = {}
        """What the source has while it is away, if nothing waited when it went."""
        self.touched: set[str] = set()
        """What was changed since then."""
        self.has_ended = False
        """The node has, since then: what another one needs to know besides, it asks the source."""
        self.is_away = self.is_certain = False
        self.path = ""
        self.since_end = self.since_turn = 0

    @initialize(place=strategies.sampled_from([0, 1]))
    def begin(self, place: int) -> None:
        self.place: Place = self.world.places[place]
        self.path = f"{next(self.world.numbers)}"
        self.world.story = [self.tree("")]
        (self.place.mount / self.path).mkdir()
        self.count("example")

    @rule(pick=picks, content=contents, door=strategies.sampled_from([*DOORS, "beside"]))
    def write(self, pick: int | str, content: tuple[int, int], door: str) -> None:
        name, data = self._name(pick), content_of(content, self.sizes)

        def work() -> None:
            if door == "client":
                with self.world.client.open(self.tree(name), "wb") as stream:
                    stream.write(data)
            elif door == "fsspec":
                self.world.fs.pipe_file(self.tree(name), data)
            elif door == "mount":
                self._mounted(name).write_bytes(data)
            else:
                written = self._mounted(name).with_name(BESIDE)
                written.write_bytes(data)
                written.replace(self._mounted(name))

        self._carry_out(f"write by {door}", work, {name: data})

    @rule(pick=picks, content=contents, piece=contents, place=places, door=strategies.sampled_from(["client", "mount"]))
    def write_and_go_back(
        self, pick: int, content: tuple[int, int], piece: tuple[int, int], place: int, door: str
    ) -> None:
        """As a program that completes the head of a file at its end, when parts of it may have been sent."""
        name, data, head = self._name(pick), content_of(content, self.sizes), content_of(piece, self.pieces)
        at, end = len(data) * place // 1000, len(data) * (place % 97) // 90

        def work() -> None:
            with self._open(name, "wb", door) as stream:
                stream.write(data)
                stream.flush()
                stream.seek(at)
                stream.write(head)
                if place % 2:
                    stream.truncate(end)

        after = changed(data, at, head)
        self._carry_out(f"write and go back by {door}", work, {name: resized(after, end) if place % 2 else after})

    @rule(
        pick=picks,
        content=contents,
        place=places,
        door=doors,
        how=strategies.sampled_from(["change", "change", "append", "append", "cut"]),
    )
    def edit(self, pick: int, content: tuple[int, int], place: int, door: str, how: str) -> None:
        """As a program that opens what is there and changes it in part; behind its end at times."""
        name, piece = self._one(pick), content_of(content, self.pieces)
        if name is None:
            self.write(pick, content, "mount")
            return
        before = self.known[name]
        work, after = self._edit(name, before, (how, door, place), piece)
        self._carry_out(f"{how} by {door}", work, {name: after}, is_change=after != before)

    def _edit(
        self, name: str, before: bytes, way: tuple[str, str, int], piece: bytes
    ) -> tuple[Callable[[], None], bytes]:
        how, door, place = way
        if how == "append":

            def append() -> None:
                with self._open(name, "ab", door) as stream:
                    stream.write(piece)

            return append, before + piece
        if how == "cut":
            size = len(before) * place // 800 + place % 3

            def cut() -> None:
                if door == "mount" and place % 2:
                    os.truncate(self._mounted(name), size)
                    return
                with self._open(name, "r+b", door) as stream:
                    stream.truncate(size)

            return cut, resized(before, size)
        at = len(before) * place // 1000 + 100 * (place % 300)

        def change() -> None:
            with self._open(name, "r+b", door) as stream:
                stream.seek(at)
                stream.write(piece)

        return change, changed(before, at, piece)

    @rule(pick=picks, door=doors)
    def remove(self, pick: int, door: str) -> None:
        name = self._one(pick)
        if name is None:
            self.write(pick, (pick, pick), "client")
            return
        ways = {
            "client": lambda: self.world.client.remove(self.tree(name)),
            "fsspec": lambda: self.world.fs.rm_file(self.tree(name)),
            "mount": lambda: self._mounted(name).unlink(),
        }
        self._carry_out("remove", ways[door], {name: None})

    @rule(pick=picks, to=picks, door=strategies.sampled_from(["client", "mount"]))
    def rename(self, pick: int, to: int, door: str) -> None:
        name, other = self._one(pick), self._name(to)
        if name in (None, other):
            return
        ways = {
            "client": lambda: self.world.client.rename(self.tree(name), self.tree(other)),
            "mount": lambda: self._mounted(name).rename(self._mounted(other)),
        }
        self._carry_out("rename", ways[door], {other: self.known[name], name: None})

    @rule(source=strategies.sampled_from(["d", "e"]), door=strategies.sampled_from(["client", "mount"]))
    def rename_directory(self, source: str, door: str) -> None:
        target = "e" if source == "d" else "d"
        moved = [name for name in self.known if name.startswith(f"{source}/")]
        to = {name: f"{target}/{name.partition('/')[2]}" for name in moved}
        if (
            not moved
            or any(name.startswith(f"{target}/") for name in self.known)
            or not {*to.values()} <= {*self.names}
        ):
            return
        at = self.place.mount / self.path
        ways = {
            "client": lambda: self.world.client.rename(self.tree(source), self.tree(target)),
            "mount": lambda: (at / source).rename(at / target),
        }
        changes: dict[str, bytes | None] = dict.fromkeys(moved)
        changes |= {to[name]: self.known[name] for name in moved}
        self._carry_out("rename directory", ways[door], changes)

    @precondition(lambda self: not self.is_away and not self.place.is_held)
    @rule(pick=picks, seed=strategies.none() | seeds)
    def overwrite_outside(self, pick: int, seed: int | None) -> None:
        """Somebody else writes to the source, of what has arrived there."""
        self._persist()
        self._change_outside(self._name(pick), theirs_of(seed))
        self.put(self._name(pick), theirs_of(seed))
        self.count("overwrite outside" if seed is not None else "remove outside")

    @precondition(lambda self: not self.is_away)
    @rule(pick=picks, content=contents, place=places, door=doors, seed=seeds, end=ends)
    def overwrite_outside_what_is_being_changed(
        self, pick: int, content: tuple[int, int], place: int, door: str, seed: int, end: str
    ) -> None:
        """What was opened, changed and closed here was replaced in the source in between."""
        name, piece = self._one(pick), content_of(content, self.pieces)
        if name is None or not piece:
            return
        self._make_certain()
        before = self.known[name]
        at = len(before) * place // 1000
        with self._open(name, "r+b", door) as stream:
            stream.seek(at)
            stream.write(piece)
            self._change_outside(name, theirs_of(seed))
        self.put(name, changed(before, at, piece))
        self.touched = {name}
        self.count("overwrite outside what is being changed")
        Quarrel(self, {name: theirs_of(seed)}, end, random.Random(seed)).settle()

    @precondition(lambda self: not self.is_away)
    @rule(door=doors, is_evicted=strategies.booleans())
    def look(self, door: str, is_evicted: bool) -> None:
        if is_evicted:
            self.world.client.evict(f"{self.place.top}/{self.path}").wait(60)
            self.count("evict")
        self.check(door)

    @precondition(lambda self: self.is_away and self.is_certain and self.place.is_held and not self.has_ended)
    @rule(door=doors)
    def look_while_away(self, door: str) -> None:
        """Everything is known for long, and here."""
        self.check(door)
        self.count("look while away")

    @precondition(lambda self: self.since_end >= BETWEEN)
    @rule(is_crash=strategies.booleans())
    def end_and_begin(self, is_crash: bool) -> None:
        if is_crash:
            self.crash()
        else:
            self.world.client.close()
            self.world.machine("down")
            self.world.come_back()
            self.has_ended = True
            self.count("restart")
        self.since_end = 0

    @precondition(lambda self: not self.is_away and self.since_turn >= BETWEEN_TURNS)
    @rule(is_certain=strategies.sampled_from([True, True, False]))
    def go_away(self, is_certain: bool) -> None:
        """The source is away, while something waits for it or not."""
        if is_certain:
            self._make_certain()
        self.is_certain, self.is_away, self.since_turn = is_certain, True, 0
        self.world.sea.fall()
        self.count("outage")

    @precondition(lambda self: self.is_away and self.since_turn >= BETWEEN_TURNS)
    @rule(others=strategies.lists(changes_by_others, min_size=1, max_size=3), end=ends)
    def come_back(self, others: list[tuple[int, int | None]], end: str) -> None:
        """The source is back, and others may have come before us."""
        theirs = {}
        seen = [name for name in self.names if self._may_see(name)]
        if self.is_certain and seen:
            theirs = {seen[pick % len(seen)]: theirs_of(seed) for pick, seed in others}
            self.note(f"outside while away: {told_all(theirs)}")
            self.world.sea.change_while_away({self.key(name): content for name, content in theirs.items()})
        if end == "before":
            self.crash()
        self.is_away, self.since_turn = False, 0
        self.note("back")
        self.world.sea.rise()
        if theirs:
            self.count("others while away")
            Quarrel(self, theirs, end, random.Random(str(others))).settle()
        self.is_certain = False

    def _may_see(self, name: str) -> bool:
        """Whether what others do to a name shows: what is held for true does so when an upload finds it."""
        if not self.place.is_held:
            return True
        return name in self.touched and (name in self.known or name in self.before)

    @invariant()
    def note_step(self) -> None:
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
        if not {"crash", "restart"} & set(self.world.done):
            self.crash()
        for door in DOORS:
            self.check(door)
        self._persist()
        for name in self.names:
            self.same(name, self.world.sea.get(self.key(name)), self.known.get(name), "in the source")

    def crash(self) -> None:
        self.world.crash()
        self.has_ended = True
        self.count("crash")

    def _persist(self) -> None:
        self.world.persist(self.place.top)

    def _make_certain(self) -> None:
        """Nothing waits, and everything is known and here."""
        self._persist()
        self.check("client")
        self.check("mount")
        self.before, self.touched, self.has_ended = dict(self.known), set(), False

    def _change_outside(self, name: str, content: bytes | None) -> None:
        self.note(f"outside {name}: {told(content)}")
        if content is None:
            self.world.sea.delete(self.key(name))
        else:
            self.world.sea.put(self.key(name), content)

    def check(self, door: str, expected: dict[str, bytes] | None = None) -> None:
        """A door says what is known."""
        expected = self.known if expected is None else expected
        for name in self.names:
            self.same(name, self._read(name, door), expected.get(name), f"by {door}")
        listed, sizes = self._listed(door), {name: len(content) for name, content in expected.items()}
        assert listed == sizes, f"{self.tree('')} by {door}: {listed} and not {sizes}"
        self.count(f"look by {door}")

    def same(self, name: str, found: bytes | None, expected: bytes | None, where: str) -> None:
        """Tells a difference in few words: the contents are long."""
        if found != expected:
            raise AssertionError(f"{self.tree(name)} {where}: {told(found)} and not {told(expected)}")

    def _read(self, name: str, door: str) -> bytes | None:
        try:
            if door == "mount":
                return (self.place.mount / self.path / name).read_bytes()
            if door == "fsspec":
                return bytes(self.world.fs.cat_file(self.tree(name)))
            with self.world.client.open(self.tree(name)) as stream:
                return bytes(stream.read())
        except (FileNotFoundError, NotFoundError):
            return None

    def _listed(self, door: str) -> dict[str, int]:
        """Names and sizes."""
        top, root = f"{self.place.top}/{self.path}", self.place.mount / self.path
        if door == "mount":
            found = {str(path.relative_to(root)): path.stat().st_size for path in root.rglob("*") if path.is_file()}
        elif door == "fsspec":
            known = self.world.fs.find(top, detail=True)
            found = {path.removeprefix(f"{top}/"): int(each["size"]) for path, each in known.items()}
        else:
            found = {entry.name: entry.size for entry in self.world.client.walk(top) if entry.is_file}
        # What was not renamed any more.
        return {name: size for name, size in found.items() if not name.endswith(BESIDE)}

    def _carry_out(
        self,
        what: str,
        work: Callable[[], object],
        changes: dict[str, bytes | None],
        *,
        is_change: bool = True,
    ) -> None:
        """Does something; while the source is away it may be refused, and has changed nothing then."""
        try:
            work()
        except (PenstockError, OSError) as error:
            # Nobody has to be asked where everything is known and here.
            if not self.is_away or (self.is_certain and self.place.is_held and not self.has_ended):
                self.note(f"{what} of {list(changes)}")
                raise
            self.note(f"refused: {what} of {list(changes)}: {error}")
            self.count("refused")
            return
        self.note(f"{what}: {told_all(changes)}")
        for name, content in changes.items():
            self.put(name, content)
        if is_change:
            self.touched |= set(changes)
        self.count(what)

    def put(self, name: str, content: bytes | None) -> None:
        """Notes what a name holds."""
        if content is None:
            self.known.pop(name, None)
        else:
            self.known[name] = content

    def _one(self, pick: int) -> str | None:
        return sorted(self.known)[pick % len(self.known)] if self.known else None

    def _name(self, pick: int | str) -> str:
        return pick if isinstance(pick, str) else self.names[pick % len(self.names)]

    def key(self, name: str) -> str:
        return f"{self.place.top[1:]}/{self.path}/{name}"

    def tree(self, name: str) -> str:
        return f"{self.place.top}/{self.path}/{name}"

    def _mounted(self, name: str) -> Path:
        path = self.place.mount / self.path / name
        path.parent.mkdir(exist_ok=True)
        return path

    def _open(self, name: str, mode: str, door: str) -> Any:
        if door == "mount":
            return self._mounted(name).open(mode)
        if door == "fsspec":
            return self.world.fs.open(self.tree(name), mode)
        return self.world.client.open(self.tree(name), mode)

    def note(self, what: str) -> None:
        """For who has to understand a failure."""
        self.world.story.append(what)

    def count(self, what: str) -> None:
        self.note(what)
        self.world.done[what] = self.world.done.get(what, 0) + 1


class LargeModel(Model):
    """Files that are sent in parts, also while they are written, and changed without being fetched."""

    names = ("a", "d/x", "e/x")
    sizes = (1, MIB, 9 * MIB + 1, 17 * MIB + 5, 35 * MIB + 7, 66 * MIB + 123)
    pieces = (0, 1, 4096, 262_145, 3 * MIB, 9 * MIB + 1)


def content_of(content: tuple[int, int], sizes: tuple[int, ...]) -> bytes:
    seed, pick = content
    return random.Random(seed).randbytes(sizes[pick % len(sizes)])


def theirs_of(seed: int | None) -> bytes | None:
    """What nobody here ever writes."""
    return None if seed is None else b"theirs " + random.Random(seed).randbytes(16 + seed % 5000)


def changed(before: bytes, at: int, piece: bytes) -> bytes:
    """What a file holds after a write."""
    return before[:at].ljust(at, b"\0") + piece + before[at + len(piece) :] if piece else before


def resized(before: bytes, size: int) -> bytes:
    return before[:size].ljust(size, b"\0")


def told(content: bytes | None) -> str:
    return "nothing" if content is None else f"{len(content)} bytes from {content[:8].hex()}"


def told_all(contents: Mapping[str, bytes | None]) -> str:
    return ", ".join(f"{name} is {told(content)}" for name, content in contents.items())


def run(model: type[Model], world: World, told_by: Callable[[str, object], None], *, examples: int, steps: int) -> None:
    """Tells stories in a world."""
    bound = type("Bound", (model,), {"world": world})
    settings = hypothesis.settings(
        max_examples=examples,
        stateful_step_count=steps,
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
    told_by("told", world.done)
    print(world.done)
