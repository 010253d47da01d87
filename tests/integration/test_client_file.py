"""A file of the tree is a binary file like any other, whether its content is local or still arriving."""

import array
import ctypes
import io
import itertools
import mmap
import os
import pickle
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import penstock
from penstock.errors import IsDirectoryError, NotFoundError, StaleVersionError

MIB = 1024 * 1024
LINES = b"".join(b"line %d\n" % number * (number % 7) for number in range(4000)) + b"the last has no end"
LARGE = bytes(itertools.islice(itertools.cycle(b"".join(b"%07d\n" % number for number in range(9973))), 6 * MIB + 321))


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from integration.conftest import Machine

    machine = Machine(tmp_path_factory.mktemp("lake"))
    try:
        objects = {"lines.txt": LINES, "large.bin": LARGE, "empty": b"", "deep/er/one": b"1"}
        remote = machine.remote(objects)
        client = penstock.connect(machine.home.name)
        client.attach("s3://bucket", "/data", endpoint=remote.endpoint, credentials="anonymous", freshness="1h")
        machine.client, machine.store = client, remote
        yield machine
        client.close()
    finally:
        machine.close()


@contextmanager
def opened(lake: Any, name: str, cold: bool) -> Iterator[Any]:
    """A file whose content is all local, or not local at all."""
    if cold:
        lake.client.core.evict([f"/data/{name}"])
    else:
        lake.client.core.prefetch([f"/data/{name}"])
    with lake.client.open(f"/data/{name}") as file:
        yield file


def readinto(file: Any, size: int) -> bytes:
    buffer = bytearray(size)
    return bytes(buffer[: file.readinto(buffer)])


OPERATIONS: dict[str, Callable[[Any, int, int], object]] = {
    "read": lambda file, size, _: file.read(size),
    "read_all": lambda file, _, __: file.read(),
    "readinto": lambda file, size, _: readinto(file, size),
    "readline": lambda file, _, __: file.readline(),
    "readline_limited": lambda file, size, _: file.readline(size % 50),
    "readlines": lambda file, size, _: file.readlines(size % 5000 + 1),
    "next": lambda file, _, __: next(file, b"the end"),
    "seek_start": lambda file, _, offset: file.seek(offset),
    "seek_end": lambda file, _, offset: file.seek(-min(offset, 1000), io.SEEK_END),
    "seek_on": lambda file, size, _: file.seek(size % 500, io.SEEK_CUR),
    "tell": lambda file, _, __: file.tell(),
}
STEPS = st.lists(
    st.tuples(
        st.sampled_from(sorted(OPERATIONS)),
        st.one_of(st.integers(0, 300), st.integers(0, 200_000)),
        st.integers(0, len(LINES) + 5000),
    ),
    max_size=25,
)


@pytest.mark.parametrize("cold", [False, True])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_a_file_does_what_bytesio_does(lake: Any, cold: bool, steps: list[tuple[str, int, int]]) -> None:
    model = io.BytesIO(LINES)
    with opened(lake, "lines.txt", cold) as file:
        for name, size, offset in steps:
            operation = OPERATIONS[name]
            assert operation(file, size, offset) == operation(model, size, offset), name
        assert file.tell() == model.tell()
        assert file.read() == model.read()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(reads=st.lists(st.tuples(st.integers(0, len(LARGE) + 10), st.integers(0, MIB)), max_size=12))
def test_bytes_of_a_file_that_is_still_arriving_are_right_wherever_they_are_read(
    lake: Any, reads: list[tuple[int, int]]
) -> None:
    with opened(lake, "large.bin", cold=True) as file:
        for offset, size in reads:
            assert file.pread(size, offset) == LARGE[offset : offset + size]
            buffer = bytearray(size)
            assert file.pread_into(buffer, offset) == len(LARGE[offset : offset + size])
            assert bytes(file.view(offset, size)) == LARGE[offset : offset + size]
        assert file.tell() == 0
        assert file.read() == LARGE


def test_read1_and_peek_return_what_is_there(lake: Any) -> None:
    with opened(lake, "lines.txt", cold=False) as file:
        assert LINES.startswith(file.peek(10))
        assert file.tell() == 0
        pieces = list(iter(file.read1, b""))
        assert b"".join(pieces) == LINES
        assert file.peek() == b""


def test_a_sequential_reader_of_a_cold_file_asks_rarely(lake: Any) -> None:
    lake.client.core.evict(["/data/large.bin"])
    before = lake.client.status()["metrics"]["client_requests"]
    buffer = bytearray(4096)
    with lake.client.open("/data/large.bin") as file:
        total = 0
        while count := file.readinto(buffer):
            assert buffer[:count] == LARGE[total : total + count]
            total += count
    assert total == len(LARGE)
    assert lake.client.status()["metrics"]["client_requests"] - before < 60


