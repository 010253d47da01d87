"""Snapshots through the kernel: as an image, and as names and files where this user may not mount one."""

from __future__ import annotations

import errno
import mmap
import os
import random
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fault import oracle
from integration.conftest import Machine
from mount.lake import KIB, MIB, MountedLake, digests_below, digests_of, run
from mount.race import read_at
from mount.test_unprivileged import nobody

__all__ = ["nobody"]

SIZES = [0, 1, 4095, 4096, 4097, 65_537, 112 * KIB, 900 * KIB, MIB + 1, 5 * MIB + 17]
FILES = {f"t/{number % 3}/{number}": oracle.content(number, 1, 0, size) for number, size in enumerate(SIZES * 3)}
# As keys are sorted, `t/1-x` and `t/1.y/z` come before what is in `t/1`.
ODD = {"t/1-x": b"minus", "t/1.y/z": b"dot", "t/Ä ö/ß": b"not ascii", f"t/{'n' * 255}": b"long"}


as_root = pytest.mark.skipif(os.getuid() != 0, reason="needs a right that root gives away")
"""The kernel lets only root mount an image."""


@pytest.fixture
def lake(machine: Any) -> Iterator[MountedLake]:
    with MountedLake(machine) as made:
        yield made


def freeze(lake: MountedLake, files: dict[str, bytes], name: str = "v1") -> Path:
    """Puts files, freezes them, mounts the snapshot; where."""
    for key, content in files.items():
        lake.put(key, content)
    if "/data" not in [each["path"] for each in lake.client.attachments()]:
        lake.attach("t", "/data", freshness="1s")
    lake.machine("snapshot", "create", "/data", "--name", name)
    target = lake.machine.target(name)
    lake.machine("snapshot", "mount", name, str(target))
    return target


def below(files: dict[str, bytes]) -> dict[str, bytes]:
    return {key.removeprefix("t/"): content for key, content in files.items()}


def mount_again(lake: MountedLake, target: Path) -> None:
    """Has the kernel forget what it knows of a snapshot, so that the node is asked again."""
    lake.machine("umount", str(target), "--lazy")
    lake.machine("snapshot", "mount", "v1", str(target))


def way(lake: MountedLake, target: Path) -> str:
    [mounted] = [each for each in lake.machine.json("mounts") if each["target"] == str(target)]
    return ",".join(each["way"] for each in mounted["kernel_mounts"])


@as_root
def test_an_image_is_mounted_before_a_byte_is_cached_and_shows_what_was_frozen(lake: MountedLake) -> None:
    target = freeze(lake, FILES | ODD)
    assert way(lake, target) == "image"
    assert lake.metrics()["source_bytes"] == 0
    found = {str(path.relative_to(target)): path.stat() for path in target.rglob("*")}
    expected = below(FILES | ODD)
    files = {name: facts.st_size for name, facts in found.items() if stat.S_ISREG(facts.st_mode)}
    assert files == {name: len(content) for name, content in expected.items()}
    assert lake.metrics()["source_bytes"] == 0, "names and attributes are in the image"
    assert digests_below(target) == digests_of(expected)
    with pytest.raises(OSError, match="Read-only file system"):
        (target / "new").write_bytes(b"x")


@as_root
def test_warm_reads_of_an_image_ask_the_node_nothing(lake: MountedLake) -> None:
    target = freeze(lake, FILES)
    digests_below(target)
    before = lake.metrics()
    for _ in range(3):
        assert digests_below(target) == digests_of(below(FILES))
    after = lake.metrics()
    asked = {name: after[name] - before[name] for name in ("kernel_reads", "kernel_opens", "source_requests")}
    assert asked == {"kernel_reads": 0, "kernel_opens": 0, "source_requests": 0}


@as_root
def test_what_is_cached_is_read_through_an_image_without_waiting(lake: MountedLake) -> None:
    target = freeze(lake, FILES)
    lake.client.preload("/data").wait()
    content = {name: each for name, each in below(FILES).items() if each}
    first = content.popitem()
    # Brings what the document says of all of them.
    assert (target / first[0]).read_bytes() == first[1]
    before = lake.metrics()
    for name, each in content.items():
        assert (target / name).read_bytes() == each
    after = lake.metrics()
    asked = {name: after[name] - before[name] for name in ("kernel_reads", "kernel_late_reads", "source_requests")}
    assert asked["kernel_reads"] >= len(content)
    assert asked["kernel_late_reads"] == asked["source_requests"] == 0


