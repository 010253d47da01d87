"""``cp`` out of a tree that is not real."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from penstock.cli.copy import SMALL_BYTES, Copy
from penstock.errors import (
    AlreadyExistsError,
    InvalidInputError,
    IsDirectoryError,
    NotFoundError,
    PenstockError,
    ReadOnlyError,
    StaleVersionError,
)


@dataclass
class Entry:
    name: str
    size: int = 0
    is_directory: bool = False
    modified_ms: int = 1_000_000_000_000


class FakeClient:
    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.failing: dict[str, PenstockError] = {}

    def stat(self, path: str) -> Entry:
        if path in self.files:
            return Entry(path.rsplit("/", 1)[-1], len(self.files[path]))
        if any(name.startswith(path.rstrip("/") + "/") for name in self.files):
            return Entry(path, is_directory=True)
        raise NotFoundError(f"stat {path}", "no such file")

    def walk(self, path: str) -> Iterator[Entry]:
        yield Entry("empty", is_directory=True)
        for name, content in self.files.items():
            if name.startswith(path + "/"):
                yield Entry(name[len(path) + 1 :], len(content))

    def open(self, path: str) -> io.BytesIO:
        if path in self.failing:
            raise self.failing[path]
        return io.BytesIO(self.files[path])

    def read_many(self, paths: list[str]) -> list[bytes]:
        for path in paths:
            if path in self.failing:
                raise self.failing[path]
        return [self.files[path] for path in paths]


LARGE = bytes(SMALL_BYTES + 1)


@pytest.fixture
def client() -> FakeClient:
    return FakeClient({"/data/a": b"aaa", "/data/d/b": b"b", "/data/d/large": LARGE})


def copy(client: FakeClient, sources: list[str], target: Path | str, **options: bool) -> str:
    options = {"recursive": False, "force": False, **options}
    return Copy(client, **options).run(sources, str(target))  # type: ignore[arg-type]


def test_a_file_is_copied_with_its_time(client: FakeClient, tmp_path: Path) -> None:
    assert copy(client, ["/data/a"], tmp_path / "x").startswith("copied 1 file, 3 B")
    assert (tmp_path / "x").read_bytes() == b"aaa"
    assert (tmp_path / "x").stat().st_mtime == 1_000_000_000


def test_a_file_goes_into_a_directory_under_its_own_name(client: FakeClient, tmp_path: Path) -> None:
    copy(client, ["/data/a", "penstock:///data/d/b"], tmp_path)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a", "b"]


def test_a_directory_is_copied_whole_with_small_and_large_files(client: FakeClient, tmp_path: Path) -> None:
    copy(client, ["/data"], tmp_path / "out", recursive=True)
    assert (tmp_path / "out/a").read_bytes() == b"aaa"
    assert (tmp_path / "out/d/large").read_bytes() == LARGE
    assert (tmp_path / "out/empty").is_dir()


def test_a_directory_needs_the_option(client: FakeClient, tmp_path: Path) -> None:
    with pytest.raises(IsDirectoryError, match="add -r"):
        copy(client, ["/data"], tmp_path)


def test_a_local_file_is_replaced_only_when_told(client: FakeClient, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"mine")
    with pytest.raises(AlreadyExistsError, match="add -f"):
        copy(client, ["/data/a"], tmp_path)
    assert (tmp_path / "a").read_bytes() == b"mine"
    copy(client, ["/data/a"], tmp_path, force=True)
    assert (tmp_path / "a").read_bytes() == b"aaa"


@pytest.mark.parametrize("path", ["/data/d/b", "/data/d/large"])
def test_a_failed_read_leaves_no_part_behind(client: FakeClient, tmp_path: Path, path: str) -> None:
    client.failing[path] = StaleVersionError(f"read {path}", "the object changed")
    with pytest.raises(StaleVersionError):
        copy(client, ["/data"], tmp_path / "out", recursive=True)
    assert not [each for each in tmp_path.rglob("*") if each.name.startswith(".")]
    assert not (tmp_path / "out" / path.removeprefix("/data/")).exists()


def test_writing_into_the_tree_is_refused_clearly(client: FakeClient, tmp_path: Path) -> None:
    (tmp_path / "local").write_text("x")
    for sources, target in [
        (["./local"], "/data/x"),
        ([str(tmp_path / "local")], "/data/x"),
        (["/data/a"], "penstock:///data/b"),
    ]:
        with pytest.raises(ReadOnlyError, match="attachments are read-only in this version"):
            copy(client, sources, target)


def test_many_sources_need_a_directory(client: FakeClient, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="not a directory"):
        copy(client, ["/data/a", "/data/d/b"], tmp_path / "none")


def test_a_name_that_leaves_the_target_is_refused(client: FakeClient, tmp_path: Path) -> None:
    client.files = {"/data/../evil": b"x"}
    with pytest.raises(InvalidInputError, match="leaves the target"):
        copy(client, ["/data"], tmp_path / "out", recursive=True)
    assert not (tmp_path / "evil").exists()
