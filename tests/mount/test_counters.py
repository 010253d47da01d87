"""What the kernel asks the node and the node asks the source, by counters: the way that a read takes is proven."""

from __future__ import annotations

import mmap
import os
import random
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from io import BytesIO
from pathlib import Path

import pytest

from integration.conftest import Machine
from mount.lake import KIB, MIB, WAYS, MountedLake, run

SMALL = {f"small/{number % 7}/{number}": random.Random(number).randbytes(1000 + 977 * number) for number in range(120)}
LARGE = {f"large/{number}": random.Random(number).randbytes(2 * MIB + 100_003 * number) for number in range(4)}
FILES = SMALL | LARGE
HUGE_BYTES = 256 * MIB
UNIT = 128 * KIB
DIRECTORIES = 200


@pytest.fixture(scope="module")
def quiet(guard: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLake]:
    """A mounted tree that nobody else uses."""
    machine = Machine(tmp_path_factory.mktemp("quiet"))
    try:
        with MountedLake(machine) as made:
            yield made
    finally:
        machine.close()


@pytest.fixture(params=WAYS)
def tree(quiet: MountedLake, request: pytest.FixtureRequest) -> Path:
    """All files, none of them looked at."""
    return quiet.show(FILES, request.param)


@pytest.fixture
def lent(quiet: MountedLake) -> Path:
    """All files, none of them looked at, where the kernel reads what is cached by itself."""
    shown = quiet.show(FILES)
    if quiet.way("/shown-open") != "passthrough":
        pytest.skip("needs the right to let the kernel read files of the cache")
    return shown


@pytest.fixture
def unopened(quiet: MountedLake) -> Path:
    """All files, none of them looked at, where the kernel opens nothing."""
    shown = quiet.show(FILES, "no-open")
    assert quiet.way("/shown-no-open") == "no-open"
    return shown


def settled(lake: MountedLake) -> dict[str, int]:
    """The counters once nothing is under way any more that nobody waits for."""
    seen: list[dict[str, int]] = [{}, lake.metrics()]

    def unchanged() -> bool:
        seen[:] = [seen[1], lake.metrics()]
        return seen[1]["source_in_flight"] == 0 and all(
            seen[0][name] == seen[1][name] for name in ("source_requests", "source_bytes", "kernel_reads")
        )

    lake.machine.until(unchanged)
    return seen[1]


def asked(lake: MountedLake, work: Callable[[], object]) -> dict[str, int]:
    """By how much the counters grew while something was done."""
    before = settled(lake)
    work()
    after = settled(lake)
    return {name: after[name] - before[name] for name in after}


def read_all(root: Path, files: dict[str, bytes]) -> None:
    for path, content in files.items():
        assert (root / path).read_bytes() == content


def map_all(root: Path, files: dict[str, bytes]) -> None:
    for path, content in files.items():
        with (root / path).open("rb") as stream, closing(mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ)) as mapping:
            assert mapping[:] == content


def test_small_files_are_read_by_the_kernel_alone_from_the_first_time_on(quiet: MountedLake, lent: Path) -> None:
    cold = asked(quiet, lambda: read_all(lent, SMALL))
    assert cold["kernel_reads"] == 0
    assert cold["kernel_lent_opens"] == cold["kernel_lent_files"] == cold["kernel_opens"] == len(SMALL)
    assert cold["source_bytes"] == sum(map(len, SMALL.values()))
    warm = asked(quiet, lambda: [read_all(lent, SMALL), map_all(lent, SMALL), read_all(lent, SMALL)])
    assert warm["kernel_reads"] == warm["kernel_lookups"] == warm["source_requests"] == 0
    assert warm["kernel_lent_opens"] == warm["kernel_opens"] == 3 * len(SMALL)
    assert warm["kernel_lent_files"] == 0, "they are kept ready"
    assert warm["open_hits"] == warm["opens"] == 3 * len(SMALL), "each counts as a use"


def test_large_files_are_read_by_the_kernel_alone_once_they_are_whole(quiet: MountedLake, lent: Path) -> None:
    cold = asked(quiet, lambda: read_all(lent, LARGE))
    assert cold["kernel_lent_opens"] == 0
    assert cold["kernel_reads"] > 0
    assert cold["source_bytes"] == sum(map(len, LARGE.values())), "every byte is fetched once"
    warm = asked(quiet, lambda: [read_all(lent, LARGE), map_all(lent, LARGE)])
    assert warm["kernel_reads"] == warm["source_requests"] == 0
    assert warm["kernel_lent_opens"] == 2 * len(LARGE)


def test_files_that_are_not_opened_are_asked_for_once(quiet: MountedLake, unopened: Path) -> None:
    # The first open of a mount is refused, after which the kernel opens nothing any more.
    read_all(unopened, dict(list(FILES.items())[:1]))
    cold = asked(quiet, lambda: read_all(unopened, FILES))
    assert cold["kernel_opens"] == 0
    assert cold["kernel_reads"] > 0
    warm = asked(quiet, lambda: [read_all(unopened, FILES), map_all(unopened, FILES)])
    assert warm["kernel_opens"] == warm["kernel_reads"] == warm["kernel_lookups"] == warm["source_requests"] == 0


