"""Two files of a mount that take each other's names: at once, for everybody, in the source and after a crash."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import penstock
from integration.test_writing import sea as sea
from mount.lake import mounted_sea

if TYPE_CHECKING:
    from integration.test_writing import Sea

MIB = 1 << 20
WAIT_S = 120.0
NO_REPLACE, EXCHANGE = 1, 2
LIBC = ctypes.CDLL(None, use_errno=True)
LARGE = random.Random(1).randbytes(MIB) * 80
SMALL = b"small " * 1000


def exchange(one: Path, other: Path, flags: int = EXCHANGE) -> None:
    if LIBC.renameat2(-100, os.fsencode(one), -100, os.fsencode(other), flags) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@pytest.fixture
def lake(machine: Any, sea: Sea, can_mount: None) -> Iterator[Any]:
    """A machine with objects at ``/runs``, mounted at ``lake.mount``."""
    with mounted_sea(machine, sea, {"large": LARGE, "small": SMALL}) as made:
        yield made


def fill(lake: Any, kind: str, sea: Sea) -> dict[str, bytes]:
    """Two files, as the source has them or not."""
    contents = {"a": LARGE, "b": SMALL}
    for name, content in contents.items():
        if kind == "stored" or (kind == "one stored" and name == "a"):
            sea.put(f"runs/{name}", content)
        else:
            (lake.mount / name).write_bytes(content)
    if kind == "renamed":
        # What waits for a copy that the source makes.
        for name, stored in (("a", "large"), ("b", "small")):
            (lake.mount / stored).rename(lake.mount / name)
    if kind == "patched":
        for name, content in contents.items():
            with (lake.mount / name).open("ab") as file:
                file.write(b"!")
            contents[name] = content + b"!"
    return contents


def check(lake: Any, wanted: dict[str, bytes]) -> None:
    for name, content in wanted.items():
        assert (lake.mount / name).read_bytes() == content, name
        with lake.client.open(f"/runs/{name}") as stream:
            assert stream.read() == content, name


@pytest.mark.parametrize("kind", ["stored", "one stored", "staged", "renamed", "patched"])
@pytest.mark.parametrize("crashes", [False, True])
def test_two_files_exchange_their_names_here_in_the_source_and_after_a_crash(
    lake: Any, sea: Sea, kind: str, crashes: bool
) -> None:
    contents = fill(lake, kind, sea)
    assert {(lake.mount / name).stat().st_size for name in contents} == {len(each) for each in contents.values()}
    exchanged = {"a": contents["b"], "b": contents["a"]}
    for wanted in (exchanged, contents):
        exchange(lake.mount / "a", lake.mount / "b")
        if crashes:
            lake.kill()
            lake.client = penstock.connect(lake.home.name)
            lake.until((lake.mount / "a").exists)
        check(lake, wanted)
        if wanted is exchanged:
            lake.client.persist("/runs", timeout=WAIT_S)
            assert {name: sea.get(f"runs/{name}") for name in wanted} == wanted
    lake.client.persist("/runs", timeout=WAIT_S)
    assert {name: sea.get(f"runs/{name}") for name in contents} == contents
    assert lake.client.conflicts("/runs") == []


def test_who_has_a_file_open_reads_on_what_it_opened(lake: Any) -> None:
    with (lake.mount / "large").open("rb") as large, (lake.mount / "small").open("rb") as small:
        assert (large.read(10), small.read(10)) == (LARGE[:10], SMALL[:10])
        exchange(lake.mount / "large", lake.mount / "small")
        lake.client.persist("/runs", timeout=WAIT_S)
        assert (large.read(), small.read()) == (LARGE[10:], SMALL[10:])
    check(lake, {"large": SMALL, "small": LARGE})


def test_nobody_sees_one_name_without_the_other(lake: Any) -> None:
    one, other = lake.mount / "one", lake.mount / "other"
    one.write_bytes(b"1")
    other.write_bytes(b"2")
    seen, stop = set(), threading.Event()

    def look() -> None:
        while not stop.is_set():
            seen.add(frozenset(bytes(view) for view in lake.client.read_many(["/runs/one", "/runs/other"])))

    watcher = threading.Thread(target=look)
    watcher.start()
    for _ in range(20):
        exchange(one, other)
    stop.set()
    watcher.join()
    check(lake, {"one": b"1", "other": b"2"})
    assert frozenset([b"1", b"2"]) in seen


def test_what_cannot_be_exchanged_says_so_and_stays(lake: Any, sea: Sea) -> None:
    mount = lake.mount
    (mount / "directory").mkdir()
    lake.client.attach(
        "s3://bucket/other", "/runs/other", writable=True, endpoint=sea.endpoint, credentials="anonymous"
    )
    (mount / "other" / "far").write_bytes(b"far")
    with (mount / "small").open("r+b") as file:
        file.write(b"S")
        refusals = [
            (mount / "large", mount / "directory", {errno.EOPNOTSUPP, errno.EISDIR}),
            (mount / "directory", mount / "large", {errno.EOPNOTSUPP}),
            (mount / "large", mount / "none", {errno.ENOENT}),
            (mount / "large", mount / "other" / "far", {errno.EXDEV}),
            (mount / "large", mount / "small", {errno.EBUSY}),
        ]
        for one, other, wanted in refusals:
            with pytest.raises(OSError) as refused:
                exchange(one, other)
            assert refused.value.errno in wanted, (one, other, refused.value)
    exchange(mount / "small", mount / "small")
    with pytest.raises(FileExistsError):
        exchange(mount / "large", mount / "small", NO_REPLACE)
    check(lake, {"large": LARGE, "small": b"S" + SMALL[1:]})
    assert (mount / "other" / "far").read_bytes() == b"far"
