"""Many files and ranges in one call, local names of cached files, and the client of an event loop."""

import asyncio
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import penstock
from penstock.errors import IsDirectoryError, NotFoundError, PenstockError, UnsupportedError

MIB = 1024 * 1024
LARGE = bytes(range(256)) * (24 * MIB // 256)


def content(number: int) -> bytes:
    return bytes([number % 251]) * (number * 37 % 5000)


@pytest.fixture
def lake(machine: Any) -> Iterator[Any]:
    machine.source = machine.files("source", {f"many/{number}": content(number) for number in range(2500)})
    (machine.source / "large.bin").write_bytes(LARGE)
    machine.client = penstock.connect(machine.home.name)
    machine.client.attach(f"file://{machine.source}", "/data", freshness="1h")
    yield machine
    machine.client.close()


def metric(lake: Any, name: str) -> int:
    return int(lake.control().status()["metrics"][name])


def test_read_many_returns_every_file_in_order_however_many(lake: Any) -> None:
    numbers = [*range(2499, -1, -1), 5, 5]
    for _ in range(2):
        contents = lake.client.read_many([f"/data/many/{number}" for number in numbers])
        assert [bytes(view) for view in contents] == [content(number) for number in numbers]
    assert lake.client.read_many([]) == []


def test_views_of_one_batch_stay_right_while_others_are_read(lake: Any) -> None:
    paths = [f"/data/many/{number}" for number in range(300)]
    kept = [lake.client.read_many(paths[turn:] + paths[:turn])[0] for turn in range(300)]
    assert [bytes(view) for view in kept] == [content(number) for number in range(300)]


def test_what_cannot_be_read_is_raised_or_stands_in_its_place(lake: Any) -> None:
    paths = ["/data/many/7", "/data/none", "/data/many", "relative", "/data/many/8"]
    with pytest.raises(NotFoundError, match="/data/none"):
        lake.client.read_many(paths)
    first, missing, directory, wrong, last = lake.client.read_many(paths, return_errors=True)
    assert (bytes(first), bytes(last)) == (content(7), content(8))
    assert isinstance(missing, NotFoundError)
    assert isinstance(directory, IsDirectoryError)
    assert isinstance(wrong, ValueError)
    assert isinstance(wrong, PenstockError)


def test_a_batch_that_fits_no_memory_is_read_all_the_same(machine: Any) -> None:
    source = machine.files("source", {f"{number}": LARGE[number:] for number in range(4)})
    machine.environment["PENSTOCK_MEMORY__BUDGET"] = "64MiB"
    machine("up")
    client = penstock.connect(machine.home.name, start=False)
    client.attach(f"file://{source}", "/data")
    kept = [client.read_many(["/data/0", "/data/1", "/data/2", "/data/3"]) for _ in range(3)]
    for contents in kept:
        assert [view == LARGE[number:] for number, view in enumerate(contents)] == [True] * 4
    assert metric(machine, "memory_used_bytes") <= 64 * MIB
    client.close()


def test_memory_of_batches_is_used_again_and_given_back_when_idle(lake: Any) -> None:
    paths = [f"/data/many/{number}" for number in range(1000)]
    # Fetched first, with what is fetched ahead meanwhile: that takes memory of its own for a moment.
    lake.client.read_many(paths)
    lake.until(lambda: metric(lake, "memory_used_bytes") == 0)
    used = set()
    for _ in range(10):
        views = lake.client.read_many(paths)
        used.add(metric(lake, "memory_used_bytes"))
        del views
    assert max(used) <= 8 * MIB
    lake.until(lambda: metric(lake, "memory_used_bytes") == 0)
    assert bytes(lake.client.read_many(paths)[999]) == content(999)


def test_read_ranges_returns_each_range_of_one_version(lake: Any) -> None:
    ranges = [(0, 10), (MIB - 3, MIB + 3), (5, 5), (len(LARGE) - 2, len(LARGE) + 100), (1 << 40, 1 << 41), (0, 70_000)]
    views = lake.client.read_ranges("/data/large.bin", ranges)
    assert [bytes(view) for view in views] == [LARGE[start:end] for start, end in ranges]
    many = [(number * 1000, number * 1000 + 900) for number in range(3000)]
    views = lake.client.read_ranges("/data/large.bin", many)
    assert all(view == LARGE[start:end] for view, (start, end) in zip(views, many, strict=True))
    with pytest.raises(ValueError, match="ends before it starts"):
        lake.client.read_ranges("/data/large.bin", [(2, 1)])
    with pytest.raises(NotFoundError):
        lake.client.read_ranges("/data/none", [(0, 1)])


def test_a_local_path_is_a_read_only_file_for_every_process(lake: Any) -> None:
    with lake.client.local_path("/data/large.bin") as lease:
        path = Path(lease)
        assert path.name == "large.bin"
        assert (lease.size, path.stat().st_size) == (len(LARGE), len(LARGE))
        assert path.stat().st_mode & 0o222 == 0
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapping:
            assert mapping[:] == LARGE
        lake.client.core.evict(["/data/large.bin"])
        script = "import sys; sys.exit(len(open(sys.argv[1], 'rb').read()) != int(sys.argv[2]))"
        subprocess.run([sys.executable, "-c", script, os.fspath(lease), str(len(LARGE))], check=True, timeout=30)
        assert not lease.closed
    assert lease.closed
    lake.until(lambda: not path.exists())


def test_a_local_path_ends_with_its_process_and_what_a_killed_node_left_is_removed(lake: Any) -> None:
    script = (
        "import os, sys, penstock\n"
        "lease = penstock.connect(sys.argv[1], start=False).local_path('/data/large.bin')\n"
        "print(lease.path, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(lake.home.name)], stdout=subprocess.PIPE, timeout=30)
    path = Path(done.stdout.decode().strip())
    assert path.name == "large.bin"
    lake.until(lambda: not path.exists())
    left = Path(lake.client.local_path("/data/large.bin"))
    held = lake.client.local_path("/data/large.bin")
    lake.kill()
    assert Path(held).exists()
    penstock.connect(lake.home.name)
    lake.until(lambda: not left.exists() and not Path(held).exists())


def test_a_file_that_is_larger_than_the_cache_has_no_local_path(machine: Any) -> None:
    source = machine.files("source", {"large.bin": LARGE * 2})
    machine.environment["PENSTOCK_CACHE__SIZE"] = "32MiB"
    machine("up")
    client = penstock.connect(machine.home.name, start=False)
    client.attach(f"file://{source}", "/data")
    with pytest.raises(UnsupportedError, match="cache"):
        client.local_path("/data/large.bin")
    with client.open("/data/large.bin") as file:
        assert file.read() == LARGE * 2
    assert client.read_many(["/data/large.bin"])[0] == LARGE * 2
    client.close()


def test_a_huge_directory_comes_in_pages_and_long_names_fit(machine: Any) -> None:
    name = "n" * 900
    remote = machine.remote({})
    remote.put_synthetic("bucket", [f"d/{number:05}{name}" for number in range(20_000)], b"x")
    client = penstock.connect(machine.home.name)
    client.attach("s3://bucket", "/data", endpoint=remote.endpoint, credentials="anonymous", freshness="1h")
    names = [entry.name for entry in client.list("/data/d")]
    assert len(names) == 20_000
    assert len(set(names)) == 20_000
    assert sum(1 for entry in client.walk("/data") if entry.is_file) == 20_000
    client.close()


def test_an_event_loop_reads_beside_other_work(lake: Any) -> None:
    async def work() -> None:
        async with await penstock.connect_async(lake.home.name) as client:
            async with await client.open("/data/large.bin") as file:
                pieces = await asyncio.gather(*(file.pread(1000, number * MIB) for number in range(10)))
                assert pieces == [LARGE[number * MIB : number * MIB + 1000] for number in range(10)]
                assert await file.view(5, 10) == LARGE[5:15]
                assert await file.read(5) == LARGE[:5]
            contents = await client.read_many(["/data/many/3"])
            assert bytes(contents[0]) == content(3)
            assert len(await client.read_ranges("/data/large.bin", [(0, 3)])) == 1
            assert (await client.stat("/data/large.bin")).size == len(LARGE)
            assert len([entry async for entry in client.list("/data/many")]) == 2500
            assert len([entry async for entry in client.walk("/data")]) == 2502
            with await client.local_path("/data/large.bin") as lease:
                assert lease.size == len(LARGE)
            job = await client.preload("/data/many")
            assert (await client.wait(job, 30))["state"] == "finished"

    asyncio.run(work())


def test_very_many_very_small_files_take_a_bounded_number_of_descriptors(machine: Any) -> None:
    count, batch = 14_000, 64
    source = machine.files("tiny", {f"m/{number:05}": b"%05d" % number for number in range(count)})
    with penstock.connect(machine.home.name) as client:
        client.attach(f"file://{source}", "/data", freshness="1h")
        descriptors = Path(f"/proc/{machine.json('status')['pid']}/fd")
        most = 0
        for _ in range(2):
            for start in range(0, count, batch):
                numbers = range(start, min(start + batch, count))
                found = client.read_many([f"/data/m/{number:05}" for number in numbers])
                assert [bytes(view) for view in found] == [b"%05d" % number for number in numbers]
                if start % (batch * 10) == 0:
                    most = max(most, len(list(descriptors.iterdir())))
    # 8,192 are kept for the next read; what is fetched ahead, and handed out, comes on top.
    assert most < 8192 + 3000
