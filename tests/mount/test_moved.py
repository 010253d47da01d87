"""A name that the kernel gave by itself to a node that it holds is taken back from it as every other one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from integration.test_writing import sea as sea
from mount.lake import files_below, mounted_sea
from mount.test_exchange import exchange

if TYPE_CHECKING:
    from integration.test_writing import Sea


@pytest.fixture
def lake(machine: Any, sea: Sea, can_mount: None) -> Iterator[Any]:
    """A machine with objects at ``/runs``, mounted at ``lake.mount``."""
    with mounted_sea(machine, sea, {"from/a": b"a", "from/in/b": b"b", "other/c": b"c"}) as made:
        yield made


def write(lake: Any, name: str, content: bytes) -> None:
    with lake.client.open(f"/runs/{name}", "wb") as stream:
        stream.write(content)


def test_what_was_moved_on_a_mount_is_not_shown_there_after_others_have_removed_it(lake: Any) -> None:
    (lake.mount / "to").mkdir()
    (lake.mount / "from/a").rename(lake.mount / "to/a")
    (lake.mount / "from/in").rename(lake.mount / "to/in")
    assert files_below(lake.mount) == {"to/a": b"a", "to/in/b": b"b", "other/c": b"c"}
    for name in ("to/a", "to/in/b"):
        lake.client.remove(f"/runs/{name}")
        assert not (lake.mount / name).exists()
    assert files_below(lake.mount) == {"other/c": b"c"}


def test_what_was_moved_on_a_mount_is_shown_as_others_have_written_it_since(lake: Any) -> None:
    (lake.mount / "to").mkdir()
    for turn in range(3):
        (lake.mount / "from/a").rename(lake.mount / "to/a")
        write(lake, "to/a", b"theirs %d, and longer" % turn)
        assert (lake.mount / "to/a").read_bytes() == b"theirs %d, and longer" % turn
        lake.client.rename("/runs/to/a", "/runs/from/a")
        assert not (lake.mount / "to/a").exists()


def test_what_took_each_others_names_on_a_mount_is_not_shown_after_others_have_removed_it(lake: Any) -> None:
    exchange(lake.mount / "from/a", lake.mount / "other/c")
    lake.client.remove("/runs/from/a")
    assert not (lake.mount / "from/a").exists()
    lake.client.remove("/runs/other/c")
    assert not (lake.mount / "other/c").exists()
