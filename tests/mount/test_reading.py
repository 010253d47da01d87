"""Every way in which the kernel lets a program read, for files that are lent, that are being brought and that are whole
by now.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from fault import oracle
from mount.lake import KIB, MIB, MountedLake

SMALL = 300 * KIB + 17
LARGE = 6 * MIB + 17
KINDS = {
    "open small": SMALL,
    "open cold": LARGE,
    "open whole": LARGE,
    "no-open small": SMALL,
    "no-open cold": LARGE,
}
ALIGNED = 4096


@dataclass(frozen=True)
class Shown:
    path: Path
    content: bytes
    fd: int

    @property
    def size(self) -> int:
        return len(self.content)

    def starts(self, count: int = 40) -> list[int]:
        """Offsets that are worth a look: around pages and the end, and some by chance."""
        edges = [0, 1, 4095, 4096, 65535, 65536, self.size // 2, self.size - 4097, self.size - 1]
        chance = random.Random(self.size)
        return [*edges, *(chance.randrange(self.size) for _ in range(count))]


@pytest.fixture(params=KINDS)
def shown(lake: MountedLake, request: pytest.FixtureRequest) -> Iterator[Shown]:
    """An open file: small ones are lent from the first open on, whole ones have been read before."""
    content = oracle.content(1, 1, 0, KINDS[request.param])
    way, kind = request.param.split()
    directory = lake.show({"it": content}, way)
    path = directory / "it"
    if kind == "whole":
        assert path.read_bytes() == content
    fd = os.open(path, os.O_RDONLY)
    try:
        yield Shown(path, content, fd)
    finally:
        os.close(fd)


def test_pread_gives_what_is_there_and_nothing_behind_the_end(shown: Shown) -> None:
    for start in shown.starts():
        for length in (1, 100, 70_000):
            assert os.pread(shown.fd, length, start) == shown.content[start : start + length]
    for start in (shown.size, shown.size + 1, shown.size + 10 * MIB, 1 << 60):
        assert os.pread(shown.fd, 4096, start) == b""


def test_read_goes_on_where_it_was_and_ends_at_the_end(shown: Shown) -> None:
    pieces = []
    while piece := os.read(shown.fd, 99_991):
        pieces.append(piece)
    assert b"".join(pieces) == shown.content
    assert os.read(shown.fd, 1) == b""
    assert os.lseek(shown.fd, 0, os.SEEK_CUR) == shown.size


def test_vectors_are_filled_in_order(shown: Shown) -> None:
    buffers = [bytearray(length) for length in (1, 4095, 0, 70_001, 12)]
    for start in shown.starts(5):
        count = os.preadv(shown.fd, buffers, start)
        wanted = shown.content[start : start + sum(map(len, buffers))]
        assert count == len(wanted)
        assert b"".join(buffers)[:count] == wanted
    os.lseek(shown.fd, 12_345, os.SEEK_SET)
    assert os.readv(shown.fd, buffers) == sum(map(len, buffers))
    assert b"".join(buffers) == shown.content[12_345 : 12_345 + sum(map(len, buffers))]


def test_seeking_finds_the_end_and_no_holes(shown: Shown) -> None:
    assert os.lseek(shown.fd, 0, os.SEEK_END) == shown.size
    assert os.lseek(shown.fd, -5, os.SEEK_END) == shown.size - 5
    assert os.read(shown.fd, 100) == shown.content[-5:]
    assert os.lseek(shown.fd, 5000, os.SEEK_DATA) == 5000
    assert os.lseek(shown.fd, 5000, os.SEEK_HOLE) == shown.size
    with pytest.raises(OSError, match="No such device or address"):
        os.lseek(shown.fd, shown.size, os.SEEK_DATA)


def test_sendfile_moves_bytes_into_sockets_and_files(shown: Shown, tmp_path: Path) -> None:
    receiving, sending = socket.socketpair()
    found = bytearray()

    def receive() -> None:
        while piece := receiving.recv(MIB):
            found.extend(piece)

    thread = threading.Thread(target=receive)
    thread.start()
    with closing(receiving):
        with closing(sending):
            at = 0
            while count := os.sendfile(sending.fileno(), shown.fd, at, MIB):
                at += count
        thread.join()
    assert found == shown.content
    with (tmp_path / "copy").open("wb") as copy:
        assert os.sendfile(copy.fileno(), shown.fd, 1000, 100_000) == 100_000
    assert (tmp_path / "copy").read_bytes() == shown.content[1000:101_000]


def test_splice_moves_bytes_through_a_pipe(shown: Shown) -> None:
    reading, writing = os.pipe()
    try:
        for start in (0, 4095, shown.size // 2, shown.size - 100):
            wanted = shown.content[start : start + 20_000]
            found = b""
            while len(found) < len(wanted):
                count = os.splice(shown.fd, writing, len(wanted) - len(found), offset_src=start + len(found))
                assert count, "it ended too early"
                found += os.read(reading, count)
            assert found == wanted
        assert os.splice(shown.fd, writing, 100, offset_src=shown.size) == 0
    finally:
        os.close(reading)
        os.close(writing)


def test_copy_file_range_or_its_refusal_gives_right_bytes(shown: Shown, tmp_path: Path) -> None:
    with (tmp_path / "copy").open("w+b") as copy:
        try:
            count = os.copy_file_range(shown.fd, copy.fileno(), 50_000, offset_src=777)
        except OSError as refused:
            # Between file systems of different kinds; who gets this reads and writes.
            assert refused.errno in (errno.EXDEV, errno.EOPNOTSUPP)  # noqa: PT017
            return
        copy.seek(0)
        assert copy.read() == shown.content[777 : 777 + count]


@pytest.mark.parametrize("kind", [mmap.MAP_SHARED, mmap.MAP_PRIVATE], ids=["shared", "private"])
def test_a_mapping_shows_the_content(shown: Shown, kind: int) -> None:
    with closing(mmap.mmap(shown.fd, 0, flags=kind, prot=mmap.PROT_READ)) as mapping:
        for start in shown.starts(100):
            assert mapping[start : start + 5000] == shown.content[start : start + 5000]
        assert os.pread(shown.fd, 5000, 100) == mapping[100:5100]
        assert mapping[:] == shown.content
        # What lies behind the end in the last page is zeros, as everywhere.
        assert mapping.size() == shown.size


def test_a_private_mapping_can_be_changed_and_nobody_else_sees_it(shown: Shown) -> None:
    with closing(mmap.mmap(shown.fd, 0, access=mmap.ACCESS_COPY)) as mapping:
        mapping[70_000:70_004] = b"mine"
        assert mapping[69_990:70_010] == shown.content[69_990:70_000] + b"mine" + shown.content[70_004:70_010]
    assert shown.path.read_bytes() == shown.content


def test_a_mapping_outlives_its_descriptor(shown: Shown) -> None:
    with shown.path.open("rb") as stream:
        mapping = mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ)
    with closing(mapping):
        assert mapping[:] == shown.content


def test_direct_reads_give_the_same(shown: Shown) -> None:
    fd = os.open(shown.path, os.O_RDONLY | os.O_DIRECT)
    try:
        with closing(mmap.mmap(-1, 256 * KIB)) as buffer:
            for start in range(0, shown.size, 256 * KIB):
                count = os.preadv(fd, [buffer], start)
                assert buffer[:count] == shown.content[start : start + 256 * KIB]
            last = (shown.size - 1) // ALIGNED * ALIGNED
            assert os.preadv(fd, [memoryview(buffer)[:ALIGNED]], last) == shown.size - last
            assert os.preadv(fd, [memoryview(buffer)[:ALIGNED]], last + ALIGNED) == 0
    finally:
        os.close(fd)


def test_threads_read_one_file_at_random(shown: Shown) -> None:
    wrong: list[int] = []

    def read(number: int) -> None:
        chance = random.Random(number)
        with shown.path.open("rb", buffering=0) as own:
            for _ in range(150):
                start, length = chance.randrange(shown.size), chance.choice([1, 512, 5000, 130_000])
                fd = chance.choice([shown.fd, own.fileno()])
                if os.pread(fd, length, start) != shown.content[start : start + length]:
                    wrong.append(start)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_advice_changes_nothing(shown: Shown) -> None:
    for advice in (os.POSIX_FADV_WILLNEED, os.POSIX_FADV_SEQUENTIAL, os.POSIX_FADV_DONTNEED, os.POSIX_FADV_RANDOM):
        os.posix_fadvise(shown.fd, 0, 0, advice)
        assert os.pread(shown.fd, 100_000, 50_000) == shown.content[50_000:150_000]


def test_a_file_that_was_read_through_two_descriptors_is_one(shown: Shown) -> None:
    again = os.open(shown.path, os.O_RDONLY)
    try:
        first, second = os.fstat(shown.fd), os.fstat(again)
        assert os.path.samestat(first, second)
        assert first.st_size == shown.size
        assert os.pread(again, 4000, 1) == os.pread(shown.fd, 4000, 1)
    finally:
        os.close(again)
