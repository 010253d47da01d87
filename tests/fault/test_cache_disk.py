"""Pages that changed on the cache disk, and a cache disk that takes nothing more."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import penstock
from fault import disk, oracle
from fault.disk import PAGE_BYTES
from fault.lake import MIB, Lake, attached
from penstock.errors import StaleVersionError

if TYPE_CHECKING:
    from fault.store import Store

SIZE = 3 * MIB + 77
AT = 20 * PAGE_BYTES + 5


@pytest.fixture
def lake(machine: Any, store: Store) -> Iterator[Lake]:
    with attached(machine, store) as made:
        yield made


def cached(lake: Lake, number: int, size: int = SIZE) -> str:
    """An object that is completely in the cache."""
    path = lake.put(number, 1, size)
    lake.client.core.prefetch([path])
    assert lake.client.why(path)["complete"]
    return path


def check(lake: Lake, number: int, found: Any, start: int = 0) -> None:
    oracle.check(number, 1, start, bytes(found))


def assert_one_page_was_fetched_again(lake: Lake, before: int) -> None:
    assert lake.metric("cache_corrupt_pages") == 1
    assert PAGE_BYTES <= lake.metric("source_bytes") - before <= 4 * PAGE_BYTES
    assert "1 pages were damaged or could not be read" in lake.machine("doctor", check=None).stdout


def test_a_flipped_page_is_found_by_a_batch_and_fetched_again(lake: Lake) -> None:
    path = cached(lake, 1)
    before = lake.metric("source_bytes")
    disk.flip(disk.extent_of(lake.machine, 1), AT)
    check(lake, 1, lake.client.read_many([path])[0])
    assert_one_page_was_fetched_again(lake, before)
    check(lake, 1, lake.client.open(path).read())


def test_a_flipped_page_is_found_by_ranges_and_fetched_again(lake: Lake) -> None:
    path = cached(lake, 2)
    before = lake.metric("source_bytes")
    disk.flip(disk.extent_of(lake.machine, 2), AT)
    [found] = lake.client.read_ranges(path, [(AT - 1000, AT + 1000)])
    check(lake, 2, found, AT - 1000)
    assert_one_page_was_fetched_again(lake, before)


def test_a_flipped_page_is_found_by_a_verify_job_and_fetched_again(lake: Lake) -> None:
    path = cached(lake, 3)
    before = lake.metric("source_bytes")
    disk.flip(disk.extent_of(lake.machine, 3), AT)
    lake.machine("verify", path, "--wait", check=None)
    assert_one_page_was_fetched_again(lake, before)
    with lake.client.open(path) as file:
        check(lake, 3, file.read())


def test_a_flipped_page_is_found_by_the_scrub_without_anybody_asking(machine: Any, store: Store) -> None:
    with attached(machine, store, "cache.scrub_interval_days=0.00002") as lake:
        path = cached(lake, 4)
        disk.flip(disk.extent_of(machine, 4), AT)
        machine.until(lambda: lake.metric("cache_corrupt_pages") == 1, limit_s=100)
        with lake.client.open(path) as file:
            check(lake, 4, file.read())


@pytest.mark.parametrize("size", [0, 1, AT])
def test_a_file_that_was_cut_short_is_read_on_and_fetched_again(lake: Lake, size: int) -> None:
    path = cached(lake, 5)
    with lake.client.open(path) as held, lake.client.open(path) as other:
        disk.cut(disk.extent_of(lake.machine, 5), size)
        check(lake, 5, held.read())
        check(lake, 5, other.pread(5000, AT + 10_000), AT + 10_000)
    check(lake, 5, lake.client.read_many([path])[0])
    with lake.client.open(path) as file:
        check(lake, 5, file.read())
    assert lake.metric("cache_corrupt_pages") >= SIZE // PAGE_BYTES
    assert lake.metric("source_bytes") <= 3 * SIZE


def test_a_file_that_was_cut_short_under_a_version_that_is_gone_is_stale(lake: Lake) -> None:
    path = cached(lake, 6)
    with lake.client.open(path) as file:
        check(lake, 6, file.read(10))
        lake.put(6, 2, SIZE)
        disk.cut(disk.extent_of(lake.machine, 6), AT)
        with pytest.raises(StaleVersionError):
            file.read()


def damage_while_down(lake: Lake, number: int, how: str) -> None:
    lake.machine("down")
    extent = disk.extent_of(lake.machine, number)
    if how == "flipped":
        disk.flip(extent, AT)
    elif how == "cut":
        disk.cut(extent, AT)
    else:
        extent.unlink()


@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_what_was_damaged_while_the_node_was_down_is_found_by_the_next(lake: Lake, how: str) -> None:
    path = cached(lake, 7)
    damage_while_down(lake, 7, how)
    penstock.connect(lake.machine.home.name)
    check(lake, 7, lake.client.read_many([path])[0])
    assert lake.metric("source_bytes") > 0
    with lake.client.open(path) as file:
        check(lake, 7, file.read())


@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_after_a_crash_of_the_machine_the_first_open_verifies(lake: Lake, how: str) -> None:
    machine = lake.machine
    paths = [cached(lake, number) for number in (8, 9)]
    damage_while_down(lake, 8, how)
    disk.up_after_a_crash(machine)
    for number, path in zip((8, 9), paths, strict=True):
        with lake.client.open(path) as file:
            check(lake, number, file.read())
    assert lake.metric("verified_pages") >= SIZE // PAGE_BYTES, "what is whole is verified and kept"
    assert 0 < lake.metric("source_bytes") <= SIZE + PAGE_BYTES
    if how == "flipped":
        assert lake.metric("cache_corrupt_pages") == 1
        assert lake.metric("source_bytes") <= 4 * PAGE_BYTES


def test_after_a_crash_of_the_process_nothing_is_verified_or_fetched(lake: Lake) -> None:
    path = cached(lake, 10)
    lake.machine("down")
    lake.machine("up")
    with lake.client.open(path) as file:
        check(lake, 10, file.read())
    assert lake.metric("verified_pages") == 0
    assert lake.metric("source_read_requests") == 0


def read_on(lake: Lake, numbers: range) -> None:
    """Every way of reading gives what is right, small and large."""
    for number in numbers:
        size = (90_001, 700_000, 20 * MIB + 3)[number % 3]
        disk.whole(lake.client, lake.put(number, 1, size), number, size)


def assert_status_and_doctor_say_so(lake: Lake, reason: str) -> None:
    tier = lake.tier()
    assert not tier["healthy"]
    assert reason in tier["reason"]
    assert reason in lake.machine("status").stdout
    told = lake.machine("doctor", check=1).stdout
    assert "reads go on uncached" in told
    assert reason in told


def test_with_a_full_disk_reads_go_on(machine: Any, store: Store) -> None:
    machine.home.prepare()
    mounts = 'mount -t tmpfs -o size=8m none "$0/cache"; head -c 8000000 /dev/zero > "$0/cache/ballast"'
    disk.up_with_mounts(machine, mounts, "cache.size=1GiB", "cache.free_space_floor=0")
    with attached(machine, store) as lake:
        path = lake.put(30, 1, 900_000)
        read_on(lake, range(20, 29))
        assert lake.metric("uncached_bytes") > 20 * MIB
        usage = lake.tier()
        assert usage["used_bytes"] <= 1 * MIB
        assert usage["free_bytes"] <= 1 * MIB
        told = disk.beside_node(machine, '"$@"', *disk.UP[:-1], "doctor").stdout
        assert "nothing new is cached" in told, told
        disk.beside_node(machine, 'rm "$0/cache/ballast"')

        def is_cached() -> bool:
            disk.whole(lake.client, path, 30, 900_000)
            return bool(lake.client.why(path)["complete"])

        machine.until(is_cached, limit_s=100)


def test_with_a_read_only_disk_reads_go_on_and_what_was_cached_is_found_again_later(machine: Any, store: Store) -> None:
    directory = machine.directory / "elsewhere"
    setting = f"cache.directory={directory}"
    with attached(machine, store, setting) as lake:
        known = cached(lake, 31)
        machine("down")
        mounts = f"mount --bind {directory} {directory}; mount -o remount,bind,ro {directory}"
        disk.up_with_mounts(machine, mounts, setting)
        read_on(lake, range(32, 41))
        disk.whole(lake.client, known, 31, SIZE)
        assert_status_and_doctor_say_so(lake, "ead-only file system")
        machine("preload", known.replace("31", "40"), "--wait", check=1)
        [job] = machine.json("job", "ls")
        told = json.dumps(machine.json("job", "show", job["id"]))
        assert "the cache disk takes nothing" in told
        assert "ead-only file system" in told
        assert "cache.size" not in told
        machine("down")
        machine("up", "--set", setting)
        disk.whole(lake.client, known, 31, SIZE)
        assert lake.metric("source_read_requests") == 0
        assert lake.tier()["healthy"]


def test_with_a_disk_that_fails_every_write_reads_go_on(machine: Any, store: Store) -> None:
    start = machine.spawn(*disk.WITH_FAILING_WRITES, *disk.UP)
    assert start.wait(60) == 0, start.stderr.read()
    with attached(machine, store) as lake:
        read_on(lake, range(50, 59))
        assert lake.metric("cache_disk_errors") > 0
        assert lake.metric("uncached_bytes") > 20 * MIB
        assert_status_and_doctor_say_so(lake, "nput/output error")


READ_BEHIND = """
import sys
sys.path[:0] = sys.argv[4:]
import penstock
from fault import oracle
number, size, start = int(sys.argv[2]), int(sys.argv[3]), 1 << 20
with penstock.connect(sys.argv[1], start=False).open(f"/data/{number}/it") as file:
    found = file.pread(size, start)
    assert len(found) == size - start
    oracle.check(number, 1, start, found)