def test_a_file_is_taken_for_a_binary_file_and_says_what_it_is(lake: Any) -> None:
    file = lake.client.open("/data/lines.txt")
    assert isinstance(file, io.BufferedIOBase)
    assert (file.name, file.mode, file.size) == ("/data/lines.txt", "rb", len(LINES))
    assert file.readable()
    assert file.seekable()
    assert not file.writable()
    assert not file.isatty()
    assert file.version == lake.client.stat("/data/lines.txt").version
    assert file.modified_ms == lake.client.stat("/data/lines.txt").modified_ms
    file.flush()
    for call in (lambda: file.write(b"x"), lambda: file.truncate(0), lambda: file.writelines([]), file.detach):
        with pytest.raises(io.UnsupportedOperation):
            call()
    file.close()
    file.close()
    assert file.closed


@pytest.mark.parametrize(
    "call",
    ["read", "read1", "readline", "readlines", "peek", "tell", "seekable", "readable", "flush", "fileno", "__enter__"],
)
def test_a_closed_file_answers_nothing(lake: Any, call: str) -> None:
    file = lake.client.open("/data/lines.txt")
    file.close()
    with pytest.raises(ValueError, match="closed"):
        getattr(file, call)()


@pytest.mark.parametrize(
    ("offset", "whence", "error"), [(-1, 0, ValueError), (-1, 1, OSError), (0, 7, ValueError), (-(1 << 40), 2, OSError)]
)
def test_a_seek_to_nowhere_is_refused_and_moves_nothing(lake: Any, offset: int, whence: int, error: type) -> None:
    with lake.client.open("/data/lines.txt") as file:
        with pytest.raises(error):
            file.seek(offset, whence)
        assert file.tell() == 0
        file.seek(1 << 40)
        assert file.read(10) == b""


def test_buffers_that_cannot_be_filled_are_refused(lake: Any) -> None:
    with lake.client.open("/data/lines.txt") as file:
        for wrong in (b"read-only", "text", 5, memoryview(bytearray(100))[::2]):
            with pytest.raises((TypeError, BufferError)):
                file.readinto(wrong)
        assert file.tell() == 0
        assert file.readinto(bytearray()) == 0


def test_an_empty_file_is_an_empty_file(lake: Any) -> None:
    with lake.client.open("/data/empty") as file:
        assert file.read() == b""
        assert list(file) == []
        assert len(file.view()) == 0


def test_a_descriptor_is_given_once_all_is_local_and_has_a_position_of_its_own(lake: Any) -> None:
    with opened(lake, "lines.txt", cold=False) as file, lake.client.open("/data/lines.txt") as other:
        assert file.fileno() == file.fileno() != other.fileno()
        assert os.read(file.fileno(), 6) == LINES[:6]
        assert os.read(other.fileno(), 6) == LINES[:6]
        assert file.tell() == 0
        assert not os.get_inheritable(file.fileno())
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(file.fileno(), b"x")
    with opened(lake, "large.bin", cold=True) as file, pytest.raises(io.UnsupportedOperation):
        file.fileno()


