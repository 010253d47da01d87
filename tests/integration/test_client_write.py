"""A file that is written appears as a whole when it is closed, or not at all; until then it is like any binary file."""

import asyncio
import gc
import io
import pickle
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec
import numpy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import penstock
from penstock.errors import (
    AlreadyExistsError,
    InvalidInputError,
    IsDirectoryError,
    NotFoundError,
    PenstockError,
    ReadOnlyError,
    UnsupportedError,
)

KIB = 1024
MIB = 1024 * KIB
SMALL_MAX = 256 * KIB
LARGE = b"".join(b"%07d\n" % number for number in range(8 * MIB))[: 64 * MIB + 123]
SIZES = [0, 1, SMALL_MAX, SMALL_MAX + 1, 3 * MIB + 7]


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from integration.conftest import Machine

    machine = Machine(tmp_path_factory.mktemp("lake"))
    try:
        machine.root = machine.files("source", {"there.txt": b"it was there"})
        machine.client = penstock.connect(machine.home.name)
        machine.client.attach(f"file://{machine.root}", "/runs", writable=True, freshness="60s")
        machine.client.attach("memory://fixed", "/fixed")
        yield machine
        machine.client.close()
    finally:
        machine.close()


@pytest.fixture
def path(request: pytest.FixtureRequest) -> str:
    """A path of the test's own."""
    name = "".join(letter if letter.isalnum() else "-" for letter in request.node.name)
    return f"/runs/{name}"


def content_of(lake: Any, path: str) -> bytes:
    with lake.client.open(path) as file:
        return bytes(file.read())


def exists(lake: Any, path: str) -> bool:
    try:
        lake.client.stat(path)
    except NotFoundError:
        return False
    return True


def check_no_space_is_held(lake: Any) -> None:
    """What is committed takes space until the source has it; what was discarded must not take any longer."""
    lake.client.persist("/runs", timeout=60)
    lake.until(lambda: lake.client.status()["stage"]["used_bytes"] == 0)