@as_root
def test_every_way_to_read_gets_the_bytes_of_the_image(lake: MountedLake) -> None:
    large = random.Random(3).randbytes(6 * MIB + 777)
    target = freeze(lake, {"t/large": large, "t/small": b"s" * 5000})
    with (target / "large").open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
        assert view[5 * MIB : 5 * MIB + 100] == large[5 * MIB : 5 * MIB + 100]
        assert view[:] == large
    assert run("dd", f"if={target}/large", "bs=999", "status=none") == large
    copy = lake.machine.directory / "copy"
    run("cp", "-r", target, copy)
    assert (copy / "large").read_bytes() == large
    assert (copy / "small").read_bytes() == b"s" * 5000


@as_root
def test_a_pinned_version_that_is_gone_is_an_error_and_never_other_bytes(lake: MountedLake) -> None:
    # Too large for their neighbours to be fetched ahead of their readers.
    size, cached, gone = 9 * MIB, [2, 0], [1, 3]
    target = freeze(lake, {f"t/{number}": oracle.content(number, 1, 0, size) for number in range(4)})
    for number in cached:
        oracle.check(number, 1, 0, (target / str(number)).read_bytes())
    for number in range(4):
        lake.put(f"t/{number}", oracle.content(number, 2, 0, size))
    mount_again(lake, target)
    for number in cached:
        oracle.check(number, 1, 0, (target / str(number)).read_bytes())
    for number in gone:
        with pytest.raises(OSError, match="Input/output error"):
            (target / str(number)).read_bytes()
    assert lake.machine.json("snapshot", "diff", "v1")["changed"] == 4
    later = freeze(lake, {}, "v2")
    for number in range(4):
        oracle.check(number, 2, 0, (later / str(number)).read_bytes())
    for number in cached:
        oracle.check(number, 1, 0, (target / str(number)).read_bytes())


