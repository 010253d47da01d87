"""For all tests: those that are marked ``alone`` run while no other does, and what a test has counted is told."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

ROOM = Path(__file__).parent
"""A lock of it is shared by tests that run beside each other."""

DOOR = Path(__file__)
"""A lock of it is had by who enters, so that one that waits for the others to leave is not overtaken by more."""


@contextlib.contextmanager
def locked(path: Path, how: int) -> Iterator[None]:
    """Holds a lock that ends with the process at the latest."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, how)
        yield
        # Whoever was forked meanwhile has it as well.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Before the time of a test begins to count."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    with contextlib.ExitStack() as room:
        with locked(DOOR, fcntl.LOCK_EX):
            room.enter_context(locked(ROOM, fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH))
        return (yield)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Tests tell by ``record_property("told", …)``, whichever process they ran in."""
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties:
            if name == "told":
                terminalreporter.write_line(f"TOLD {report.nodeid}: {value}")
