"""The fsspec file system over a client that is not real: paths, listings, ranges, and what is refused."""

import pickle
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import numpy
import pytest

from penstock.errors import (
    AlreadyExistsError,
    InvalidInputError,
    IsDirectoryError,
    NotEmptyError,
    NotFoundError,
    ReadOnlyError,
    UnsupportedError,
)
from penstock.integrations.fsspec import PenstockFileSystem
from unit.fake_tree import FakeTree


@pytest.fixture
def fs() -> Any:
    made = PenstockFileSystem(skip_instance_cache=True)
    made._connected = FakeTree({"/data/a": b"0123456789", "/data/d/b": b"bb", "/data/d/e/c": b"ccc"})
    return made


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("penstock:///data/a", "/data/a"),
        ("penstock://data/a/", "/data/a"),
        ("/data/a", "/data/a"),
        ("data/a", "/data/a"),
        ("penstock://", "/"),
        ("", "/"),
    ],
)
def test_a_url_is_an_absolute_path(url: str, path: str) -> None:
    assert PenstockFileSystem._strip_protocol(url) == path


def test_the_url_of_a_path_leads_back_to_it(fs: Any) -> None:
    assert fs.unstrip_protocol("/data/a") == "penstock:///data/a"
    assert fs._parent("penstock:///data/a") == "/data"
    assert fs._parent("/data") == "/"


def test_the_entry_point_names_the_class() -> None:
    assert PenstockFileSystem.protocol == "penstock"


def test_info_tells_size_time_and_version(fs: Any) -> None:
    assert fs.info("penstock:///data/a") == {
        "name": "/data/a",
        "type": "file",
        "size": 10,
        "mtime": 1e9,
        "version": "v1",
    }
    assert fs.info("/data")["type"] == "directory"
    assert fs.modified("/data/a") == datetime.fromtimestamp(10**9, UTC)
    with pytest.raises(FileNotFoundError):
        fs.info("/data/none")


def test_ls_lists_a_directory_and_a_file_itself(fs: Any) -> None:
    assert fs.ls("/data", detail=False) == ["/data/a", "/data/d"]
    assert [each["type"] for each in fs.ls("/data")] == ["file", "directory"]
    assert fs.ls("/data/a", detail=False) == ["/data/a"]
    assert fs.ls("/", detail=False) == ["/data"]


def test_find_is_one_flat_walk(fs: Any) -> None:
    assert fs.find("/data") == ["/data/a", "/data/d/b", "/data/d/e/c"]
    assert fs.client.calls == ["walk /data"]
    assert fs.find("/data", maxdepth=1) == ["/data/a"]
    assert fs.find("/data", maxdepth=2, withdirs=True) == ["/data", "/data/a", "/data/d", "/data/d/b", "/data/d/e"]
    assert fs.find("/data/a") == ["/data/a"]
    assert fs.find("/none") == []
    assert fs.find("/data/d", detail=True)["/data/d/b"]["size"] == 2
    with pytest.raises(ValueError, match="maxdepth"):
        fs.find("/data", maxdepth=0)


def test_what_fsspec_builds_on_these_works(fs: Any) -> None:
    assert fs.glob("/data/**/c") == ["/data/d/e/c"]
    assert fs.glob("/data/*") == ["/data/a", "/data/d"]
    assert fs.du("/data") == 15
    assert list(fs.walk("/data")) == [
        ("/data", ["d"], ["a"]),
        ("/data/d", ["e"], ["b"]),
        ("/data/d/e", [], ["c"]),
    ]
    assert fs.exists("/data/a")
    assert not fs.exists("/none")
    assert fs.isfile("/data/a")
    assert fs.isdir("/data")


@pytest.mark.parametrize(
    ("start", "end", "content"),
    [(None, None, b"0123456789"), (2, 4, b"23"), (None, 3, b"012"), (-3, None, b"789"), (4, 2, b""), (-4, -2, b"67")],
)
def test_a_range_is_read_as_a_slice_would_be(fs: Any, start: int | None, end: int | None, content: bytes) -> None:
    assert fs.cat_file("/data/a", start, end) == content