@pytest.mark.parametrize("cold", [False, True])
def test_two_threads_on_one_file_share_its_bytes_out(lake: Any, cold: bool) -> None:
    taken: list[bytes] = []
    with opened(lake, "large.bin", cold) as file:
        file.seek(5)

        def take() -> None:
            while piece := file.read(65_536 + 8):
                taken.append(piece)

        threads = [threading.Thread(target=take) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    wanted = [LARGE[start : start + 65_544] for start in range(5, len(LARGE), 65_544)]
    assert sorted(taken) == sorted(wanted)


def test_views_outlive_their_file_and_the_cached_object(lake: Any) -> None:
    with opened(lake, "large.bin", cold=False) as file:
        whole, part, small = file.view(), file.view(12_345, MIB), file.view(7, 100)
    lake.client.core.evict(["/data/large.bin"])
    assert whole == LARGE
    assert memoryview(part) == LARGE[12_345 : 12_345 + MIB]
    assert bytes(small) == LARGE[7:107]
    assert part[10:20].tobytes() == LARGE[12_355:12_365]
    assert (whole[0], whole[-1], len(whole)) == (LARGE[0], LARGE[-1], len(LARGE))
    with pytest.raises(TypeError):
        memoryview(part)[0] = 1
    assert pickle.loads(pickle.dumps(small)) == LARGE[7:107]


def test_text_is_read_as_the_builtin_open_reads_it(lake: Any) -> None:
    with lake.client.open("/data/lines.txt", "r") as file:
        assert isinstance(file, io.TextIOWrapper)
        assert list(file) == io.StringIO(LINES.decode(), newline="\n").readlines()
    with lake.client.open("/data/lines.txt", "r", encoding="latin-1", newline="") as file:
        assert file.readline() == "line 1\n"
        position = file.tell()
        again = file.readline()
        file.seek(position)
        assert file.readline() == again
    for mode, options in (("w", {"version": "v1"}), ("rb", {"encoding": "utf-8"}), ("q", {})):
        with pytest.raises(ValueError, match="mode"):
            lake.client.open("/data/lines.txt", mode, **options)


def test_libraries_read_it_like_a_file(lake: Any, tmp_path: Path) -> None:
    numpy, pyarrow = pytest.importorskip("numpy"), pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    array = numpy.arange(300_000, dtype=numpy.float32)
    numpy.save(tmp_path / "array.npy", array)
    parquet.write_table(pyarrow.table({"a": list(range(1000))}), tmp_path / "table.parquet")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("inner.txt", LINES)
    (tmp_path / "a.pickle").write_bytes(pickle.dumps({"lines": LINES, "array": array}))
    lake.client.attach(f"file://{tmp_path}", "/local")
    try:
        with lake.client.open("/local/array.npy") as file:
            assert (numpy.load(file) == array).all()
            file.seek(128)
            assert (numpy.fromfile(file, dtype=numpy.float32, count=10) == array[:10]).all()
            assert file.tell() == 128 + 40
            assert (numpy.frombuffer(file.view(128), dtype=numpy.float32) == array).all()
        with lake.client.open("/local/table.parquet") as file:
            assert parquet.read_table(file).num_rows == 1000
        with lake.client.open("/local/a.zip") as file, zipfile.ZipFile(file) as archive:
            assert archive.read("inner.txt") == LINES
        with lake.client.open("/local/a.pickle") as file:
            loaded = pickle.load(file)
            assert loaded["lines"] == LINES
            assert (loaded["array"] == array).all()
    finally:
        lake.client.detach("/local")


def test_a_pickled_file_opens_the_same_version_at_the_same_position(lake: Any) -> None:
    with opened(lake, "lines.txt", cold=False) as file:
        file.seek(100)
        with pickle.loads(pickle.dumps(file)) as copy:
            assert copy.version == file.version
            assert copy.read() == LINES[100:]
        assert file.tell() == 100


def test_what_cannot_be_opened_says_why(lake: Any) -> None:
    with pytest.raises(NotFoundError, match="/data/none"):
        lake.client.open("/data/none")
    with pytest.raises(IsDirectoryError):
        lake.client.open("/data/deep")
    with pytest.raises(FileNotFoundError):
        lake.client.open("/nothing/attached")
    with pytest.raises(StaleVersionError):
        lake.client.open("/data/lines.txt", version="never-was")
    with pytest.raises(ValueError, match="absolute"):
        lake.client.open("data/lines.txt")


def test_paths_may_be_path_objects_and_one_path_is_no_list_of_paths(lake: Any) -> None:
    path = PurePosixPath("/data/lines.txt")
    assert lake.client.open(path).read() == LINES
    assert lake.client.stat(path).size == len(LINES)
    assert bytes(lake.client.read_many([path])[0]) == LINES
    assert bytes(lake.client.read_ranges(path, [(0, 5)])[0]) == LINES[:5]
    assert [entry.name for entry in lake.client.list(path.parent)]
    with pytest.raises(TypeError, match="not one path"):
        lake.client.read_many("/data/lines.txt")


@pytest.mark.parametrize(
    "buffer",
    [
        array.array("i", [0] * 8),
        numpy.zeros(4, "M8[s]"),
        numpy.zeros((2, 2)),
        (ctypes.c_char * 32)(),
        mmap.mmap(-1, 32),
    ],
    ids=["array", "dates", "matrix", "ctypes", "mmap"],
)
def test_whatever_is_writable_and_in_one_piece_can_be_read_into(lake: Any, buffer: Any) -> None:
    with opened(lake, "lines.txt", cold=False) as file:
        assert file.readinto(buffer) == 32
        plain = buffer.view("u1") if isinstance(buffer, numpy.ndarray) else buffer
        assert bytes(plain) == LINES[:32]


@pytest.mark.parametrize(
    ("buffer", "error", "reason"),
    [
        (b"1234", TypeError, "read-only"),
        ("text", TypeError, "not str"),
        (memoryview(bytearray(8))[::2], BufferError, "not contiguous"),
        (numpy.zeros((4, 4))[:, ::2], BufferError, "not contiguous"),
    ],
    ids=["bytes", "str", "stride", "columns"],
)
def test_what_cannot_be_read_into_is_told_why(lake: Any, buffer: Any, error: type[Exception], reason: str) -> None:
    with opened(lake, "lines.txt", cold=False) as file:
        with pytest.raises(error, match=reason):
            file.readinto(buffer)
        assert file.tell() == 0


def test_negative_sizes_and_offsets_are_named(lake: Any) -> None:
    with opened(lake, "lines.txt", cold=False) as file:
        for call in (lambda: file.pread(-1, 0), lambda: file.view(0, -1)):
            with pytest.raises(ValueError, match="size is negative: -1"):
                call()
        for call in (lambda: file.pread(1, -1), lambda: file.view(-1), lambda: file.pread_into(bytearray(1), -1)):
            with pytest.raises(ValueError, match="offset is negative: -1"):
                call()
    with pytest.raises(ValueError, match=r"negative offset: \(-5, 3\)"):
        lake.client.read_ranges("/data/lines.txt", [(-5, 3)])


def test_an_unknown_text_option_is_refused(lake: Any) -> None:
    with pytest.raises(TypeError, match="enconding"):
        lake.client.open("/data/lines.txt", "r", enconding="ascii")


def test_entries_travel_to_other_processes(lake: Any) -> None:
    for entry in (lake.client.stat("/data/lines.txt"), lake.client.stat("/data")):
        assert pickle.loads(pickle.dumps(entry)) == entry