@pytest.mark.parametrize("size", SIZES)
def test_what_was_written_is_read_back_at_once_by_everybody_and_is_in_the_source_after_persist(
    lake: Any, path: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = LARGE[:size]
    with lake.client.open(path, "wb") as file:
        assert file.write(content) == size
        assert not exists(lake, path)
    assert content_of(lake, path) == content
    assert lake.client.stat(path).size == size
    assert path.removeprefix("/runs/") in {entry.name for entry in lake.client.list("/runs")}
    assert bytes(lake.client.read_many([path])[0]) == content
    monkeypatch.setenv("PENSTOCK_HOME", lake.environment["PENSTOCK_HOME"])
    with fsspec.open(f"penstock://{path}") as file:
        assert file.read() == content
    lake.client.persist("/runs", timeout=60)
    assert (lake.root / path.removeprefix("/runs/")).read_bytes() == content
    assert content_of(lake, path) == content


def test_a_large_file_is_written_by_large_and_by_small_writes(lake: Any, path: str) -> None:
    for size in (len(LARGE), 7 * MIB, 100_003):
        with lake.client.open(path, "wb", durability="local") as file:
            for start in range(0, len(LARGE), size):
                file.write(memoryview(LARGE)[start : start + size])
            assert file.tell() == len(LARGE)
        assert content_of(lake, path) == LARGE
    lake.client.persist(path, timeout=60)
    assert (lake.root / path.removeprefix("/runs/")).read_bytes() == LARGE


def test_at_durability_source_a_close_returns_when_the_source_has_it(lake: Any, path: str) -> None:
    for size in (100, 3 * MIB):
        with lake.client.open(path, "wb", durability="source") as file:
            file.write(LARGE[:size])
        assert (lake.root / path.removeprefix("/runs/")).read_bytes() == LARGE[:size]


OPERATIONS: dict[str, Callable[[Any, bytes, int], object]] = {
    "write": lambda file, data, _: file.write(data),
    "writelines": lambda file, data, _: file.writelines([data[:10], data[10:]]),
    "tell": lambda file, _, __: file.tell(),
    "seek_start": lambda file, _, offset: file.seek(offset),
    "seek_on": lambda file, _, offset: file.seek(offset % 5000, io.SEEK_CUR),
    "seek_end": lambda file, _, offset: file.seek(-min(offset, file.seek(0, io.SEEK_END)), io.SEEK_END),
    "truncate": lambda file, _, __: file.truncate(),
    "truncate_to": lambda file, _, offset: file.truncate(offset),
    "flush": lambda file, _, __: file.flush(),
}
PIECES = st.one_of(st.integers(0, 300), st.integers(0, 2 * SMALL_MAX), st.integers(MIB - 10, MIB + 10))
STEPS = st.lists(st.tuples(st.sampled_from(sorted(OPERATIONS)), PIECES, st.integers(0, 2 * SMALL_MAX)), max_size=20)


@pytest.mark.parametrize("shared", [False, True])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_a_file_that_is_written_does_what_a_local_file_does(
    lake: Any, tmp_path_factory: pytest.TempPathFactory, shared: bool, steps: list[tuple[str, int, int]]
) -> None:
    local = tmp_path_factory.mktemp("model") / "file"
    with local.open("wb") as model, lake.client.open("/runs/model", "wb") as file:
        if shared:
            assert file.fileno() >= 0
        for turn, (name, size, offset) in enumerate(steps):
            data = LARGE[turn * MIB : turn * MIB + size]
            assert OPERATIONS[name](file, data, offset) == OPERATIONS[name](model, data, offset), name
    assert content_of(lake, "/runs/model") == local.read_bytes()


def test_a_file_is_taken_for_a_binary_file_and_says_what_it_is(lake: Any, path: str) -> None:
    with lake.client.open(path, "wb") as file:
        assert isinstance(file, io.BufferedIOBase)
        assert (file.name, file.mode, file.closed) == (path, "wb", False)
        assert (file.writable(), file.seekable(), file.readable(), file.isatty()) == (True, True, False, False)
        for call in (file.read, file.read1, file.readinto, file.readline, file.readlines, file.detach):
            with pytest.raises(io.UnsupportedOperation):
                call()
        with pytest.raises(io.UnsupportedOperation):
            iter(file)
        assert path in repr(file)
    assert file.closed
    for call in (file.tell, file.flush, file.fileno, file.writable, lambda: file.write(b"x"), file.__enter__):
        with pytest.raises(ValueError, match="closed"):
            call()
    file.close()
    file.discard()
    assert content_of(lake, path) == b""


@pytest.mark.parametrize(
    ("data", "error", "reason"),
    [
        ("text", TypeError, "bytes-like object is required, not 'str'"),
        (None, TypeError, "not 'NoneType'"),
        (memoryview(b"12345678")[::2], BufferError, "contiguous"),
        (numpy.zeros((4, 4))[:, ::2], (BufferError, ValueError), "contiguous"),
    ],
    ids=["str", "none", "stride", "columns"],
)
def test_what_cannot_be_written_is_told_why(lake: Any, path: str, data: Any, error: Any, reason: str) -> None:
    with lake.client.open(path, "wb") as file:
        with pytest.raises(error, match=reason):
            file.write(data)
        assert file.tell() == 0
        file.write(numpy.arange(3, dtype="<i4"))
    assert content_of(lake, path) == numpy.arange(3, dtype="<i4").tobytes()


def test_positions_that_cannot_be_are_refused(lake: Any, path: str) -> None:
    with lake.client.open(path, "wb") as file:
        for arguments, error in (((-1,), ValueError), ((-1, 1), OSError), ((-1, 2), OSError), ((0, 3), ValueError)):
            with pytest.raises(error):
                file.seek(*arguments)
        with pytest.raises(ValueError, match="negative"):
            file.truncate(-1)
        file.seek(2**63 - 1)
        with pytest.raises(OSError, match="too large"):
            file.write(b"xx")
        file.seek(0)
        file.write(b"fine")
    assert content_of(lake, path) == b"fine"


def test_a_hole_reads_as_zeros_and_a_seek_alone_makes_none(lake: Any, path: str) -> None:
    for start in (100, 5 * MIB):
        with lake.client.open(path, "wb") as file:
            file.write(b"head")
            file.seek(start)
            file.write(b"tail")
            file.seek(10 * start)
        assert content_of(lake, path) == b"head".ljust(start, b"\0") + b"tail"


@pytest.mark.parametrize("size", [10, MIB])
def test_a_block_that_is_left_by_an_exception_discards_the_file(lake: Any, path: str, size: int) -> None:
    with lake.client.open(path, "wb") as file:
        file.write(b"good")
    for mode in ("wb", "w"):
        with suppress(ZeroDivisionError), lake.client.open(path, mode) as file:
            file.write(b"b" * size if mode == "wb" else "b" * size)
            file.flush()
            raise ZeroDivisionError
        assert file.closed
        assert content_of(lake, path) == b"good"
    check_no_space_is_held(lake)


@pytest.mark.parametrize("size", [10, MIB])
@pytest.mark.parametrize("mode", ["wb", "w"])
def test_a_file_that_is_dropped_is_discarded_and_warned_of(lake: Any, path: str, mode: str, size: int) -> None:
    def drop() -> None:
        file = lake.client.open(path, mode)
        file.write(b"b" * size if mode == "wb" else "b" * size)
        del file
        gc.collect()

    with pytest.warns(ResourceWarning, match=f"unclosed file .*{path}.*discarded"):
        drop()
    assert not exists(lake, path)
    check_no_space_is_held(lake)


def test_a_discarded_file_leaves_what_was_there(lake: Any) -> None:
    for size in (10, MIB):
        file = lake.client.open("/runs/there.txt", "wb")
        file.write(b"b" * size)
        file.discard()
        assert file.closed
        file.close()
        assert content_of(lake, "/runs/there.txt") == b"it was there"
    check_no_space_is_held(lake)


@pytest.mark.parametrize("size", [10, MIB])
def test_mode_x_writes_only_what_nothing_has_the_name_of(lake: Any, path: str, size: int) -> None:
    late = lake.client.open(path, "xb")
    late.write(b"l" * size)
    with lake.client.open(path, "xb") as file:
        assert file.mode == "xb"
        file.write(b"first")
    for mode in ("xb", "x"):
        with pytest.raises(AlreadyExistsError, match="something has that name"):
            lake.client.open(path, mode)
    with pytest.raises(AlreadyExistsError):
        late.close()
    assert late.closed
    assert content_of(lake, path) == b"first"


def test_text_is_written_as_the_built_in_open_does(lake: Any, path: str, tmp_path: Path) -> None:
    for mode, options in (
        ("w", {}),
        ("wt", {"encoding": "utf-16"}),
        ("w", {"newline": "\r\n"}),
        ("w", {"encoding": "ascii", "errors": "replace"}),
    ):
        lines = [f"Größe {number}\n" for number in range(20_000)]
        defaults = {"encoding": "utf-8", **options}
        with (tmp_path / "model").open(mode, **defaults) as model, lake.client.open(path, mode, **options) as file:
            for each in (model, file):
                each.write(lines[0])
                each.writelines(lines[1:])
                print("the end", file=each)
        assert content_of(lake, path) == (tmp_path / "model").read_bytes()
        with lake.client.open(path, "r", **options) as file, (tmp_path / "model").open(**defaults) as model:
            assert file.read() == model.read()
    with pytest.raises(LookupError):
        lake.client.open(path, "w", encoding="no-such")
    with pytest.raises(TypeError, match="enconding"):
        lake.client.open(path, "w", enconding="ascii")


def test_a_text_file_gives_its_binary_one_away(lake: Any, path: str) -> None:
    text = lake.client.open(path, "w")
    text.write("head ")
    binary = text.detach()
    del text
    gc.collect()
    binary.write(b"tail")
    binary.close()
    assert content_of(lake, path) == b"head tail"


def test_what_does_not_go_together_is_refused(lake: Any, path: str) -> None:
    for arguments in (
        {"mode": "q"},
        {"mode": "rw"},
        {"mode": "wbt"},
        {"mode": "aa"},
        {"mode": "+"},
        {"mode": "ab", "version": "v1"},
        {"mode": "r+b", "encoding": "utf-8"},
        {"mode": "wb", "version": "v1"},
        {"mode": "rb", "durability": "local"},
        {"mode": "wb", "encoding": "utf-8"},
        {"mode": "wb", "durability": "some"},
    ):
        with pytest.raises(ValueError):
            lake.client.open(path, **arguments)
    with pytest.raises(UnsupportedError, match="needs other nodes"):
        lake.client.open(path, "wb", durability="replicated")
    with pytest.raises(InvalidInputError):
        lake.client.open("relative", "wb")


@pytest.mark.parametrize("mode", ["wb", "xb", "w"])
@pytest.mark.parametrize(
    ("target", "error"),
    [("/fixed/a", ReadOnlyError), ("/runs", IsDirectoryError), ("/nowhere/a", NotFoundError)],
)
def test_what_may_not_be_written_says_so_when_it_is_opened(
    lake: Any, target: str, error: type[PenstockError], mode: str
) -> None:
    with pytest.raises(error, match=f"write {target}"):
        lake.client.open(target, mode)


@pytest.mark.parametrize("size", [10, MIB])
def test_what_only_the_source_can_tell_is_said_when_it_is_written(lake: Any, size: int) -> None:
    directory = f"/runs/directory-{size}"
    lake.client.mkdir(directory)
    with pytest.raises(IsDirectoryError, match=f"write {directory}"), lake.client.open(directory, "wb") as file:
        file.write(b"x" * size)


def test_a_file_that_could_not_take_a_write_is_never_committed(lake: Any) -> None:
    lake.client.mkdir("/runs/refused")
    file = lake.client.open("/runs/refused", "wb")
    with pytest.raises(IsDirectoryError):
        file.write(b"x" * MIB)
    for call in (lambda: file.write(b"y"), lambda: file.truncate(0), lambda: file.seek(0, 2)):
        with pytest.raises(IsDirectoryError):
            call()
    with pytest.raises(IsDirectoryError, match="close /runs/refused"):
        file.close()
    assert file.closed
    file.close()


def test_a_removed_file_is_gone_for_everybody_and_from_the_source(lake: Any, path: str) -> None:
    with lake.client.open(path, "wb") as file:
        file.write(b"short lived")
    reader = lake.client.open(path)
    lake.client.remove(path)
    assert not exists(lake, path)
    assert reader.read() == b"short lived"
    reader.close()
    with pytest.raises(NotFoundError, match=f"remove {path}"):
        lake.client.remove(path)
    lake.client.persist("/runs", timeout=60)
    assert not (lake.root / path.removeprefix("/runs/")).exists()


def test_persist_refuses_times_that_cannot_be_and_places_that_are_not(lake: Any) -> None:
    for timeout in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="timeout"):
            lake.client.persist("/runs", timeout=timeout)
    with pytest.raises(NotFoundError):
        lake.client.persist("/nowhere", timeout=1)