def test_many_ranges_of_a_file_are_one_call(fs: Any) -> None:
    paths = ["/data/a", "/data/d/b", "/data/a"]
    assert fs.cat_ranges(paths, [0, 0, 5], [2, 1, 7]) == [b"01", b"b", b"56"]
    assert fs.client.calls == ["read_ranges /data/a 2", "read_ranges /data/d/b 1"]
    assert fs.cat_ranges(["/data/a", "/data/a"], [-2, None], [None, 1]) == [b"89", b"0"]
    assert fs.cat_ranges(["/data/a", "/data/a"], numpy.array([0, 3]), numpy.array([2, 5])) == [b"01", b"34"]


def test_a_failed_file_among_many_ranges_is_returned_or_raised(fs: Any) -> None:
    good, bad = fs.cat_ranges(["/data/a", "/none"], 0, 1)
    assert good == b"0"
    assert isinstance(bad, FileNotFoundError)
    with pytest.raises(FileNotFoundError):
        fs.cat_ranges(["/data/a", "/none"], 0, 1, on_error="raise")


def test_many_files_are_one_batch(fs: Any) -> None:
    assert fs.cat(["/data/a", "/data/d/b"]) == {"/data/a": b"0123456789", "/data/d/b": b"bb"}
    assert fs.client.calls[-1] == "read_many 2"
    assert fs.cat("/data/d/b") == b"bb"
    assert fs.cat("/data/d", recursive=True) == {"/data/d/b": b"bb", "/data/d/e/c": b"ccc"}


def test_open_reads_bytes_and_text(fs: Any) -> None:
    with fs.open("/data/a") as stream:
        assert stream.read(3) == b"012"
    with fs.open("/data/a", "r") as text:
        assert text.read() == "0123456789"


def test_files_come_out_to_a_local_disk(fs: Any, tmp_path: Any) -> None:
    fs.get("/data", str(tmp_path / "out"), recursive=True)
    assert (tmp_path / "out/d/e/c").read_bytes() == b"ccc"


def test_the_version_is_the_key_of_caches(fs: Any) -> None:
    assert fs.ukey("/data/a") == "v1"
    assert fs.checksum("/data/a") == fs.checksum("/data/a")


def test_a_file_is_written_as_bytes_and_as_text(fs: Any) -> None:
    with fs.open("/data/x", "wb") as stream:
        stream.write(b"one")
        assert not fs.exists("/data/x")
    with fs.open("penstock:///data/y", "w", encoding="utf-16") as text:
        text.write("two")
    fs.pipe("/data/z", b"three")
    fs.pipe({"/data/u": b"four", "/data/v": b"five"})
    fs.write_text("/data/w", "six")
    assert fs.cat(["/data/x", "/data/z", "/data/u", "/data/v", "/data/w"]) == {
        "/data/x": b"one",
        "/data/z": b"three",
        "/data/u": b"four",
        "/data/v": b"five",
        "/data/w": b"six",
    }
    assert fs.client.files["/data/y"].decode("utf-16") == "two"
    with fs.open("/data/x", "wb", durability="source"):
        assert fs.client.durability == "source"
    with fs.open("/data/x", "w", durability="source"):
        assert fs.client.durability == "source"


def half_written(opened: Any) -> None:
    with opened as stream:
        stream.write(b"half")
        raise ZeroDivisionError


def test_a_file_that_an_exception_leaves_is_discarded(fs: Any) -> None:
    with pytest.raises(ZeroDivisionError):
        half_written(fs.open("/data/a", "wb"))
    assert fs.cat_file("/data/a") == b"0123456789"


