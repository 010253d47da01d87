"""Machines and stores that misbehave, for the tests of what then happens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fault.store import Store
from fault.world import World
from integration.conftest import can_mount, machine

__all__ = ["can_mount", "machine", "store", "world"]


@pytest.fixture
def store() -> Iterator[Store]:
    """A store that does what it is told to, wrong answers included."""
    with Store() as made:
        yield made


@pytest.fixture
def world(machine: Any, can_mount: None, tmp_path: Path) -> Iterator[World]:
    """A machine with two writable places, mounted, and a source that can go away."""
    made = World(machine, tmp_path)
    yield made
    made.close()
