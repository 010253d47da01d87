"""The sentences of the contract as programs see them that read through a mount."""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fault import answers, oracle
from fault.conftest import store
from fault.store import error
from mount.lake import MIB, WAYS, MountedLake

if TYPE_CHECKING:
    from fault.store import Store

__all__ = ["store"]

SMALL = 400_000
LARGE = 20 * MIB
FAR = 16 * MIB
FRESHNESS_S = 1.0
MARGIN_S = 10.0
DEADLINE_S = 1.0
TRIES = 3
"""How often a source is asked for the same within a deadline."""
NUMBERS = itertools.count()


class Tree:
    """One object of the store, as it is seen through a mount."""

    def __init__(self, lake: MountedLake, store: Store, name: str, freshness: str, way: str) -> None:
        self.lake = lake
        self.store = store
        self.name = name
        self.directory = lake.attach(name, f"/{name}", freshness, way)
        self.path = self.directory / "it"

    def put(self, version: int, size: int) -> Path:
        self.put_other("it", oracle.content(1, version, 0, size))
        return self.path

    def put_other(self, name: str, content: bytes) -> None:
        self.lake.put(f"{self.name}/{name}", content)

    def version(self) -> int:
        """The version that an open sees now; every byte of it was checked."""
        found = self.path.read_bytes()
        version = oracle.version_in(found, 0)
        oracle.check(1, version, 0, found)
        return version


@pytest.fixture(scope="module")
def shared(guard: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[MountedLake, Store]]:
    """One mount for all, and a store that does what it is told to."""
    from fault.store import Store
    from integration.conftest import Machine

    machine = Machine(tmp_path_factory.mktemp("contract"))
    try:
        with Store() as store, MountedLake(machine, f"deadlines.foreground={DEADLINE_S}s", store=store) as lake:
            yield lake, store
    finally:
        machine.close()


@pytest.fixture
def tree(shared: tuple[MountedLake, Store]) -> Iterator[Callable[..., Tree]]:
    """Shows the object, with a freshness and in a way."""
    lake, store = shared
    # Of its own for every test: what is known and cached of a source outlives its attachment.
    name = f"tree-{next(NUMBERS)}"

    def show(freshness: str = "1h", way: str = "open") -> Tree:
        return Tree(lake, store, name, freshness, way)

    yield show
    store.recover()
    store.objects.clear()
    lake.machine.control().detach(f"/{name}", lazy=True)


def stale() -> Any:
    return pytest.raises(OSError, match="Stale file handle")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_contract_1_a_handle_of_a_mount_has_one_version(tree: Any, way: str, size: int) -> None:
    it = tree("1h", way)
    with it.put(1, size).open("rb", buffering=0) as file:
        head = os.pread(file.fileno(), 100_000, 0)
        it.put(2, size + 5000)
        oracle.check(1, 1, 0, head)
        assert os.fstat(file.fileno()).st_size == size
        assert os.pread(file.fileno(), 100_000, 0) == head
        if size == SMALL:
            oracle.check(1, 1, 0, os.pread(file.fileno(), size, 0))
            return
        with stale():
            os.pread(file.fileno(), 100_000, FAR)
        buffer = bytearray(b"untouched")
        with stale():
            os.preadv(file.fileno(), [buffer], FAR)
        assert buffer == b"untouched"


def test_contract_1_a_mapping_keeps_its_version_though_it_is_overwritten_and_evicted(tree: Any) -> None:
    it = tree("0", "open")
    with it.put(1, SMALL).open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    with closing(mapping):
        it.put(2, SMALL + 1)
        assert it.version() == 2
        it.lake.machine("evict", f"/{it.name}")
        assert it.version() == 2
        oracle.check(1, 1, 0, mapping[:])


@pytest.mark.parametrize("way", WAYS)
def test_contract_1_a_page_of_a_mapping_whose_version_is_gone_is_an_error_and_never_zeros(tree: Any, way: str) -> None:
    it = tree("1h", way)
    path = it.put(1, LARGE)
    command = [sys.executable, str(Path(__file__).with_name("mapping.py")), str(path), str(FAR), "4096"]
    reader = it.lake.machine.spawn(*command, stdin=True)
    assert reader.stdout.readline() == f"mapped {oracle.content(1, 1, 0, 8).hex()}\n"
    it.put(2, LARGE)
    output, _ = reader.communicate("go on\n", timeout=60)
    assert (reader.returncode, output) == (-signal.SIGBUS, "")


