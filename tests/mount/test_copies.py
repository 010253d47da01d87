"""Copies between files of a mount: made by the node, of any part, whatever the files lie in."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from integration.test_writing import sea as sea
from mount.lake import mounted_sea

if TYPE_CHECKING:
    from integration.test_writing import Sea

MIB = 1 << 20
WAIT_S = 120.0
ORIGINAL = b"".join(number.to_bytes(4, "big") + random.Random(1).randbytes(MIB)[4:] for number in range(70))[:-77]


@pytest.fixture
def lake(machine: Any, sea: Sea, can_mount: None) -> Iterator[Any]:
    """A machine with a large object at ``/runs/stored``, mounted at ``lake.mount``."""
    with mounted_sea(machine, sea, {"stored": ORIGINAL, "other": ORIGINAL}) as made:
        yield made


def counted(lake: Any, *names: str) -> list[int]:
    metrics = lake.client.status()["metrics"]
    return [metrics[name] for name in names]


def copy_range(source: int, target: int, length: int, at: int, to: int) -> int:
    done = 0
    while done < length and (step := os.copy_file_range(source, target, length - done, at + done, to + done)):
        done += step
    return done


def check(lake: Any, sea: Sea, name: str, content: bytes) -> None:
    assert (lake.mount / name).read_bytes() == content
    lake.client.persist("/runs", timeout=WAIT_S)
    assert sea.get(f"runs/{name}") == content


def test_the_bytes_do_not_pass_through_the_program(lake: Any, sea: Sea) -> None:
    with (lake.mount / "stored").open("rb") as source, (lake.mount / "copy").open("xb") as target:
        before = counted(lake, "kernel_reads", "kernel_writes", "kernel_copied_bytes")
        assert copy_range(source.fileno(), target.fileno(), len(ORIGINAL) + MIB, 0, 0) == len(ORIGINAL)
        after = counted(lake, "kernel_reads", "kernel_writes", "kernel_copied_bytes")
    assert [now - then for now, then in zip(after, before, strict=True)] == [0, 0, len(ORIGINAL)]
    check(lake, sea, "copy", ORIGINAL)


def copied_by_cp(source: Path, target: Path) -> None:
    subprocess.run(["cp", "--reflink=auto", source, target], check=True)


def copied_by_sendfile(source: Path, target: Path) -> None:
    with source.open("rb") as one, target.open("wb") as other:
        while os.sendfile(other.fileno(), one.fileno(), None, 8 * MIB):
            pass


@pytest.mark.parametrize("copy", [copied_by_cp, shutil.copyfile, shutil.copy2, copied_by_sendfile])
@pytest.mark.parametrize("kind", ["stored", "cached", "staged", "changed"])
def test_whoever_copies_gets_the_right_bytes(lake: Any, sea: Sea, copy: Any, kind: str) -> None:
    source, content = lake.mount / "stored", ORIGINAL
    if kind == "cached":
        # The second reader finds all of it here, and the kernel reads it by itself from then on.
        assert source.read_bytes() == source.read_bytes() == content
    elif kind == "staged":
        source = lake.mount / "staged"
        source.write_bytes(content)
    elif kind == "changed":
        with source.open("r+b") as file:
            file.seek(5 * MIB)
            file.write(b"changed")
        content = content[: 5 * MIB] + b"changed" + content[5 * MIB + 7 :]
    copy(source, lake.mount / "copy")
    check(lake, sea, "copy", content)


def test_parts_go_anywhere_in_new_old_and_open_files(lake: Any, sea: Sea) -> None:
    chance = random.Random(3)
    (lake.mount / "staged").write_bytes(ORIGINAL[: 3 * MIB])
    models = {name: bytearray(ORIGINAL) for name in ("stored", "other")}
    models["staged"], models["new"] = bytearray(ORIGINAL[: 3 * MIB]), bytearray()
    (lake.mount / "new").touch()
    handles = {name: os.open(lake.mount / name, os.O_RDWR) for name in models}
    for turn in range(60):
        source, target = chance.choice(sorted(models)), chance.choice(sorted(models))
        at = chance.randrange(max(1, len(models[source])))
        to, length = chance.randrange(len(models[target]) + MIB), chance.choice([1, 4096, 100_000, 3 * MIB])
        if source == target and abs(at - to) < min(length, len(models[source]) - at):
            with pytest.raises(OSError) as refused:
                os.copy_file_range(handles[source], handles[target], length, at, to)
            assert refused.value.errno == errno.EINVAL
            continue
        piece = bytes(models[source][at : at + length])
        assert copy_range(handles[source], handles[target], length, at, to) == len(piece), turn
        if piece:
            models[target].extend(bytes(max(0, to + len(piece) - len(models[target]))))
            models[target][to : to + len(piece)] = piece
        if turn % 10 == 0:
            os.fsync(handles[target])
    for name, handle in handles.items():
        assert os.fstat(handle).st_size == len(models[name])
        os.close(handle)
    for name, model in models.items():
        check(lake, sea, name, bytes(model))


def test_what_may_not_be_copied_says_so(lake: Any) -> None:
    with (lake.mount / "stored").open("rb") as source, (lake.mount / "other").open("rb") as target:
        with pytest.raises(OSError) as refused:
            os.copy_file_range(source.fileno(), target.fileno(), 10)
        assert refused.value.errno == errno.EBADF
        assert os.copy_file_range(source.fileno(), os.open(lake.mount / "new", os.O_CREAT | os.O_WRONLY), 0) == 0
