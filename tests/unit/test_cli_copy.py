"""``cp`` and ``rm`` with a tree that is not real."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from penstock.cli.copy import SMALL_BYTES, Copy
from penstock.cli.remove import Remove
from penstock.errors import InvalidInputError, PenstockError, ReadOnlyError, StaleVersionError
from unit.fake_tree import FakeTree

LARGE = os.urandom(SMALL_BYTES + 1)


@pytest.fixture
def client() -> FakeTree:
    return FakeTree({"/data/a": b"aaa", "/data/d/b": b"b", "/data/d/large": LARGE})


class Run:
    """One ``cp``, what it said and what it could not do."""

    def __init__(self, client: FakeTree, sources: list[str], target: Path | str, **options: bool) -> None:
        self.failures: list[PenstockError] = []
        options = {"recursive": False, "force": False, **options}
        copy = Copy(client, **options, report=self.failures.append)  # type: ignore[arg-type]
        self.line = copy.run(sources, str(target))
        assert copy.failed == len(self.failures)


def copied(client: FakeTree, sources: list[str], target: Path | str, **options: bool) -> str:
    run = Run(client, sources, target, **options)
    assert run.failures == []
    return run.line


def test_a_file_is_copied_with_its_time(client: FakeTree, tmp_path: Path) -> None:
    assert copied(client, ["/data/a"], tmp_path / "x").startswith("copied 1 file, 3 B")
    assert (tmp_path / "x").read_bytes() == b"aaa"
    assert (tmp_path / "x").stat().st_mtime == 1_000_000_000


def test_a_file_goes_into_a_directory_under_its_own_name(client: FakeTree, tmp_path: Path) -> None:
    copied(client, ["/data/a", "penstock:///data/d/b"], tmp_path)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a", "b"]


def test_a_directory_is_copied_whole_with_small_and_large_files(client: FakeTree, tmp_path: Path) -> None:
    copied(client, ["/data"], tmp_path / "out", recursive=True)
    assert (tmp_path / "out/a").read_bytes() == b"aaa"
    assert (tmp_path / "out/d/large").read_bytes() == LARGE


def test_local_files_are_copied_into_the_tree(client: FakeTree, tmp_path: Path) -> None:
    (tmp_path / "in/deep").mkdir(parents=True)
    (tmp_path / "in/x").write_bytes(b"x")
    (tmp_path / "in/deep/large").write_bytes(LARGE)
    assert copied(client, [str(tmp_path / "in")], "/data/new", recursive=True).startswith("copied 2 files")
    assert (client.files["/data/new/x"], client.files["/data/new/deep/large"]) == (b"x", LARGE)
    copied(client, [str(tmp_path / "in/x")], "/data/d")
    copied(client, [f"file://{tmp_path}/in/x"], "penstock:///data/later/")
    copied(client, [str(tmp_path / "in/x"), str(tmp_path / "in/deep/large")], "/data/both")
    assert {"/data/d/x", "/data/later/x", "/data/both/x", "/data/both/large"} <= set(client.files)


def test_what_is_in_a_local_directory_is_meant_by_its_dot(
    client: FakeTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    copied(client, ["."], "/data/d", recursive=True)
    copied(client, ["x"], "/data/y")
    assert (client.files["/data/d/x"], client.files["/data/y"]) == (b"x", b"x")


def test_files_are_copied_within_the_tree(client: FakeTree) -> None:
    copied(client, ["/data/d"], "/data/e", recursive=True)
    assert (client.files["/data/e/b"], client.files["/data/e/large"]) == (b"b", LARGE)


@pytest.mark.parametrize("target", ["local", "/data"])
def test_a_directory_needs_the_option(client: FakeTree, tmp_path: Path, target: str) -> None:
    source = "/data/d" if target == "local" else str(tmp_path)
    [failure] = Run(client, [source], tmp_path if target == "local" else target).failures
    assert failure.code == "is-a-directory"
    assert "add -r" in str(failure)


def test_a_file_that_is_there_is_replaced_only_when_told(client: FakeTree, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"mine")
    for source, target in (("/data/a", str(tmp_path)), (str(tmp_path / "a"), "/data/a")):
        [failure] = Run(client, [source], target).failures
        assert failure.code == "already-exists"
        assert "add -f" in str(failure)
    assert ((tmp_path / "a").read_bytes(), client.files["/data/a"]) == (b"mine", b"aaa")
    copied(client, [str(tmp_path / "a")], "/data/a", force=True)
    assert client.files["/data/a"] == b"mine"
    client.files["/data/a"] = b"theirs"
    copied(client, ["/data/a"], tmp_path, force=True)
    assert (tmp_path / "a").read_bytes() == b"theirs"


@pytest.mark.parametrize("path", ["/data/d/b", "/data/d/large"])
def test_a_failed_read_leaves_no_part_behind_and_stops_no_other(client: FakeTree, tmp_path: Path, path: str) -> None:
    client.failing[path] = StaleVersionError(f"read {path}", "the object changed")
    run = Run(client, ["/data"], tmp_path / "out", recursive=True)
    assert run.failures == [client.failing[path]]
    assert run.line.endswith("; 1 failed")
    there = {each.relative_to(tmp_path / "out").as_posix() for each in tmp_path.rglob("*") if each.is_file()}
    assert there == {"a", "d/b", "d/large"} - {path.removeprefix("/data/")}


def test_a_file_that_the_tree_does_not_take_stops_no_other(client: FakeTree, tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / name).write_text(name)
    (tmp_path / "link").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    client.failing["/data/new/two"] = ReadOnlyError("write /data/new/two", "it is attached read-only")
    run = Run(client, [str(tmp_path)], "/data/new", recursive=True)
    assert sorted(each.code for each in run.failures) == ["read-only", "unsupported", "unsupported"]
    assert {name for name in client.files if name.startswith("/data/new")} == {"/data/new/one", "/data/new/three"}


def test_a_read_that_fails_in_the_middle_writes_nothing(
    client: FakeTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x").write_bytes(b"x")

    def failing(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("penstock.cli.copy._pieces", failing)
    [failure] = Run(client, [str(tmp_path / "x")], "/data/x").failures
    assert (failure.code, "/data/x" in client.files) == ("disk", False)


def test_a_missing_local_file_is_one_of_the_failures(client: FakeTree, tmp_path: Path) -> None:
    [failure] = Run(client, [f"file://{tmp_path}/none"], "/data/x").failures
    assert failure.code == "not-found"
    [failure] = Run(client, [f"{tmp_path}/none"], "/data/x").failures
    assert failure.code == "not-found"
    assert "no such local file" in failure.reason
    [failure] = Run(client, ["/nowhere/none"], tmp_path / "x").failures
    assert failure.action.startswith("stat /nowhere/none"), "what is to become local is missed in the tree"


@pytest.mark.parametrize(
    ("sources", "target", "needle"),
    [
        (["./local"], "/nowhere/x", "both are on the local disk"),
        (["/data/a"], "/data/a", "both are the same"),
        (["/data/d"], "/data/d/deeper", "lies in what is copied"),
        (["/data"], "/again/d", "lies in what is copied"),
        (["/data/a", "/data/d/b"], "/data/d/large", "not a directory"),
        (["/data/a", "/data/d/b"], "none", "not a directory"),
        (["/data/a", "/data/d/../a"], "/data/d", "contains . or .."),
        (["/data/d/b", "/again/d/b"], "/data/e/", "two of them would be /data/e/b"),
        (["file://local"], "/data/x", "not absolute"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_copied(
    client: FakeTree, sources: list[str], target: str, needle: str
) -> None:
    client.attached.append({**client.attached[0], "path": "/again"})
    before = dict(client.files)
    with pytest.raises(InvalidInputError, match=needle):
        Run(client, sources, target, recursive=True)
    assert client.files == before


def test_a_directory_is_not_copied_into_itself_through_its_attachment(client: FakeTree, tmp_path: Path) -> None:
    source = {"kind": "file", "directory": str(tmp_path)}
    client.attached.append({"path": "/nas", "source": source, "prefix": ""})
    (tmp_path / "x").write_text("x")
    with pytest.raises(InvalidInputError, match="lies in what is copied"):
        Run(client, [str(tmp_path)], "/nas/copy", recursive=True)
    with pytest.raises(InvalidInputError, match="both are the same"):
        Run(client, [str(tmp_path / "x")], "/nas/x")


def test_a_name_that_leaves_the_target_is_refused(client: FakeTree, tmp_path: Path) -> None:
    client.files = {"/data/../evil": b"x"}
    run = Run(client, ["/data"], tmp_path / "out", recursive=True)
    assert all("leaves the target" in str(failure) for failure in run.failures)
    assert run.failures
    assert not (tmp_path / "evil").exists()


def removed(client: FakeTree, *paths: str, recursive: bool = False) -> tuple[str, list[PenstockError]]:
    failures: list[PenstockError] = []
    remove = Remove(client, recursive=recursive, report=failures.append)  # type: ignore[arg-type]
    line = remove.run(list(paths))
    assert remove.failed == len(failures)
    return line, failures


def test_rm_removes_files_and_directories_only_when_told(client: FakeTree) -> None:
    _, [failure] = removed(client, "/data/d")
    assert (failure.code, len(client.files)) == ("is-a-directory", 3)
    assert removed(client, "/data/a", "/data/d", recursive=True) == ("removed 3 files", [])
    assert client.files == {}


def test_rm_never_takes_all_of_the_tree(client: FakeTree) -> None:
    with pytest.raises(InvalidInputError, match="everything"):
        removed(client, "/data/a", "/", recursive=True)
    assert len(client.files) == 3


def test_rm_goes_on_after_what_fails_and_names_it(client: FakeTree) -> None:
    client.failing["/data/d/b"] = ReadOnlyError("remove /data/d/b", "it is attached read-only")
    line, failures = removed(client, "/data/none", "/data/d", "/data/a", recursive=True)
    assert line == "removed 2 files; 2 failed"
    assert sorted(each.code for each in failures) == ["not-found", "read-only"]
    assert set(client.files) == {"/data/d/b"}
