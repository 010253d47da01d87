"""Writers of one home, in a process of their own that outlives the node: ``python writers.py HOME LEDGER MOUNT COUNT``,
where an empty ``MOUNT`` is none. ``"start"`` in the input starts the node. What else comes begins a life: process id, a
seed, what each path holds; it is answered when the node is gone and every writer has noticed.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec

import penstock
from fault.ledger import FILES, Notes, State, content_of
from penstock.errors import BusyError, PenstockError

SMALL = [0, 200, 4096, 100_001, 262_144, 262_145, 700_001, 3_000_001]
LARGE = [17_000_003, 20_000_003, 41_000_003]
"""Sent in parts; the last one while it is written."""
LARGE_SHARE = 0.08
GONE_S = 3.0
"""A node that was killed is gone by then."""
PERSIST_S = 20


class Refused(Exception):
    """Nothing was done, and it may be tried again."""


class Writer(threading.Thread):
    """Writes, renames and removes files of its own in every way until the node is gone."""

    def __init__(self, number: int, home: str, notes: Notes, mount: Path | None) -> None:
        super().__init__()
        self.number, self.notes, self.mount = number, notes, mount
        self.client: Any = penstock.connect(home, start=False)
        self.fs: Any = fsspec.filesystem("penstock", home=home, start=False, skip_instance_cache=True)
        self.chance, self.states, self.node = random.Random(), dict[str, State](), 0

    def begin(self, node: int, seed: str, states: dict[str, State]) -> None:
        mine = f"{self.number}/"
        self.node, self.chance = node, random.Random(f"{seed}/{self.number}")
        self.states = {name: state for name, state in states.items() if name.startswith(mine)}
        self.start()

    def run(self) -> None:
        try:
            while True:
                self._change()
        except (PenstockError, OSError) as error:
            self.notes.ended(error, not self._is_gone())
        except BaseException as error:
            self.notes.ended(error, wrong=True)

    def _is_gone(self) -> bool:
        deadline = time.monotonic() + GONE_S
        while time.monotonic() < deadline:
            try:
                if Path(f"/proc/{self.node}/stat").read_text().rpartition(")")[2].split()[0] in ("Z", "X"):
                    return True
            except (FileNotFoundError, ProcessLookupError):
                return True
            time.sleep(0.01)
        return False

    def _change(self) -> None:
        held = [name for name, state in self.states.items() if state is not None]
        ways: list[tuple[float, Callable[[list[str]], None]]] = [(0.55, self._write)]
        if held:
            ways += [(0.12, self._remove), (0.18, self._rename), (0.1, self._rename_directory), (0.05, self._persist)]
        weights, works = zip(*ways, strict=True)
        (work,) = self.chance.choices(works, weights)
        work(held)

    def _done(self, changes: dict[str, State]) -> None:
        self.notes.done()
        self.states |= changes

    def _carry_out(self, what: str, changes: dict[str, State], work: Callable[[], object]) -> None:
        self.notes.begin(what, changes)
        while True:
            try:
                work()
            except (BusyError, Refused):
                continue
            break
        self._done(changes)

    def _write(self, _: list[str]) -> None:
        name = self.chance.choice(list(self.states))
        size = self.chance.choice(LARGE if self.chance.random() < LARGE_SHARE else SMALL)
        new = (self.chance.randrange(1, 1 << 40) if size else 0, size)
        content = content_of(name, *new)
        ways = [self._by_client, self._by_url, self._to_source]
        if self.mount is not None:
            ways += [self._by_mount, self._by_mount, self._beside]
        (way,) = self.chance.choices(ways, [3, 2, 1, 2, 2, 2][: len(ways)])
        self._carry_out(way.__name__, {name: new}, lambda: way(name, content))
        if way == self._to_source:
            self.notes.in_source([name])

    def _by_client(self, name: str, content: bytes, durability: str | None = None) -> None:
        pieces, size = self.chance.randrange(1, 6), len(content)
        with self.client.open(f"/runs/{name}", "wb", durability=durability) as file:
            for piece in range(pieces):
                file.write(content[size * piece // pieces : size * (piece + 1) // pieces])

    def _to_source(self, name: str, content: bytes) -> None:
        self._by_client(name, content, "source")

    def _by_url(self, name: str, content: bytes) -> None:
        self.fs.pipe_file(f"/runs/{name}", content)

    def _by_mount(self, name: str, content: bytes, beside: bool = False) -> None:
        assert self.mount is not None
        path = self.mount / name
        path.parent.mkdir(parents=True, exist_ok=True)
        written = path.with_name("beside") if beside else path
        with written.open("wb", buffering=0) as file:
            left = memoryview(content)
            while left:
                left = left[file.write(left[: 1 << 20]) :]
            if self.chance.random() < 0.3:
                os.fsync(file.fileno())
        if beside:
            written.replace(path)

    def _beside(self, name: str, content: bytes) -> None:
        self._by_mount(name, content, beside=True)

    def _remove(self, held: list[str]) -> None:
        name = self.chance.choice(held)
        ways: list[Callable[[], object]] = [
            lambda: self.client.remove(f"/runs/{name}"),
            lambda: self.fs.rm_file(f"/runs/{name}"),
        ]
        if self.mount is not None:
            at = self.mount / name
            ways.append(at.unlink)
        self._carry_out("remove", {name: None}, self.chance.choice(ways))

    def _rename(self, held: list[str]) -> None:
        source = self.chance.choice(held)
        target = self.chance.choice([name for name in self.states if name != source])
        self._move(source, target, {source: None, target: self.states[source]})

    def _rename_directory(self, _: list[str]) -> None:
        directories = self.chance.sample(["d", "e"], 2)
        source, target = (f"{self.number}/{directory}" for directory in directories)
        files = [file.partition("/")[2] for file in FILES if file.startswith("d/")]
        moved = {file: self.states[f"{source}/{file}"] for file in files if self.states[f"{source}/{file}"]}
        if not moved or any(self.states[f"{target}/{file}"] for file in files):
            return
        changes: dict[str, State] = {f"{source}/{file}": None for file in moved}
        changes |= {f"{target}/{file}": state for file, state in moved.items()}
        self._move(source, target, changes)

    def _move(self, source: str, target: str, changes: dict[str, State]) -> None:
        ways: list[Callable[[], object]] = [lambda: self.client.rename(f"/runs/{source}", f"/runs/{target}")]
        if self.mount is not None:
            ways.append(lambda: self._move_by_mount(source, target))
        self._carry_out("rename", changes, self.chance.choice(ways))

    def _move_by_mount(self, source: str, target: str) -> None:
        assert self.mount is not None
        (self.mount / target).parent.mkdir(parents=True, exist_ok=True)
        (self.mount / source).rename(self.mount / target)

    def _persist(self, held: list[str]) -> None:
        name = self.chance.choice(held)
        self.client.persist(f"/runs/{name}", timeout=PERSIST_S)
        self.notes.in_source([name])


def start(home: str) -> str:
    try:
        penstock.connect(home).close()
    except PenstockError as error:
        return f"down: {error}"
    return "up"


def live(writers: list[Writer], node: int, seed: str, states: dict[str, Any]) -> str:
    known: dict[str, State] = {name: tuple(state) if state else None for name, state in states.items()}
    for writer in writers:
        writer.begin(node, seed, known)
    for writer in writers:
        writer.join()
    return "over"


def main(home: str, ledger: str, mount: str, count: int) -> None:
    notes = [Notes(Path(ledger) / f"writer-{number}") for number in range(count)]
    for line in sys.stdin:
        order = json.loads(line)
        if order == "start":
            answer = start(home)
        else:
            writers = [Writer(number, home, notes[number], Path(mount) if mount else None) for number in range(count)]
            answer = live(writers, *order)
        print(answer, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