def test_a_second_read_of_everything_asks_the_source_nothing(quiet: MountedLake, tree: Path) -> None:
    def read() -> None:
        read_all(tree, FILES)
        run("grep", "-rc", "x", tree)

    assert asked(quiet, read)["source_bytes"] == sum(map(len, FILES.values()))
    again = asked(quiet, read)
    assert again["source_requests"] == again["source_bytes"] == 0


def test_after_a_listing_every_stat_is_free(quiet: MountedLake, tree: Path) -> None:
    run("ls", "-lR", tree)

    def stat_all() -> None:
        for path, content in FILES.items():
            assert (tree / path).stat().st_size == len(content)

    statted = asked(quiet, stat_all)
    assert statted["source_requests"] == 0
    assert statted["kernel_lookups"] == 0, "the names came with their attributes"
    listed = asked(quiet, lambda: [run("ls", "-lR", tree), run("find", tree, "-size", "+1k"), run("du", "-s", tree)])
    assert listed["source_requests"] == 0


@pytest.mark.parametrize("way", WAYS)
def test_a_walk_takes_fewer_listings_than_directories_and_asks_for_no_file(quiet: MountedLake, way: str) -> None:
    deep = quiet.show({}, way) / "deep"
    prefix = deep.relative_to(quiet.root)
    names = [f"{prefix}/{number % DIRECTORIES}/{number}" for number in range(3000)]
    quiet.remote.put_synthetic("bucket", names, b"content of each")
    walked = asked(quiet, lambda: run("find", deep, "-type", "f", "-size", "+0"))
    assert walked["source_requests"] == walked["source_list_requests"] + walked["source_stat_requests"]
    assert walked["source_list_requests"] <= DIRECTORIES // 2
    assert walked["source_stat_requests"] <= 5


def test_what_is_not_there_is_asked_for_once(quiet: MountedLake, tree: Path) -> None:
    missing = [tree / "small" / f"missing-{number}" for number in range(5)]
    assert not any(path.exists() for path in missing)
    again = asked(quiet, lambda: [path.exists() for path in missing * 10])
    assert again["source_requests"] == again["kernel_lookups"] == 0


@pytest.fixture(scope="module")
def huge(quiet: MountedLake) -> tuple[list[Path], bytes]:
    """Large objects of the same content that nobody has read; its period fits no unit."""
    period = random.Random(8).randbytes(MIB + 4093)
    content = (period * (HUGE_BYTES // len(period) + 1))[:HUGE_BYTES]
    shown = quiet.show({})
    names = ["pread", "mapped"]
    quiet.remote.put_synthetic("bucket", [f"{shown.relative_to(quiet.root)}/{name}" for name in names], content)
    return [shown / name for name in names], content


def by_pread(path: Path, starts: list[int], content: bytes) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        for start in starts:
            assert os.pread(fd, 4096, start) == content[start : start + 4096]
    finally:
        os.close(fd)


def by_mapping(path: Path, starts: list[int], content: bytes) -> None:
    with path.open("rb") as stream, closing(mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ)) as mapping:
        mapping.madvise(mmap.MADV_RANDOM)
        for start in starts:
            assert mapping[start : start + 4096] == content[start : start + 4096]


@pytest.mark.parametrize(("index", "read"), [(0, by_pread), (1, by_mapping)], ids=["pread", "mapped"])
def test_random_reads_fetch_the_pages_that_they_touch(
    quiet: MountedLake,
    huge: tuple[list[Path], bytes],
    index: int,
    read: Callable[[Path, list[int], bytes], None],
) -> None:
    paths, content = huge
    chance = random.Random(index)
    # Further apart than what counts as going on, and in no order; a mapping asks for one page after the other, and who
    # asks for two units in turn reads in order.
    inside = UNIT - 4096 if read is by_mapping else UNIT
    starts = [unit * UNIT + chance.randrange(inside) for unit in range(1, HUGE_BYTES // UNIT - 1, MIB // UNIT + 3)]
    chance.shuffle(starts)
    touched = {unit for start in starts for unit in (start // UNIT, (start + 4095) // UNIT)}
    assert len(starts) > 150
    fetched = asked(quiet, lambda: read(paths[index], starts, content))
    assert 0 < fetched["source_bytes"] <= len(touched) * UNIT
    assert fetched["source_read_requests"] <= len(touched)
    cached = int(os.getxattr(paths[index], "user.penstock.cached"))
    assert cached <= len(touched) * UNIT
    again = asked(quiet, lambda: read(paths[index], starts, content))
    assert again["source_requests"] == 0


@pytest.mark.parametrize("way", WAYS)
def test_a_member_of_an_archive_brings_little_besides(quiet: MountedLake, way: str) -> None:
    chance, packed = random.Random(9), BytesIO()
    members = {f"it/{number}": chance.randbytes(chance.randrange(120_000)) for number in range(300)}
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    shown = quiet.show({"it.zip": packed.getvalue()}, way)

    def read(name: str) -> Callable[[], object]:
        def read_member() -> None:
            with zipfile.ZipFile(shown / "it.zip") as archive:
                assert archive.read(name) == members[name]

        return read_member

    assert len(packed.getvalue()) > 16 * MIB
    assert asked(quiet, read("it/7"))["source_bytes"] < 2 * MIB
    assert asked(quiet, read("it/290"))["source_bytes"] < 2 * MIB