@as_root
def test_readers_of_an_image_see_one_version_while_the_source_is_overwritten(lake: MountedLake) -> None:
    size, count = 70 * KIB + 3, 30
    target = freeze(lake, {f"t/{number}": oracle.content(number, 1, 0, size) for number in range(count)})
    over, wrong, read = threading.Event(), [], [0] * 3

    def look(index: int) -> None:
        chance = random.Random(index)
        while not over.is_set():
            number, start = chance.randrange(count), chance.randrange(size)
            try:
                with (target / str(number)).open("rb", buffering=0) as file:
                    found = read_at(file.fileno(), 10_000, start)
                    oracle.check(number, 1, start, found)
                    read[index] += len(found) == min(10_000, size - start)
            except OSError as error:
                # What is gone, and what is not mounted for a moment.
                if error.errno not in (errno.EIO, errno.ENOENT):
                    wrong.append(repr(error))
            except AssertionError as error:
                wrong.append(str(error))

    threads = [threading.Thread(target=look, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    try:
        # What nobody has read before it is overwritten, nobody can read any more.
        lake.machine.until(lambda: min(read) > 0)
        for version in range(2, 6):
            for number in range(count):
                lake.put(f"t/{number}", oracle.content(number, version, 0, size))
            lake.machine("evict", "/data")
            mount_again(lake, target)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert not wrong, wrong[:3]


@as_root
def test_an_image_outlives_detach_stop_and_kill_of_the_node(lake: MountedLake) -> None:
    machine = lake.machine
    target = freeze(lake, FILES)
    machine("detach", "/data")
    assert digests_below(target) == digests_of(below(FILES))
    machine("down")
    assert list(target.iterdir()) == []
    machine("up")
    machine.until((target / "0").exists)
    assert digests_below(target) == digests_of(below(FILES))
    machine.kill()
    machine("up")

    def heals() -> bool:
        try:
            return digests_below(target) == digests_of(below(FILES)) and way(lake, target) == "image"
        except OSError:
            return False

    machine.until(heals)
    assert len([each for each in machine.mounted() if each.point == str(target)]) == 1


@as_root
def test_an_image_is_taken_away_when_nobody_uses_it_and_whoever_takes_it(lake: MountedLake) -> None:
    machine = lake.machine
    images = machine.home.images
    target = freeze(lake, FILES)
    with (target / "0/9").open("rb") as file:
        told = machine("umount", str(target), check=1).stderr
        assert f"(pid {os.getpid()}, {target}/0/9)" in told
        assert "is mounted at" in machine("snapshot", "rm", "v1", check=1).stderr
        machine("umount", str(target), "--lazy")
        assert file.read() == FILES["t/0/9"]
    machine.until(lambda: machine.json("status")["mounts"][0]["target"] == str(lake.root))
    assert list(images.iterdir()) == []
    machine("snapshot", "mount", "v1", str(target))
    run("umount", target)
    machine.until(lambda: not list(images.iterdir()))
    assert [each["target"] for each in machine.json("mounts")] == [str(lake.root)]
    machine("snapshot", "rm", "v1")
    assert machine.json("snapshot", "ls") == []


@as_root
def test_other_users_read_an_image_only_where_they_are_allowed(lake: MountedLake) -> None:
    target = freeze(lake, FILES)
    open_to_all = lake.machine.target("open")
    lake.machine("snapshot", "mount", "v1", str(open_to_all), "--allow-other", "--owner", "12:34", "--umask", "022")
    for directory in target.parents:
        directory.chmod(directory.stat().st_mode | 0o001)

    def seen(directory: Path) -> int:
        command = ["cat", str(directory / "0/9")]
        return subprocess.run(command, user=65534, group=65534, extra_groups=[], capture_output=True).returncode

    assert (seen(target), seen(open_to_all)) == (1, 0)
    facts = (open_to_all / "0/9").stat()
    assert (facts.st_uid, facts.st_gid, stat.S_IMODE(facts.st_mode)) == (12, 34, 0o444)


@as_root
def test_a_document_is_mounted_on_another_machine(lake: MountedLake, tmp_path_factory: pytest.TempPathFactory) -> None:
    freeze(lake, FILES | ODD)
    other = Machine(tmp_path_factory.mktemp("other"))
    try:
        other("up", "--set", "cache.free_space_floor=0")
        source, carried = lake.machine.home.snapshots / "v1.snapshot", other.home.snapshots / "carried.snapshot"
        carried.write_bytes(source.read_bytes())
        assert other.json("snapshot", "show", "carried", "--check")["files"] == len(FILES | ODD)
        target = other.target("it")
        other("snapshot", "mount", "carried", str(target))
        assert digests_below(target) == digests_of(below(FILES | ODD))
        harmed = bytearray(source.read_bytes())
        harmed[len(harmed) // 3] ^= 1
        (other.home.snapshots / "harmed.snapshot").write_bytes(harmed)
        empty = other.target("no")
        told = other("snapshot", "mount", "harmed", str(empty), check=1).stderr
        assert "a row of it is damaged" in told
        assert list(empty.iterdir()) == []
    finally:
        other.close()


@pytest.mark.skipif(os.getuid() != 0, reason="needs to become another user")
def test_without_privilege_a_snapshot_is_shown_as_files_and_says_so(nobody: Machine) -> None:
    with MountedLake(nobody) as lake:
        target = freeze(lake, FILES | ODD)
        assert way(lake, target) == "no-open"
        [mounted] = [each for each in nobody.json("mounts") if each["target"] == str(target)]
        assert "not as an image: the kernel lets only root mount an image" in mounted["kernel_mounts"][0]["why"]
        copy = nobody.target("copy")
        run(*nobody.as_another, "cp", "-r", target, copy)
        assert digests_below(copy / target.name) == digests_of(below(FILES | ODD))
        before = lake.metrics()
        run(*nobody.as_another, "cp", "-r", target, nobody.target("again"))
        assert lake.metrics()["source_requests"] == before["source_requests"]
        for key in FILES:
            lake.put(key, b"other")
        run(*nobody.as_another, "cp", "-r", target, nobody.target("later"))
        assert digests_below(nobody.directory / "later" / target.name) == digests_of(below(FILES | ODD))


@as_root
def test_a_large_directory_of_an_image_is_listed_whole(lake: MountedLake) -> None:
    count = 3000
    target = freeze(lake, {f"t/many/{number:05}": b"" for number in range(count)} | {"t/last": b"x"})
    names = sorted(path.name for path in (target / "many").iterdir())
    assert names == [f"{number:05}" for number in range(count)]
    assert not (target / "many/00000x").exists()
