"""A mount, a client and fsspec beside a plain dictionary, through crashes, restarts, evictions, a source that is away,
and somebody else's writes to it, also to what waits here: whoever asks is told what the dictionary says, and what is in
conflict is what it says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from fault.model import LargeModel, Model, run

if TYPE_CHECKING:
    from fault.world import World

EXAMPLES, EXAMPLES_IN_SOAK = 4, 60
STEPS = 30
HAPPENED = {"crash", "restart", "evict", "outage", "overwrite outside", "rename", "rename directory", "conflict"}


@pytest.mark.timeout(240)
def test_a_mount_a_client_and_fsspec_say_what_a_dictionary_says(
    world: World, record_property: Callable[[str, object], None]
) -> None:
    run(Model, world, record_property, examples=EXAMPLES, steps=STEPS)


@pytest.mark.soak
@pytest.mark.parametrize("model", [Model, LargeModel])
def test_a_mount_a_client_and_fsspec_say_what_a_dictionary_says_in_many_stories(
    world: World, model: type[Model], record_property: Callable[[str, object], None]
) -> None:
    run(model, world, record_property, examples=EXAMPLES_IN_SOAK, steps=STEPS)
    assert set(world.done) >= HAPPENED
