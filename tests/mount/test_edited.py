"""Large files that are changed in part: only what is written comes here, and the source copies the rest itself."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

import penstock
from integration.test_writing import sea as sea
from mount.lake import mounted_sea

if TYPE_CHECKING:
    from integration.test_writing import Sea

MIB = 1 << 20
SIZE = 200 * MIB + 12_345
PART = 8 * MIB
WAIT_S = 120.0


def content_of(size: int, seed: int) -> bytearray:
    piece = random.Random(seed).randbytes(MIB)
    return bytearray(b"".join(number.to_bytes(4, "big") + piece[4:] for number in range(size // MIB + 1))[:size])


ORIGINAL = bytes(content_of(SIZE, 1))


@pytest.fixture
def lake(machine: Any, sea: Sea) -> Iterator[Any]:
    """A machine with a large object at ``/runs/a``, mounted at ``lake.mount``."""
    with mounted_sea(machine, sea, {"a": ORIGINAL}) as made:
        yield made


def metrics(lake: Any) -> dict[str, int]:
    found: dict[str, int] = lake.client.status()["metrics"]
    return found


def moved(lake: Any, since: dict[str, int]) -> tuple[int, int]:
    """Bytes that were fetched from the source, and sent to it."""
    now = metrics(lake)
    return now["source_bytes"] - since["source_bytes"], now["upload_bytes"] - since["upload_bytes"]


def names(lake: Any) -> list[str]:
    return sorted(path.name for path in lake.mount.iterdir())


def persist(lake: Any, path: str = "/runs") -> None:
    lake.client.persist(path, timeout=WAIT_S)


def read(lake: Any, name: str) -> bytes:
    with lake.client.open(f"/runs/{name}") as stream:
        content: bytes = stream.read()
        return content


def reconnect(lake: Any, name: str = "a") -> None:
    lake.kill()
    lake.client = penstock.connect(lake.home.name)
    lake.until((lake.mount / name).exists)


def test_a_byte_that_is_appended_moves_a_part_and_not_the_file(lake: Any, sea: Sea) -> None:
    before = metrics(lake)
    with (lake.mount / "a").open("ab") as file:
        file.write(b"!")
    persist(lake)
    fetched, sent = moved(lake, before)
    assert fetched <= PART
    assert 0 < sent <= PART
    assert sea.get("runs/a") == ORIGINAL + b"!"
    assert read(lake, "a") == ORIGINAL + b"!"


def test_what_is_written_cut_and_grown_anywhere_is_read_by_everybody_and_reaches_the_source(
    lake: Any, sea: Sea
) -> None:
    chance, model = random.Random(7), bytearray(ORIGINAL)
    path = lake.mount / "a"
    for _ in range(4):
        descriptor = os.open(path, os.O_RDWR)
        for _ in range(25):
            at, length = chance.randrange(len(model) + MIB), chance.choice([1, 100, 5000, 300_000, 3 * MIB])
            kind = chance.choice(["write", "write", "write", "read", "cut", "sync", "punch"])
            if kind == "write":
                piece = chance.randbytes(length)
                os.pwrite(descriptor, piece, at)
                model.extend(bytes(max(0, at + length - len(model))))
                model[at : at + length] = piece
            elif kind == "cut":
                size = max(100 * MIB, len(model) + chance.randrange(-20 * MIB, 5 * MIB))
                os.ftruncate(descriptor, size)
                del model[size:]
                model.extend(bytes(size - len(model)))
            elif kind == "sync":
                os.fsync(descriptor)
            elif kind == "punch":
                os.posix_fallocate(descriptor, at, length)
                model.extend(bytes(max(0, at + length - len(model))))
            assert os.pread(descriptor, length, at) == model[at : at + length]
            assert os.fstat(descriptor).st_size == len(model)
        os.close(descriptor)
        assert path.read_bytes() == model
        assert read(lake, "a") == model
    reconnect(lake)
    assert read(lake, "a") == model
    persist(lake)
    assert sea.get("runs/a") == model
    assert path.read_bytes() == model


def test_what_was_closed_survives_a_crash_while_the_source_is_away_and_again_while_it_is_uploaded(
    lake: Any, sea: Sea
) -> None:
    model = bytearray(ORIGINAL)
    descriptor = os.open(lake.mount / "a", os.O_RDWR)
    assert os.pread(descriptor, 10, 50 * MIB) == ORIGINAL[50 * MIB : 50 * MIB + 10]
    sea.fall()
    for at in (0, 30 * MIB + 7, SIZE - 3):
        os.pwrite(descriptor, b"first", at)
        model[at : at + 5] = b"first"
    os.close(descriptor)
    reconnect(lake)
    with (lake.mount / "a").open("r+b") as file:
        file.seek(90 * MIB)
        file.write(b"second")
        model[90 * MIB : 90 * MIB + 6] = b"second"
    assert lake.client.status()["stage"]["bytes"] < MIB
    reconnect(lake)
    sea.rise()
    persist(lake)
    assert sea.get("runs/a") == model
    assert read(lake, "a") == model


def test_a_file_that_is_open_goes_on_over_what_its_own_uploads_made(lake: Any, sea: Sea) -> None:
    model = bytearray(ORIGINAL)
    descriptor = os.open(lake.mount / "a", os.O_RDWR)
    for turn in range(3):
        at = turn * 60 * MIB + 11
        os.pwrite(descriptor, b"turn %d" % turn, at)
        model[at : at + 6] = b"turn %d" % turn
        os.fsync(descriptor)
        persist(lake)
        assert sea.get("runs/a") == model
        # None of it was read before: what it lay over at first is gone from the source.
        assert os.pread(descriptor, 2 * MIB, at + 20 * MIB) == model[at + 20 * MIB : at + 22 * MIB]
    os.close(descriptor)
    assert (lake.mount / "a").read_bytes() == model


def test_it_is_renamed_before_the_source_has_it_open_and_closed(lake: Any, sea: Sea) -> None:
    model = bytearray(ORIGINAL)
    assert (read(lake, "a"), names(lake)) == (ORIGINAL, ["a"])
    sea.fall()
    with (lake.mount / "a").open("r+b", buffering=0) as file:
        file.write(b"open")
        (lake.mount / "a").rename(lake.mount / "b")
        file.seek(100 * MIB)
        file.write(b"renamed")
    model[:4], model[100 * MIB : 100 * MIB + 7] = b"open", b"renamed"
    assert read(lake, "b") == model
    (lake.mount / "b").rename(lake.mount / "c")
    assert read(lake, "c") == model
    assert names(lake) == ["c"]
    reconnect(lake, "c")
    assert read(lake, "c") == model
    sea.rise()
    persist(lake)
    assert (sea.get("runs/a"), sea.get("runs/b")) == (None, None)
    assert sea.get("runs/c") == model
    before = metrics(lake)
    (lake.mount / "c").rename(lake.mount / "a")
    with (lake.mount / "a").open("ab") as file:
        file.write(b"end")
    persist(lake)
    assert sea.get("runs/a") == model + b"end"
    assert sea.get("runs/c") is None
    assert moved(lake, before)[1] <= PART


@pytest.mark.parametrize("is_cached", [True, False])
def test_what_somebody_else_replaced_meanwhile_is_a_conflict_and_not_mixed_with_it(
    lake: Any, sea: Sea, is_cached: bool
) -> None:
    assert (lake.mount / "a").stat().st_size == SIZE
    if is_cached:
        assert read(lake, "a") == ORIGINAL
    sea.fall()
    with (lake.mount / "a").open("r+b") as file:
        file.write(b"mine")
    sea.put_while_away({"runs/a": b"theirs"})
    sea.rise()
    with pytest.raises(penstock.errors.ConflictError):
        persist(lake)
    assert sea.get("runs/a") == b"theirs"
    kept = lake.directory / "kept"
    if is_cached:
        lake("conflicts", "show", "/runs/a", "--output", str(kept))
        assert kept.read_bytes() == b"mine" + ORIGINAL[4:]
        lake("conflicts", "keep-mine", "/runs/a")
        persist(lake)
        assert sea.get("runs/a") == b"mine" + ORIGINAL[4:]
    else:
        refused = lake("conflicts", "show", "/runs/a", "--output", str(kept), check=1).stderr
        assert "neither here nor there" in refused
        lake("conflicts", "keep-theirs", "/runs/a")
        assert read(lake, "a") == b"theirs"


def test_who_only_reads_or_sets_a_time_brings_nothing(lake: Any) -> None:
    before = metrics(lake)
    descriptor = os.open(lake.mount / "a", os.O_RDWR)
    os.utime(lake.mount / "a", (1_000_000_000, 1_000_000_000))
    assert os.fstat(descriptor).st_size == SIZE
    os.close(descriptor)
    persist(lake)
    assert moved(lake, before)[0] <= PART
    assert read(lake, "a") == ORIGINAL
