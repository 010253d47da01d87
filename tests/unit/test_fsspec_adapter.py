"""The fsspec file system over a client that is not real: paths, listings, ranges, and what is refused."""

import io
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import fsspec
import numpy
import pytest

from penstock.errors import NotDirectoryError, NotFoundError, PenstockError, ReadOnlyError, UnsupportedError
from penstock.integrations.fsspec import PenstockFileSystem


@dataclass
class Entry:
    name: str
    size: int = 0
    is_directory: bool = False
    modified_ms: int = 1_000
    version: str | None = "v1"


class File(io.BytesIO):
    @property
    def size(self) -> int:
        return len(self.getbuffer())

    def pread(self, size: int, offset: int) -> bytes:
        return bytes(self.getbuffer()[offset : offset + size])


class FakeClient:
    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.calls: list[str] = []

    def stat(self, path: str) -> Entry:
        if path in self.files:
            return Entry(path.rsplit("/", 1)[-1], len(self.files[path]))
        if path == "/" or any(name.startswith(path + "/") for name in self.files):
            return Entry(path, is_directory=True, version=None)
        raise NotFoundError(f"stat {path}", "no such file")

    def list(self, path: str) -> Iterator[Entry]:
        self.calls.append(f"list {path}")
        if path in self.files:
            raise NotDirectoryError(f"list {path}", "it is a file")
        self.stat(path)
        root = path.rstrip("/") + "/"
        names = sorted({name[len(root) :].split("/")[0] for name in self.files if name.startswith(root)})
        return iter([self._entry(root + name, name) for name in names])

    def walk(self, path: str) -> Iterator[Entry]:
        self.calls.append(f"walk {path}")
        root = path.rstrip("/") + "/"
        names = {name[len(root) :] for name in self.files if name.startswith(root)}
        above = {name.rsplit("/", index + 1)[0] for name in names for index in range(name.count("/"))}
        return iter([self._entry(root + name, name) for name in sorted(names | above)])

    def open(self, path: str) -> File:
        self.stat(path)
        return File(self.files[path])

    def read_many(self, paths: Sequence[str], return_errors: bool = False) -> Sequence[bytes | PenstockError]:
        self.calls.append(f"read_many {len(paths)}")
        contents = [self.files.get(path) or NotFoundError(f"open {path}", "no such file") for path in paths]
        for content in contents:
            if isinstance(content, PenstockError) and not return_errors:
                raise content
        return contents

    def read_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> Sequence[bytes]:
        self.calls.append(f"read_ranges {path} {len(ranges)}")
        self.stat(path)
        return [self.files[path][start:end] for start, end in ranges]

    def _entry(self, path: str, name: str) -> Entry:
        if path in self.files:
            return Entry(name, len(self.files[path]))
        return Entry(name, is_directory=True, version=None)


@pytest.fixture
def fs() -> Any:
    made = PenstockFileSystem(skip_instance_cache=True)
    made._connected = FakeClient({"/data/a": b"0123456789", "/data/d/b": b"bb", "/data/d/e/c": b"ccc"})
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
        "mtime": 1.0,
        "version": "v1",
    }
    assert fs.info("/data")["type"] == "directory"
    assert fs.modified("/data/a") == datetime.fromtimestamp(1, UTC)
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


def test_what_would_write_is_refused_with_what_to_do(fs: Any, tmp_path: Any) -> None:
    (tmp_path / "x").write_text("x")
    for attempt in (
        lambda: fs.open("/data/x", "wb"),
        lambda: fs.open("/data/x", "ab"),
        lambda: fs.mkdir("/data/x"),
        lambda: fs.makedirs("/data/x"),
        lambda: fs.rmdir("/data/d"),
        lambda: fs.rm("/data/a"),
        lambda: fs.rm_file("/data/a"),
        lambda: fs.cp_file("/data/a", "/data/x"),
        lambda: fs.mv("/data/a", "/data/x"),
        lambda: fs.pipe_file("/data/x", b""),
        lambda: fs.put_file(str(tmp_path / "x"), "/data/x"),
        lambda: fs.touch("/data/x"),
    ):
        with pytest.raises(ReadOnlyError, match="write to the source itself"):
            attempt()
    fs.makedirs("/data/d", exist_ok=True)
    with pytest.raises(UnsupportedError):
        fs.created("/data/a")


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