def test_a_file_that_is_written_cannot_be_pickled(lake: Any, path: str) -> None:
    with lake.client.open(path, "wb") as file, pytest.raises(TypeError, match="belongs to its process"):
        pickle.dumps(file)


def test_a_signal_handler_that_writes_to_the_file_it_interrupts_is_told_so(lake: Any, path: str) -> None:
    outcomes: list[str] = []

    def handler(*_: object) -> None:
        try:
            file.write(b"from the handler")
            outcomes.append("written")
        except RuntimeError as error:
            outcomes.append(str(error))

    before = signal.signal(signal.SIGALRM, handler)
    try:
        with lake.client.open(path, "wb") as file:
            signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
            lake.until(lambda: file.write(LARGE) and len(outcomes) > 20)
            signal.setitimer(signal.ITIMER_REAL, 0)
            file.truncate(0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert all(outcome == "written" or "reentrant call" in outcome for outcome in outcomes)


def test_the_async_client_writes_removes_and_persists(lake: Any, path: str) -> None:
    async def work() -> None:
        client = await penstock.connect_async(lake.home.name, start=False)
        async with await client.open(path, "wb", durability="local") as file:
            assert await file.write(LARGE[: 2 * MIB]) == 2 * MIB
        async with await client.open(path) as reader:
            assert await reader.read() == LARGE[: 2 * MIB]
        with suppress(ZeroDivisionError):
            async with await client.open(path, "wb") as file:
                await file.write(b"half")
                raise ZeroDivisionError
        with pytest.raises(AlreadyExistsError):
            await client.open(path, "xb")
        with pytest.raises(ValueError, match="none of rb, wb, xb"):
            await client.open(path, "w")  # type: ignore[call-overload]
        await client.persist(path, timeout=60)
        assert (await client.stat(path)).size == 2 * MIB
        await client.remove(path)
        with pytest.raises(NotFoundError):
            await client.stat(path)
        await client.close()

    asyncio.run(work())
