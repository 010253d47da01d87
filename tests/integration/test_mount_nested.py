"""Every attachment is a kernel mount of its own, nested in the mount's root: it comes and goes with the attachment."""

import os
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("can_mount")


@pytest.fixture
def lake(machine: Any) -> Any:
    """A machine with /data attached and everything mounted."""
    machine("attach", f"file://{machine.files('lake', {'a': b'outer a', 'inner/x': b'outer x'})}", "/data")
    machine("mount", str(machine.target()))
    return machine


def points(machine: Any) -> list[str]:
    """Where in the tree kernel mounts are, in their order."""
    root = str(machine.directory / "mnt")
    return [each.point.removeprefix(root) or "/" for each in machine.mounted()]


def test_what_is_attached_appears_and_what_is_detached_is_gone(lake: Any) -> None:
    target = lake.directory / "mnt"
    other = lake.files("other", {"b": b"other b"})
    assert points(lake) == ["/", "/data"]
    lake("attach", f"file://{other}", "/deep/down/other")
    assert points(lake) == ["/", "/data", "/deep/down/other"]
    assert (target / "deep/down/other/b").read_bytes() == b"other b"
    lake("detach", "/deep/down/other")
    assert points(lake) == ["/", "/data"]
    assert not (target / "deep/down/other/b").exists()


def test_what_the_kernel_remembers_as_missing_is_there_once_it_is_attached(lake: Any) -> None:
    target = lake.directory / "mnt"
    assert not (target / "data/late").exists()
    assert not (target / "data/later/x").exists()
    assert not (target / "late").exists()
    other = lake.files("other", {"b": b"other b"})
    for path in ("/data/late", "/data/later/x", "/late"):
        lake("attach", f"file://{other}", path)
        assert (target / path[1:] / "b").read_bytes() == b"other b"
    assert lake.json("status")["problems"] == []


def test_an_attachment_inside_another_is_nested_in_it(lake: Any) -> None:
    target = lake.directory / "mnt"
    inner = lake.files("inner", {"x": b"inner x"})
    lake("attach", f"file://{inner}", "/data/inner")
    assert points(lake) == ["/", "/data", "/data/inner"]
    assert ((target / "data/a").read_bytes(), (target / "data/inner/x").read_bytes()) == (b"outer a", b"inner x")
    assert "another attachment lies below it" in lake("detach", "/data", check=1).stderr
    assert points(lake) == ["/", "/data", "/data/inner"]
    lake("detach", "/data/inner")
    assert points(lake) == ["/", "/data"]
    lake.until(lambda: (target / "data/inner/x").read_bytes() == b"outer x")


def test_an_attachment_that_appears_above_others_takes_them_in_under_open_files(machine: Any) -> None:
    inner = machine.files("inner", {"x": b"inner x"})
    machine("attach", f"file://{inner}", "/data/inner")
    target = machine.target()
    machine("mount", str(target))
    with (target / "data/inner/x").open("rb", buffering=0) as stream:
        machine("attach", f"file://{machine.files('lake', {'a': b'outer a'})}", "/data")
        assert points(machine) == ["/", "/data", "/data/inner"]
        assert ((target / "data/a").read_bytes(), (target / "data/inner/x").read_bytes()) == (b"outer a", b"inner x")
        assert stream.read() == b"inner x"


def test_detach_names_who_uses_it_and_changes_nothing_but_lazily_it_goes(lake: Any) -> None:
    # Where the kernel opens nothing, what it has not read yet ends with the attachment.
    lake("detach", "/data")
    lake("attach", f"file://{lake.directory / 'lake'}", "/data", "--way", "open")
    path = lake.directory / "mnt/data/a"
    with path.open("rb", buffering=0) as stream:
        refused = lake("detach", "/data", check=1)
        assert f"(pid {os.getpid()}, {path})" in refused.stderr
        assert "`penstock detach /data --lazy` [busy]" in refused.stderr
        assert points(lake) == ["/", "/data"]
        assert len(lake.json("attachments")) == 1
        lake("detach", "/data", "--lazy")
        assert points(lake) == ["/"]
        assert not path.exists()
        assert stream.read() == b"outer a"


def test_what_a_mount_shows_is_not_detached_under_it(machine: Any) -> None:
    machine("attach", "memory://m", "/data")
    target = machine.target()
    machine("mount", str(target), "--path", "/data")
    refused = machine("detach", "/data", check=1)
    assert f"/data is mounted at {target}; `penstock umount {target}` first" in refused.stderr
    machine("umount", str(target))
    machine("detach", "/data")


def test_an_attachment_elsewhere_does_not_touch_a_part_that_is_mounted(machine: Any) -> None:
    machine("attach", "memory://m", "/data")
    machine("mount", str(machine.target()), "--path", "/data")
    machine("attach", "memory://n", "/other")
    assert points(machine) == ["/"]
    machine("detach", "/other")


def test_a_directory_in_a_mount_is_not_attached(lake: Any) -> None:
    for directory in (lake.directory / "mnt/data", lake.directory / "mnt", lake.directory):
        refused = lake("attach", f"file://{directory}", "/loop", check=2)
        assert "the node would read itself" in refused.stderr
    assert len(lake.json("attachments")) == 1


def test_several_mounts_show_the_same_tree(lake: Any) -> None:
    second = lake.target("second")
    lake("mount", str(second), "--path", "/data")
    lake("attach", "memory://m", "/data/new")
    assert (second / "a").read_bytes() == b"outer a"
    table = {each.point for each in lake.mounted()}
    assert {str(second / "new"), str(lake.directory / "mnt/data/new")} <= table
    lake("umount", str(second))
    assert Path(lake.directory / "mnt/data/a").read_bytes() == b"outer a"
