"""The stage of a home stays where it is as long as it may hold what no source has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock.errors import BusyError
from penstock.home import write_atomically

if TYPE_CHECKING:
    from penstock.home import Home

__all__ = ["hold", "release"]

_NOTE = "stage-directory"


def hold(home: Home, directory: Path) -> None:
    """Notes where the stage is, before a node uses it.

    Raises:
        BusyError: an earlier node had it elsewhere, and did not end with nothing in it.
    """
    note = home.state / _NOTE
    try:
        earlier = Path(note.read_text(encoding="utf-8"))
    except FileNotFoundError:
        earlier = directory
    if earlier != directory and earlier.exists():
        raise BusyError(
            f"use {directory} as stage",
            f"an earlier node used {earlier}, and may have left there what its source has not got",
            f"`penstock up --set stage.directory={earlier}`, `penstock persist /`, `penstock down`, then change it",
        )
    write_atomically(note, str(directory))


def release(home: Home, stage: dict[str, Any]) -> None:
    """Lets the next node have its stage elsewhere, where nothing is in this one.

    Args:
        home: whose stage it is.
        stage: what the core says of it at the end.
    """
    if not (stage["files"] or stage["conflicts"] or stage["recovered"]):
        (home.state / _NOTE).unlink(missing_ok=True)
