"""The newest stay cached: which they are is looked for again when something was written, and outlives the node."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from penstock.errors import NotFoundError, UnavailableError
from penstock.policies.newest import newest_rule
from penstock.server.keeping import Keeper
from penstock.server.pins import PinBook

REASON = "it is one of the newest 1 of /runs/step-*"


class Entry(NamedTuple):
    name: str
    modified_ms: int
    is_directory: bool = False


class Lake:
    """A tree with files, and what a core is told; it says of itself how often it was looked at."""

    def __init__(self, file: Path) -> None:
        self.entries: list[Entry] = []
        self.was_written = (0, 0)
        self.looks = 0
        self.closed = 0
        self.refuse: Exception | None = None
        self.told: tuple[list[str], list[tuple[str, str, bool]], int | None] = ([], [], None)
        self.pins = PinBook(file, self.set_pins)
        self.pins.restore()
        self.keeper = Keeper(self.pins, lambda: self.was_written, lambda: self, every_s=0.01)

    def set_pins(
        self, paths: Sequence[str], kept: Sequence[tuple[str, str, bool]] = (), decided: int | None = None, /
    ) -> None:
        self.told = (list(paths), list(kept), decided)

    def walk_page(self, path: str, after: str | None, limit: int) -> tuple[Sequence[Entry], str | None]:
        assert limit > 0
        self.looks += 1
        if self.refuse is not None:
            raise self.refuse
        if path != "/runs":
            raise NotFoundError(f"list {path}", "no such directory")
        # One at a time.
        at = 0 if after is None else int(after)
        return self.entries[at : at + 1], str(at + 1) if at + 1 < len(self.entries) else None

    def close(self) -> None:
        self.closed += 1

    def write(self, name: str, modified_ms: int) -> None:
        self.entries.append(Entry(name, modified_ms))
        changes, cached = self.was_written
        self.was_written = (changes + 1, cached + 2)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    made = Lake(tmp_path / "pins.json")
    made.pins.add_newest(newest_rule("/runs/step-*", 1))
    return made


def test_the_newest_take_the_place_of_those_before(lake: Lake) -> None:
    lake.write("step-1/a", 1)
    lake.entries.append(Entry("step-9", 99, is_directory=True))
    lake.keeper.decide()
    assert lake.told == ([], [("/runs/step-1", REASON, True)], 2)
    lake.write("step-2/a", 2)
    lake.keeper.decide()
    assert lake.told == ([], [("/runs/step-2", REASON, True)], 4)
    assert lake.closed == 2


def test_nobody_looks_where_nothing_was_written_and_again_when_a_rule_has_changed(lake: Lake) -> None:
    lake.keeper.decide()
    looks = lake.looks
    lake.keeper.decide()
    assert lake.looks == looks
    lake.pins.add_newest(newest_rule("/elsewhere/*", 1))
    lake.keeper.decide()
    assert lake.looks > looks
    assert lake.told[1] == []


def test_what_was_decided_stays_while_the_tree_cannot_be_listed(lake: Lake) -> None:
    lake.write("step-1/a", 1)
    lake.keeper.decide()
    before = lake.told
    lake.write("step-2/a", 2)
    lake.refuse = UnavailableError("list /runs", "the source is away")
    with pytest.raises(UnavailableError):
        lake.keeper.decide()
    assert lake.told == before
    lake.refuse = None
    lake.keeper.decide()
    assert lake.told == ([], [("/runs/step-2", REASON, True)], 4)


def test_rules_and_what_they_kept_last_are_told_to_the_next_node_at_its_start(lake: Lake, tmp_path: Path) -> None:
    lake.pins.add("/runs/keep")
    lake.write("step-1/a", 1)
    lake.keeper.decide()
    again = Lake(tmp_path / "pins.json")
    assert again.told == (["/runs/keep"], [("/runs/step-1", REASON, False)], 0)
    assert again.pins.kept() == [{"pattern": "/runs/step-*", "keep": 1, "kept": ["/runs/step-1"]}]


def test_another_number_replaces_the_first_and_without_rules_nobody_decides(lake: Lake) -> None:
    lake.write("step-1/a", 1)
    lake.keeper.decide()
    lake.pins.add_newest(newest_rule("/runs/step-*", 2))
    lake.keeper.decide()
    assert [(each["keep"], each["kept"]) for each in lake.pins.kept()] == [(2, ["/runs/step-1"])]
    assert lake.pins.remove("/runs/step-*") == []
    assert lake.told == ([], [], None)
    with pytest.raises(NotFoundError):
        lake.pins.remove("/runs/step-*")


def test_it_looks_by_itself_from_the_first_rule_on_until_it_is_stopped(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "pins.json")
    lake.write("step-1/a", 1)
    lake.keeper.start()
    assert lake.looks == 0
    told = lake.pins.keep
    decided = threading.Event()
    lake.pins.keep = lambda *what: (told(*what), decided.set())[0]  # type: ignore[method-assign, func-returns-value]
    lake.pins.add_newest(newest_rule("/runs/step-*", 1))
    lake.keeper.changed()
    assert decided.wait(30)
    lake.keeper.stop(30)
    assert lake.told[1] == [("/runs/step-1", REASON, True)]
