"""Somebody else has changed in the source what waits here for its upload: what then has to be in conflict, and how it
is settled.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from fault.world import PATIENCE_S
from penstock.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from fault.model import Model

WAITS_FOR_ANOTHER = "it comes after"
"""What a change says that waits for a conflict of another name to be settled."""


class Quarrel:
    """What is ours and what is theirs of some names, until all of it is settled."""

    def __init__(self, model: Model, theirs: dict[str, bytes | None], end: str, chance: random.Random) -> None:
        self._model, self._world, self._end, self._chance = model, model.world, end, chance
        self.theirs: dict[str, bytes] = {}
        self.expected: set[str] = set()
        """Names that have to be in conflict; others may be, by what was written and removed again."""
        for name, content in theirs.items():
            ours = model.known.get(name)
            if name not in model.touched:
                model.put(name, content)
            elif content is not None:
                self.theirs[name] = content
                if ours is not None or model.before.get(name) is not None:
                    self.expected.add(name)
            # What somebody has removed is in nobody's way.

    def settle(self) -> None:
        """Waits for what is in conflict, looks at both contents, keeps one."""
        is_told = False

        def is_over() -> bool:
            nonlocal is_told
            if not self._is_quiet():
                return False
            found = self._found()
            if not found:
                return bool(self._world.stage["files"] == 0)
            self._model.note(f"in conflict: {[(each.path, each.size) for some in found.values() for each in some]}")
            if not is_told:
                self._look_around(found)
                is_told = True
            self._settle_some(found)
            return False

        self._world.machine.until(is_over, PATIENCE_S)
        assert not self.expected, f"no conflict of {self.expected}"
        if self._end == "after":
            self._model.crash()
        # What was written and removed again does not come into the way of theirs.
        for name, content in self.theirs.items():
            self._model.put(name, content)

    def _is_quiet(self) -> bool:
        """Whether nothing waits but for a conflict to be settled."""
        # Of nothing: what has failed is tried again at once.
        self._world.client.persist(self._model.tree("none"), timeout=PATIENCE_S)
        stage = self._world.stage
        return stage["files"] == len(self._waiting(stage))

    def _waiting(self, stage: dict[str, Any]) -> set[str]:
        failures = (each for each in stage["failures"] if WAITS_FOR_ANOTHER in each["reason"])
        return {each["key"].partition(f"{self._model.path}/")[2] for each in failures}

    def _found(self) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}
        for each in self._world.client.conflicts(self._model.tree("")):
            found.setdefault(each.path.removeprefix(self._model.tree("")), []).append(each)
        return found

    def _look_around(self, found: dict[str, list[Any]]) -> None:
        """What is in conflict shows theirs, and keeps nothing else from its way."""
        if self._end == "during":
            self._model.crash()
        model = self._model
        shown = {**model.known, **{name: self.theirs[name] for name in found}}
        model.check(self._chance.choice(["client", "mount", "fsspec"]), shown)
        free = [name for name in model.names if name not in self.theirs and name not in model.touched]
        if free:
            model.write(free[0], (self._chance.getrandbits(32), 3), "client")
            self._world.client.persist(model.tree(free[0]), timeout=PATIENCE_S)
            model.same(free[0], self._world.sea.get(model.key(free[0])), model.known[free[0]], "while others quarrel")
        model.count("conflict")

    def _settle_some(self, found: dict[str, list[Any]]) -> None:
        waiting = self._waiting(self._world.stage)
        for name, conflicts in found.items():
            assert name in self.theirs, f"{name} is in conflict with nothing"
            model = self._model
            model.same(name, self._world.sea.get(model.key(name)), self.theirs[name], "in the source")
            for each in conflicts:
                assert each.code == "conflict", each
                assert (each.source.state, each.source.size) == ("file", len(self.theirs[name])), each
            if name in waiting or name not in self.expected:
                # The newest of it comes into conflict when another one is settled, or is nothing.
                self._keep(name, "theirs")
                continue
            ours = model.known.get(name)
            self._compare(name, conflicts[-1], ours)
            self.expected.discard(name)
            theirs = self.theirs.pop(name)
            keep = self._chance.choice(["mine", "theirs"])
            self._keep(name, keep)
            if keep == "theirs":
                model.put(name, theirs)
            model.count(f"keep {keep}")

    def _compare(self, name: str, conflict: Any, ours: bytes | None) -> None:
        assert conflict.size == (None if ours is None else len(ours)), f"{name}: {conflict}"
        if ours is None:
            return
        try:
            with self._world.client.open_conflict(conflict.path, conflict.operation) as stream:
                kept = stream.read()
        except InvalidInputError:
            # Renamed here, and not cached any more after a crash: the source has it under its old name.
            assert self._model.has_ended
            return
        self._model.same(name, kept, ours, "kept")

    def _keep(self, name: str, keep: str) -> None:
        self._model.note(f"keep {keep} of {name}")
        path = self._model.tree(name)
        ways: list[Callable[[], object]] = [
            lambda: self._world.client.resolve_conflict(path, keep, every=True),
            lambda: self._world.machine("conflicts", f"keep-{keep}", path, "--all"),
        ]
        self._chance.choices(ways, [3, 1])[0]()
