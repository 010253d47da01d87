"""What writers were told is done, kept outside of the node and of its file system: who writes notes what it begins and
what was acknowledged, who checks reads what a path may therefore hold.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from fault import oracle

State = tuple[int, int] | None
"""Version and size of what a path holds; ``None`` for nothing."""

FILES = ["a", "b", "c", "d/0", "d/1", "e/0", "e/1"]
"""Of one writer; ``d`` and ``e`` are directories that are renamed into each other."""


def names_of(writer: int) -> list[str]:
    return [f"{writer}/{file}" for file in FILES]


def number_of(name: str) -> int:
    """The object that its bytes say they are of: the writer, as they may be renamed."""
    return int(name.partition("/")[0])


def content_of(name: str, version: int, size: int) -> bytes:
    return oracle.content(number_of(name), version, 0, size)


def whole(name: str, content: bytes) -> State:
    """The state that content is; fails where it is not all of one version."""
    if not content:
        return (0, 0)
    version = oracle.version_in(content, 0)
    oracle.check(number_of(name), version, 0, content)
    return (version, len(content))


class Notes:
    """What one writer writes down, each line before it goes on."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def begin(self, what: str, changes: Mapping[str, State]) -> None:
        self._note({"begin": what, "changes": changes})

    def done(self) -> None:
        self._note({"done": True})

    def in_source(self, names: list[str]) -> None:
        """The source was said to have what is under these names now."""
        self._note({"in_source": names})

    def ended(self, error: BaseException | None, wrong: bool) -> None:
        """Nothing more is begun; ``wrong`` where the node is not gone."""
        self._note({"ended": repr(error), "wrong": wrong})

    def _note(self, line: Mapping[str, object]) -> None:
        os.write(self._file, json.dumps(line).encode() + b"\n")


class Ledger:
    """What each path may hold, by the notes of all writers."""

    def __init__(self, directory: Path, writers: int) -> None:
        self.directory = directory
        names = [name for writer in range(writers) for name in names_of(writer)]
        self.states: dict[str, set[State]] = {name: {None} for name in names}
        """One that was acknowledged, and what was begun since."""
        self.in_source: dict[str, list[State]] = {name: [None] for name in names}
        """What the source was said to have, and what came after that."""
        self.acknowledged = self.cut_short = 0
        self.wrong: list[str] = []
        self._read = dict.fromkeys(range(writers), 0)
        self._open: dict[int, dict[str, State]] = {}

    def path_of(self, writer: int) -> Path:
        return self.directory / f"writer-{writer}"

    def read(self) -> None:
        """Takes in what was noted since."""
        for writer in self._read:
            for line in self._new_lines(writer):
                self._take(writer, line)

    def end_life(self) -> None:
        """The node is gone: what was begun and not acknowledged may have been done or not."""
        self.read()
        self.cut_short += len(self._open)

    def check_moves(self, found: Mapping[str, State]) -> None:
        """What was moved when the node went is under one of its names."""
        for changes in self._open.values():
            for state in changes.values():
                if state is None or None not in changes.values():
                    continue
                assert any(found[name] == state for name in changes), f"{state} is gone: {changes}"
        self._open.clear()

    def check(self, name: str, found: State) -> None:
        """Fails on a state that is neither acknowledged nor under way; what was found counts from now on."""
        assert found in self.states[name], (
            f"{name} holds {found} and none of {self.states[name]}\n{self.story_of(name)}"
        )
        self.states[name] = {found}

    def check_source(self, name: str, found: State) -> None:
        """Fails on a state that the source cannot hold, as it was said to have that or a newer one."""
        assert found in self.in_source[name], (
            f"the source holds {found} as {name}, none of {self.in_source[name]}\n{self.story_of(name)}"
        )

    def story_of(self, name: str) -> str:
        """What was noted of a name last."""
        writer = number_of(name)
        lines = self.path_of(writer).read_text().splitlines()
        told = [f"{at}: {line}" for at, line in enumerate(lines) if f'"{name}"' in line or '"done"' not in line]
        return "\n".join(told[-30:])

    def known(self) -> dict[str, State]:
        """What each path holds, once all of them were checked."""
        return {name: next(iter(states)) for name, states in self.states.items()}

    def _new_lines(self, writer: int) -> Iterator[dict[str, object]]:
        path = self.path_of(writer)
        if not path.exists():
            return
        with path.open("rb") as file:
            file.seek(self._read[writer])
            for line in file:
                if line.endswith(b"\n"):
                    self._read[writer] += len(line)
                    yield json.loads(line)

    def _take(self, writer: int, line: dict[str, object]) -> None:
        match line:
            case {"begin": _, "changes": dict(changes)}:
                told = {name: tuple(state) if state else None for name, state in changes.items()}
                self._open[writer] = told
                for name, state in told.items():
                    self.states[name].add(state)
                    self.in_source[name].append(state)
            case {"done": True}:
                for name, state in self._open.pop(writer).items():
                    self.states[name] = {state}
                self.acknowledged += 1
            case {"in_source": list(names)}:
                for name in names:
                    self.in_source[name] = list(self.states[name])
            case {"ended": error, "wrong": wrong}:
                if wrong:
                    self.wrong.append(f"writer {writer}: {error}")