def test_what_shall_be_new_is_refused_where_something_is(fs: Any, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    for attempt in (
        lambda: fs.open("/data/a", "xb"),
        lambda: fs.pipe_file("/data/a", b"", mode="create"),
        lambda: fs.put_file(str(tmp_path / "x"), "/data/a", mode="create"),
        lambda: fs.mkdir("/data/a"),
        lambda: fs.makedirs("/data/d"),
    ):
        with pytest.raises(AlreadyExistsError):
            attempt()
    with pytest.raises(NotEmptyError):
        fs.rmdir("/data/d")
    fs.makedirs("/data/d", exist_ok=True)
    fs.mkdir("/data/new/deep")
    fs.rmdir("/data/new")
    fs.pipe_file("/data/x", b"x", mode="create")
    assert fs.cat_file("/data/x") == b"x"


def test_compression_is_refused_where_the_file_under_it_would_stay_open(fs: Any) -> None:
    with pytest.raises(UnsupportedError, match=r"fsspec\.open"):
        fs.open("/data/x", "wb", compression="gzip")


def test_files_are_removed_many_at_once(fs: Any) -> None:
    fs.rm_file("/data/a")
    with pytest.raises(IsDirectoryError):
        fs.rm("/data/d")
    fs.rm("/data/d", recursive=True)
    assert fs.client.files == {}
    with pytest.raises(NotFoundError):
        fs.rm("/data/a")


def test_a_copy_and_a_move_are_whole_files(fs: Any) -> None:
    fs.cp_file("/data/a", "/data/b")
    fs.mv("/data/a", "/data/c")
    fs.copy("/data/d", "/data/e", recursive=True)
    fs.mv("/data/d", "/data/f", recursive=True)
    assert set(fs.client.files) == {"/data/b", "/data/c", "/data/e/b", "/data/e/e/c", "/data/f/b", "/data/f/e/c"}
    with pytest.raises(InvalidInputError, match="onto itself"):
        fs.cp_file("/data/b", "penstock:///data/b")


def test_local_files_come_in(fs: Any, tmp_path: Path) -> None:
    (tmp_path / "in/deep").mkdir(parents=True)
    (tmp_path / "in/deep/x").write_bytes(b"x" * 100_000)
    fs.put(str(tmp_path / "in"), "/data/in", recursive=True)
    assert fs.client.files["/data/in/deep/x"] == b"x" * 100_000


def test_touch_makes_an_empty_file_and_cannot_change_a_time(fs: Any) -> None:
    fs.touch("/data/new", truncate=False)
    fs.touch("/data/a")
    assert (fs.client.files["/data/new"], fs.client.files["/data/a"]) == (b"", b"")
    with pytest.raises(UnsupportedError):
        fs.touch("/data/a", truncate=False)
    with pytest.raises(UnsupportedError):
        fs.created("/data/a")


def half_copied(fs: Any) -> None:
    fs.pipe("/data/four", b"four")
    fs.cp_file("/data/none", "/data/five")


def test_the_files_of_a_transaction_appear_at_its_end_or_never(fs: Any) -> None:
    with fs.transaction:
        with fs.open("/data/one", "wb") as stream:
            stream.write(b"one")
        fs.pipe("/data/two", b"two")
        with fs.open("/data/three", "w") as text:
            text.write("three")
        assert not fs.exists("/data/one")
    assert [fs.cat_file(f"/data/{name}") for name in ("one", "two", "three")] == [b"one", b"two", b"three"]
    with pytest.raises(NotFoundError), fs.transaction:
        half_copied(fs)
    assert not fs.exists("/data/four")
    fs.pipe("/data/five", b"five")
    assert fs.exists("/data/five")


def test_a_read_only_attachment_says_so_by_itself(fs: Any) -> None:
    fs.client.failing["/data/x"] = ReadOnlyError("write /data/x", "/data is attached read-only")
    for attempt in (lambda: fs.open("/data/x", "wb"), lambda: fs.pipe("/data/x", b""), lambda: fs.rm_file("/data/x")):
        with pytest.raises(ReadOnlyError):
            attempt()


def test_it_pickles_without_its_connection_and_one_home_is_one_instance(tmp_path: Any) -> None:
    made = PenstockFileSystem(home=str(tmp_path))
    copy = pickle.loads(pickle.dumps(made))
    assert copy is made
    assert copy._home == str(tmp_path)
    assert PenstockFileSystem(home=str(tmp_path)) is made
    assert PenstockFileSystem(home=str(tmp_path / "other")).fsid != made.fsid


def test_fsspec_finds_it_when_registered() -> None:
    fsspec.register_implementation("penstock", PenstockFileSystem, clobber=True)
    assert isinstance(fsspec.filesystem("penstock"), PenstockFileSystem)
