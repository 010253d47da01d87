"""A stage that may hold what no source has is not left behind for another."""

from pathlib import Path

import pytest

from penstock.errors import BusyError
from penstock.home import Home, locate
from penstock.server import stage

EMPTY = {"files": 0, "conflicts": 0, "recovered": 0}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = locate(tmp_path / "h", {})
    made.prepare()
    (tmp_path / "other").mkdir()
    return made


@pytest.mark.parametrize("left", ["files", "conflicts", "recovered"])
def test_a_stage_with_something_in_it_has_to_be_used_again(home: Home, tmp_path: Path, left: str) -> None:
    stage.hold(home, home.stage)
    stage.release(home, {**EMPTY, left: 1})
    with pytest.raises(BusyError, match=f"--set stage.directory={home.stage}"):
        stage.hold(home, tmp_path / "other")
    stage.hold(home, home.stage)
    stage.release(home, EMPTY)
    stage.hold(home, tmp_path / "other")


def test_after_a_crash_nobody_knows_what_is_in_it(home: Home, tmp_path: Path) -> None:
    stage.hold(home, home.stage)
    with pytest.raises(BusyError):
        stage.hold(home, tmp_path / "other")


def test_a_stage_that_is_gone_holds_nobody(home: Home, tmp_path: Path) -> None:
    stage.hold(home, tmp_path / "other")
    (tmp_path / "other").rmdir()
    stage.hold(home, home.stage)