def test_contract_1_reads_of_the_source_for_a_mount_are_conditional(tree: Any) -> None:
    it = tree()
    path = it.put(1, LARGE)
    conditions: list[str | None] = []
    it.store.watch = lambda kind, headers: conditions.append(headers.get("If-Match")) if kind == "read" else None
    with path.open("rb", buffering=0) as file:
        oracle.check(1, 1, FAR, os.pread(file.fileno(), 5000, FAR))
        version = os.getxattr(path, "user.penstock.version").decode()
    it.store.watch = lambda *_: None
    assert conditions
    assert set(conditions) == {f'"{version}"'}


def test_contract_1_a_small_file_that_changed_before_its_open_is_opened_as_the_new_one(tree: Any) -> None:
    it = tree()
    assert it.put(1, SMALL).stat().st_size == SMALL
    it.put(2, SMALL + 7)
    assert it.version() == 2
    assert it.path.stat().st_size == SMALL + 7


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_contract_1_a_file_that_changed_unseen_is_stale_for_a_moment_and_then_the_new_one(
    tree: Any, way: str, size: int
) -> None:
    it = tree("1h", way)
    assert it.put(1, size).stat().st_size == size
    it.put(2, size + 7)
    it.lake.machine.until(lambda: unless_stale(it.version) == 2)
    assert it.path.stat().st_size == size + 7


def unless_stale(look: Callable[[], object]) -> object:
    """What there is to see; nothing where a file was opened whose version is gone."""
    try:
        return look()
    except OSError as failure:
        assert failure.errno == errno.ESTALE  # noqa: PT017
        return None


SEEN: dict[str, Callable[[Tree], object]] = {
    "read": lambda it: it.version(),
    "stat": lambda it: it.path.stat().st_size,
    "listing": lambda it: {entry.name: entry.stat().st_size for entry in os.scandir(it.directory)},
}
"""Ways to see that the first version was replaced by a second, a byte longer."""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("look", SEEN)
def test_contract_3_changes_are_seen_through_a_mount_after_at_most_freshness(tree: Any, way: str, look: str) -> None:
    it = tree(f"{FRESHNESS_S}s", way)
    it.put(1, SMALL)
    before = SEEN[look](it)
    it.put(2, SMALL + 1)

    it.lake.machine.until(
        lambda: unless_stale(lambda: SEEN[look](it)) not in (None, before), limit_s=FRESHNESS_S + MARGIN_S
    )
    it.lake.machine.until(lambda: unless_stale(it.version) == 2)


@pytest.mark.parametrize("way", WAYS)
def test_contract_3_what_came_and_what_went_is_seen_through_a_mount(tree: Any, way: str) -> None:
    it = tree(f"{FRESHNESS_S}s", way)
    new = it.directory / "new"
    assert it.put(1, SMALL).exists()
    assert not new.exists()
    assert os.path.lexists(it.directory)
    it.put_other("new", b"new")
    it.store.delete(f"{it.name}/it")

    def is_seen() -> bool:
        names = {path.name for path in it.directory.iterdir()}
        return names == {"new"} and new.exists() and not it.path.exists()

    it.lake.machine.until(is_seen, limit_s=FRESHNESS_S + MARGIN_S)
    assert new.read_bytes() == b"new"
    with pytest.raises(FileNotFoundError):
        it.path.open("rb")


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_contract_3_freshness_zero_asks_at_every_open_of_a_mount(tree: Any, size: int) -> None:
    it = tree("0")
    for version in range(1, 5):
        it.put(version, size + version)
        assert it.path.stat().st_size == size + version
        assert it.version() == version
    asked, read = it.store.asked.total(), it.store.asked["read"]
    assert it.version() == 4
    assert it.store.asked.total() > asked, "the source was asked whether it changed"
    assert it.store.asked["read"] == read, "and nothing was fetched again, for it had not"


@pytest.mark.parametrize("way", WAYS)
def test_contract_3_immutable_never_asks_again_through_a_mount(tree: Any, way: str) -> None:
    it = tree("immutable", way)
    it.put(1, SMALL)
    assert it.version() == 1
    it.put(2, SMALL)
    asked = it.store.asked.total()
    for _ in range(20):
        assert it.version() == 1
        assert it.path.stat().st_size == SMALL
    assert it.store.asked.total() == asked


