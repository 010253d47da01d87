"""What is staged and not in its source, in plain words."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from penstock.units import format_count, format_duration, format_size

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["conflicts", "left_behind", "pressure", "summary", "unsettled", "warnings"]

NAMED_MAX = 3
"""Files of each kind that are named; `--json` has more."""


def summary(stage: dict[str, Any]) -> str:
    """How much waits for its source, and for how long the oldest has."""
    if not stage["files"]:
        return "nothing waits for its source"
    text = f"{_amount(stage)} not in the source yet"
    if stage["oldest_ms"] is None:
        return text
    return f"{text}, the oldest for {format_duration(max(0.0, time.time() - stage['oldest_ms'] / 1000))}"


def pressure(stage: dict[str, Any]) -> str:
    """What the room that is left means for writers, where it means anything, and ``; ``."""
    return {
        "slowed": "it fills up, and writers are slowed to the pace of the uploads; ",
        "full": "it is FULL, and writes fail until something is uploaded; ",
    }.get(stage["pressure"], "")


def warnings(stage: dict[str, Any]) -> Iterator[str]:
    """What somebody should look at: uploads that fail, files that a crash left half written."""
    failures, recovered = stage["failures"], stage["recovered"]
    for each in failures[:NAMED_MAX]:
        yield f"{_name(each)} is not in its source (tries={each['tries']}): {each['reason']}"
    if len(failures) > NAMED_MAX:
        yield f"{len(failures) - NAMED_MAX:,} more do not get into their source: `penstock status --json`"
    if recovered:
        what = f"{format_count(len(recovered), 'file')}, {format_size(sum(each['allocated'] for each in recovered))}"
        yield f"not closed when the node ended, kept in {stage['directory']}/recovery: {what}"


def conflicts(stage: dict[str, Any]) -> Iterator[str]:
    """What somebody should settle."""
    for each in stage["conflicted"][:NAMED_MAX]:
        yield f"{_name(each)} is in conflict, both contents are kept: {each['reason']}"
    if stage["conflicts"] > NAMED_MAX:
        yield f"{format_count(stage['conflicts'], 'file')} in all in conflict: `penstock conflicts ls`"


def unsettled(stage: dict[str, Any], path: str) -> str | None:
    """What is said when something is detached of which there are conflicts."""
    below = path.rstrip("/") + "/"
    if not any(str(each["path"] or "").startswith(below) for each in stage["conflicted"]):
        return None
    return (
        "what was written there and is in conflict is kept on this machine: attach it again to settle that, "
        "`penstock conflicts ls`"
    )


def left_behind(stage: dict[str, Any]) -> str | None:
    """What is said when the node stops with a backlog."""
    if not stage["files"]:
        return None
    return (
        f"not in their source yet: {_amount(stage)}; they are kept on this machine, and the next `penstock up` goes on"
    )


def _amount(stage: dict[str, Any]) -> str:
    return f"{format_count(stage['files'], 'file')}, {format_size(stage['bytes'])}"


def _name(each: dict[str, Any]) -> str:
    return str(each["path"] or each["key"])
