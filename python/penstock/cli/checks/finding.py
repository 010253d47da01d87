"""One thing that doctor found, and what to do about it."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Finding", "Level", "worst"]


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


class Finding(NamedTuple):
    """What was looked at, how it is, and the next command where there is one."""

    subject: str
    level: Level
    text: str
    next: str | None = None


def worst(findings: Iterable[Finding]) -> Level:
    """The level that the exit code tells: ok 0, warning 1, failure 2."""
    levels = {finding.level for finding in findings}
    return next((level for level in (Level.FAILURE, Level.WARNING) if level in levels), Level.OK)
