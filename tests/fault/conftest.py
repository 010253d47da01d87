"""Machines and stores that misbehave, for the tests of what then happens."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fault.store import Store
from integration.conftest import can_mount, machine

__all__ = ["can_mount", "machine", "store"]


@pytest.fixture
def store() -> Iterator[Store]:
    """A store that does what it is told to, wrong answers included."""
    with Store() as made:
        yield made
