"""Files that a client appends to or changes in part: from the version that was opened, and in the place of no other."""

from __future__ import annotations

import gc
import io
import random
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import penstock
from integration.conftest import make_writable_lake
from integration.test_writing import sea as sea
from penstock.errors import NotFoundError, StaleVersionError, UnavailableError

if TYPE_CHECKING:
    from pathlib import Path

    from integration.test_writing import Sea

KIB, MIB = 1 << 10, 1 << 20
SMALL_MAX = 256 * KIB
SIZE = 200 * MIB + 12_345
PART = 8 * MIB
WAIT_S = 120.0


def content_of(size: int, seed: int) -> bytes:
    piece = random.Random(seed).randbytes(MIB)
    return b"".join(number.to_bytes(4, "big") + piece[4:] for number in range(size // MIB + 1))[:size]


ORIGINAL = content_of(SIZE, 1)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from integration.conftest import Machine

    machine = Machine(tmp_path_factory.mktemp("lake"))
    try:
        yield make_writable_lake(machine)
        machine.client.close()
    finally:
        machine.close()


@pytest.fixture
def large(machine: Any, sea: Sea) -> Iterator[Any]:
    """A machine with a large object at ``/runs/a``."""
    sea.put("runs/a", ORIGINAL)
    machine.client = penstock.connect(machine.home.name)
    machine.client.attach("s3://bucket/runs", "/runs", writable=True, endpoint=sea.endpoint, credentials="anonymous")
    yield machine
    machine.client.close()


def read(lake: Any, path: str) -> bytes:
    with lake.client.open(path) as file:
        return bytes(file.read())


def moved(lake: Any, before: dict[str, int]) -> tuple[int, int]:
    """Bytes that were fetched from the source, and sent to it."""
    now = lake.client.status()["metrics"]
    return now["source_bytes"] - before["source_bytes"], now["upload_bytes"] - before["upload_bytes"]


OPERATIONS: dict[str, Callable[[Any, bytes, int], object]] = {
    "write": lambda file, data, _: file.write(data),
    "read": lambda file, _, offset: file.read(offset),
    "readline": lambda file, _, __: file.readline(),
    "tell": lambda file, _, __: file.tell(),
    "seek": lambda file, _, offset: file.seek(offset),
    "seek_end": lambda file, _, __: file.seek(0, io.SEEK_END),
    "truncate": lambda file, _, offset: file.truncate(offset),
    "flush": lambda file, _, __: file.flush(),
}
ONLY_WRITTEN = sorted({"write", "tell", "seek", "seek_end", "truncate", "flush"})
STEPS = st.lists(st.tuples(st.integers(0, 7), st.integers(0, SMALL_MAX), st.integers(0, 2 * SMALL_MAX)), max_size=15)


@pytest.mark.parametrize("mode", ["ab", "a+b", "r+b", "w+b"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.sampled_from([0, 100, SMALL_MAX, 3 * MIB + 7]), steps=STEPS)
def test_a_file_that_is_changed_does_what_a_local_file_does(
    lake: Any, tmp_path_factory: pytest.TempPathFactory, mode: str, size: int, steps: list[tuple[int, int, int]]
) -> None:
    local = tmp_path_factory.mktemp("model") / "file"
    local.write_bytes(ORIGINAL[:size])
    with lake.client.open("/runs/model", "wb") as file:
        file.write(ORIGINAL[:size])
    names = sorted(OPERATIONS) if "+" in mode else ONLY_WRITTEN
    with local.open(mode) as model, lake.client.open("/runs/model", mode) as file:
        assert file.tell() == model.tell()
        for turn, (number, length, offset) in enumerate(steps):
            name = names[number % len(names)]
            data = ORIGINAL[turn * MIB : turn * MIB + length]
            assert OPERATIONS[name](file, data, offset) == OPERATIONS[name](model, data, offset), name
            if "a" in mode:
                # Where what is appended goes, a buffer does not know.
                file.flush()
                model.flush()
    assert read(lake, "/runs/model") == local.read_bytes()


def test_a_byte_that_is_appended_moves_a_part_and_not_the_file(large: Any, sea: Sea) -> None:
    before = large.client.status()["metrics"]
    with large.client.open("/runs/a", "ab") as file:
        assert file.tell() == SIZE
        file.write(b"!")
    large.client.persist("/runs", timeout=WAIT_S)
    fetched, sent = moved(large, before)
    assert fetched <= PART
    assert 0 < sent <= PART
    assert sea.get("runs/a") == ORIGINAL + b"!"
    assert read(large, "/runs/a") == ORIGINAL + b"!"


def test_a_large_file_is_read_written_cut_and_grown_anywhere(large: Any, sea: Sea) -> None:
    chance, model = random.Random(7), io.BytesIO(ORIGINAL)
    for turn in range(3):
        with large.client.open("/runs/a", "r+b") as file:
            for _ in range(20):
                at, length = chance.randrange(len(model.getbuffer()) + MIB), chance.choice([1, 100, 5000, 300_000])
                kind = chance.choice(["write", "write", "write", "read", "cut"])
                data = chance.randbytes(length)
                for each in (file, model):
                    each.seek(at)
                if kind == "write":
                    assert file.write(data) == model.write(data)
                elif kind == "cut":
                    size = max(100 * MIB, at - 5 * MIB)
                    for each in (file, model):
                        each.truncate(size)
                        # In memory, a cut makes nothing longer.
                        each.seek(0, io.SEEK_END)
                    if len(model.getbuffer()) < size:
                        model.write(bytes(size - len(model.getbuffer())))
                else:
                    assert file.read(length) == model.read(length)
        assert read(large, "/runs/a") == model.getvalue()
        if turn != 1:
            # Once, what was committed and not brought is gone on from.
            large.client.persist("/runs", timeout=WAIT_S)
            assert sea.get("runs/a") == model.getvalue()


def test_what_was_not_brought_yet_is_gone_on_from(large: Any, sea: Sea) -> None:
    assert [entry.name for entry in large.client.list("/runs")] == ["a"]
    sea.fall()
    for number in range(3):
        with large.client.open("/runs/a", "ab") as file:
            file.write(b"%d" % number)
        with large.client.open("/runs/new", "ab") as file:
            file.write(b"%d" % number)
    assert read(large, "/runs/new") == b"012"
    assert large.client.stat("/runs/a").size == SIZE + 3
    sea.rise()
    large.client.persist("/runs", timeout=WAIT_S)
    assert (sea.get("runs/a"), sea.get("runs/new")) == (ORIGINAL + b"012", b"012")


def test_many_small_writes_into_a_large_file_are_joined(large: Any, sea: Sea) -> None:
    model = bytearray(ORIGINAL)
    with large.client.open("/runs/a", "r+b") as file:
        raw = file.raw
        for number in range(10_050):
            at = number * 10_007
            model[at] = number % 256
            raw.seek(at)
            raw.write(model[at : at + 1])
    large.client.persist("/runs", timeout=WAIT_S)
    assert sea.get("runs/a") == model


@pytest.mark.parametrize("size", [100, 3 * MIB])
def test_who_closes_second_is_refused_and_takes_nothing_away(lake: Any, size: int) -> None:
    with lake.client.open("/runs/two", "wb") as file:
        file.write(ORIGINAL[:size])
    for _ in range(2):
        first, second = lake.client.open("/runs/two", "ab"), lake.client.open("/runs/two", "r+b")
        first.write(b"first")
        first.close()
        second.write(b"second")
        with pytest.raises(StaleVersionError, match="open it again"):
            second.close()
        # The next time, it has been brought.
        lake.client.persist("/runs", timeout=WAIT_S)
    assert read(lake, "/runs/two") == ORIGINAL[:size] + b"firstfirst"


def test_two_who_begin_the_same_file_do_not_replace_each_other(lake: Any) -> None:
    for size in (5, SMALL_MAX + 5):
        path = f"/runs/begun-{size}"
        first, second = lake.client.open(path, "ab"), lake.client.open(path, "ab")
        for file in (first, second):
            file.write(ORIGINAL[:size])
        first.close()
        with pytest.raises(StaleVersionError, match="open it again"):
            second.close()
        assert read(lake, path) == ORIGINAL[:size]


def test_what_others_put_into_the_source_meanwhile_is_a_conflict_and_both_are_kept(large: Any, sea: Sea) -> None:
    with large.client.open("/runs/a", "ab") as file:
        file.write(b"mine")
        sea.put("runs/a", b"theirs")
    large.until(lambda: large.client.conflicts("/runs"))
    assert sea.get("runs/a") == b"theirs"
    [conflict] = large.client.conflicts("/runs")
    assert conflict.path == "/runs/a"


def test_what_is_left_by_an_exception_or_never_closed_or_not_changed_changes_nothing(lake: Any) -> None:
    with lake.client.open("/runs/kept", "wb") as file:
        file.write(b"kept")
    lake.client.persist("/runs", timeout=WAIT_S)
    version = lake.client.stat("/runs/kept").version

    def half_changed(mode: str) -> None:
        with lake.client.open("/runs/kept", mode) as file:
            file.write("half" if "b" not in mode else b"half")
            file.flush()
            raise ZeroDivisionError

    for mode in ("ab", "r+b", "a+b", "w+b", "a", "r+"):
        with pytest.raises(ZeroDivisionError):
            half_changed(mode)
        dropped = [lake.client.open("/runs/kept", mode)]
        dropped[0].write("half" if "b" not in mode else b"half")
        with pytest.warns(ResourceWarning, match="discarded"):
            dropped.clear()
        gc.collect()
    for mode in ("ab", "r+b"):
        lake.client.open("/runs/kept", mode).close()
    assert (read(lake, "/runs/kept"), lake.client.stat("/runs/kept").version) == (b"kept", version)
    with pytest.raises(NotFoundError):
        lake.client.open("/runs/none", "r+b")
    lake.client.open("/runs/none", "ab").close()
    assert read(lake, "/runs/none") == b""


def test_text_is_appended_and_changed(lake: Any) -> None:
    for number in range(3):
        with lake.client.open("/runs/log.txt", "a") as log:
            print(f"line {number} ä", file=log)
    with lake.client.open("/runs/log.txt", "r+") as log:
        assert log.readline() == "line 0 ä\n"
        log.seek(0)
        log.write("LINE")
    with lake.client.open("/runs/log.txt") as log:
        assert log.read().decode() == "LINE 0 ä\nline 1 ä\nline 2 ä\n"


def test_a_descriptor_is_given_where_all_of_the_file_is_here(lake: Any, large: Any) -> None:
    with lake.client.open("/runs/descriptor", "ab") as file:
        file.write(b"one ")
        with open(file.fileno(), "wb", closefd=False) as local:
            local.write(b"two ")
        file.write(b"three")
    assert read(lake, "/runs/descriptor") == b"one two three"
    with large.client.open("/runs/a", "ab") as file:
        with pytest.raises(io.UnsupportedOperation, match="large"):
            file.fileno()
        file.write(b"!")
    assert large.client.stat("/runs/a").size == SIZE + 1


def test_after_a_crash_of_the_node_the_file_is_as_it_was_committed_last(large: Any, sea: Sea, tmp_path: Path) -> None:
    large.client.stat("/runs/a")
    sea.fall()
    with large.client.open("/runs/a", "ab") as file:
        file.write(b"1")
    half = large.client.open("/runs/a", "ab")
    half.write(b"2" * (2 * MIB))
    large.kill()
    large.client = penstock.connect(large.home.name)
    with pytest.raises(UnavailableError, match="write the file again"):
        half.close()
    sea.rise()
    large.client.persist("/runs", timeout=WAIT_S)
    assert sea.get("runs/a") == ORIGINAL + b"1"
