"""As :mod:`fault.test_model`, with files that go to the source in parts and are changed in part."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from fault.model import LargeModel, run

if TYPE_CHECKING:
    from fault.world import World

EXAMPLES, STEPS = 3, 25


@pytest.mark.timeout(240)
def test_a_mount_a_client_and_fsspec_say_of_large_files_what_a_dictionary_says(
    world: World, record_property: Callable[[str, object], None]
) -> None:
    run(LargeModel, world, record_property, examples=EXAMPLES, steps=STEPS)
