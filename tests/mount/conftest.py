"""A mounted tree over a simulated remote, and something that ends a node whose mount nobody gets out of."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.conftest import Machine, can_mount, machine
from mount.lake import NOBODYS_PREFIX, MountedLake

__all__ = ["can_mount", "guard", "guarded", "lake", "machine"]

SHARE_OF_LIMIT = 0.75
"""Before the limit of a test: one that hangs in a mount then fails and cleans up, and the others go on."""


@pytest.fixture(scope="session")
def guard(can_mount: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    """A process that kills the nodes of these tests when one takes too long: whoever waits in a mount gets an error.

    A thread could not: who waits for a page of a mapping holds the interpreter.
    """
    homes = [f"{tmp_path_factory.getbasetemp()}/", f"{tempfile.gettempdir()}/{NOBODYS_PREFIX}"]
    command = [sys.executable, str(Path(__file__).with_name("guard.py")), *homes]
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True, bufsize=1) as process:
        yield process
        # The end of its input is not seen for as long as somebody lives who was forked meanwhile.
        process.terminate()


@pytest.fixture(autouse=True)
def guarded(guard: subprocess.Popen[str], request: pytest.FixtureRequest) -> Iterator[None]:
    """Guards this test."""
    marker, config = request.node.get_closest_marker("timeout"), request.config
    limit = marker.args[0] if marker else config.getoption("timeout") or config.getini("timeout")
    assert guard.stdin is not None
    guard.stdin.write(f"{float(limit) * SHARE_OF_LIMIT}\n")
    yield
    guard.stdin.write("over\n")


@pytest.fixture(scope="session")
def lake(guard: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLake]:
    """One mounted tree for all tests that put what they need at a path of their own."""
    machine = Machine(tmp_path_factory.mktemp("lake"))
    try:
        with MountedLake(machine) as made:
            yield made
    finally:
        machine.close()