"""


def test_with_a_disk_that_fails_to_read_what_it_has_reads_go_on(machine: Any, store: Store) -> None:
    sizes = {70: 90_001, 71: SIZE, 72: 20 * MIB + 3, 73: 5 * MIB}
    with attached(machine, store) as lake:
        paths = {number: cached(lake, number, size) for number, size in sizes.items()}
        machine("down")
        start = machine.spawn(*disk.WITH_FAILING_READS, *disk.UP)
        assert start.wait(60) == 0, start.stderr.read()
        assert lake.metric("cache_disk_errors") == 0
        # A program that meets the broken part by itself, and one that is served by the node.
        roots = [each for each in sys.path if each.endswith("tests")]
        command = (sys.executable, "-c", READ_BEHIND, str(machine.home.name), "73", str(sizes[73]), *roots)
        reader = machine.spawn(*disk.WITH_FAILING_READS, *command)
        _, said = reader.communicate()
        assert reader.returncode == 0, said
        assert lake.metric("cache_disk_errors") > 0
        for number, size in sizes.items():
            disk.whole(lake.client, paths[number], number, size)
        given_up = lake.metric("cache_corrupt_pages")
        assert given_up > 0
        assert lake.metric("source_bytes") >= given_up * PAGE_BYTES, "what cannot be read comes from the source"
        assert lake.client.why(paths[70])["complete"], "what can be read stays"

        def is_told() -> bool:
            disk.whole(lake.client, paths[72], 72, sizes[72])
            return not lake.tier()["healthy"]

        # After some seconds it is tried again, and written well.
        machine.until(is_told)
        assert_status_and_doctor_say_so(lake, "nput/output error")


def test_with_a_cache_directory_that_cannot_be_made_reads_go_on(machine: Any, store: Store) -> None:
    file = Path(machine.directory / "file")
    file.write_text("not a directory")
    with attached(machine, store, f"cache.directory={file}/cache") as lake:
        read_on(lake, range(60, 66))
        assert_status_and_doctor_say_so(lake, os.strerror(20))