TROUBLES: dict[str, tuple[str, Any, set[int]]] = {
    "silence": ("open", answers.silent, {errno.ETIMEDOUT}),
    "silence, no-open": ("no-open", answers.silent, {errno.ETIMEDOUT}),
    "refusal": ("open", answers.always(error(403, "AccessDenied")), {errno.EACCES}),
    "overload": ("no-open", answers.always(error(503, "SlowDown")), {errno.EIO, errno.ETIMEDOUT}),
    "cut": ("open", answers.cut, {errno.EIO, errno.ETIMEDOUT}),
    "pages": ("no-open", answers.html_page, {errno.EIO, errno.ETIMEDOUT}),
}
CALLS: dict[str, Callable[[Tree], object]] = {
    "read": lambda it: it.path.read_bytes(),
    "stat": lambda it: (it.directory / "unknown/it").stat(),
    "list": lambda it: list((it.directory / "unlisted").iterdir()),
}


def outcome(it: Tree, name: str) -> tuple[str, object]:
    """What a call ends with."""
    try:
        return name, CALLS[name](it)
    except OSError as failure:
        return name, failure


@pytest.mark.parametrize("trouble", TROUBLES)
def test_contract_6_what_a_mount_cannot_give_is_an_error_in_time(tree: Any, trouble: str) -> None:
    way, fault, expected = TROUBLES[trouble]
    it = tree("1h", way)
    path = it.put(1, 3 * MIB)
    for name in ("cached/it", "unknown/it", "unlisted/it"):
        it.put_other(name, b"content")
    assert (it.directory / "cached/it").read_bytes() == b"content"
    assert path.stat().st_size == 3 * MIB
    it.store.answer_all(fault)
    begun = time.monotonic()
    with ThreadPoolExecutor(len(CALLS)) as pool:
        outcomes = dict(pool.map(lambda name: outcome(it, name), CALLS))
    # Some deadlines long on a machine that is busy, but never for ever.
    assert time.monotonic() - begun < 60
    for name, told in outcomes.items():
        assert isinstance(told, OSError), f"{name}: {told!r}"
        assert told.errno in expected, f"{name}: {told}"
    assert (it.directory / "cached/it").read_bytes() == b"content", "what is cached needs no source"
    it.store.recover()

    def works_again() -> bool:
        try:
            return it.version() == 1
        except OSError as failure:
            # A source that was overloaded is asked little for a while.
            assert failure.errno in {errno.ETIMEDOUT, *expected}  # noqa: PT017
            return False

    it.lake.machine.until(works_again)
    assert [path.name for path in (it.directory / "unlisted").iterdir()] == ["it"]


def test_contract_6_a_read_that_was_late_is_not_waited_for_twice(tree: Any) -> None:
    it = tree("1h", "no-open")
    path = it.put(1, SMALL)
    assert path.stat().st_size == SMALL

    def is_quiet() -> bool:
        return int(it.lake.metrics()["source_in_flight"]) == 0

    it.lake.machine.until(is_quiet)
    it.store.answer_all(answers.silent)
    asked = it.store.asked["read"]
    # Where reading ahead failed the kernel asks for its first page once more.
    with pytest.raises(OSError, match="timed out"):
        path.read_bytes()
    it.lake.machine.until(is_quiet)
    assert it.store.asked["read"] - asked < 2 * TRIES, "what one read asks for within its deadline"


def test_contract_6_a_listing_through_a_mount_that_breaks_off_is_an_error_and_never_a_shorter_one(tree: Any) -> None:
    it = tree("1h")
    names = {f"{number:05}" for number in range(2500)}
    for name in names:
        it.put_other(f"many/{name}", b"x")
    known = it.store.asked["list"]
    it.store.judge = lambda question: answers.server_error if it.store.asked["list"] > known + 1 else None
    with pytest.raises(OSError, match=r"Input/output error|timed out"):
        list((it.directory / "many").iterdir())
    assert it.store.asked["list"] > known + 2
    it.store.recover()
    assert {path.name for path in (it.directory / "many").iterdir()} == names
