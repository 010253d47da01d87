"""``penstock://`` URLs through a real node: fsspec itself, and the libraries that people use it by."""

import multiprocessing
import operator
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.tests.abstract import AbstractFixtures
from fsspec.tests.abstract.get import AbstractGetTests

from penstock.errors import NotFoundError, ReadOnlyError, StaleVersionError
from penstock.integrations.fsspec import PenstockFileSystem

pandas = pytest.importorskip("pandas")
pyarrow = pytest.importorskip("pyarrow")
duckdb = pytest.importorskip("duckdb")


@pytest.fixture(autouse=True)
def registered() -> None:
    # The entry point does this in an installed package.
    fsspec.register_implementation("penstock", PenstockFileSystem, clobber=True)


@pytest.fixture
def table() -> Any:
    return pandas.DataFrame({"id": range(10_000), "name": [f"row {number}" for number in range(10_000)]})


@pytest.fixture
def tree(machine: Any, table: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A machine with files attached, and the environment of its user in this process."""
    root = machine.files("lake", {"a.bin": bytes(range(256)) * 1000, "sub/b.txt": b"one\ntwo\n"})
    table.to_parquet(root / "t.parquet")
    table.to_csv(root / "t.csv", index=False)
    machine("attach", f"file://{root}", "/data", "--freshness", "0")
    monkeypatch.setenv("PENSTOCK_HOME", machine.environment["PENSTOCK_HOME"])
    PenstockFileSystem.clear_instance_cache()
    yield machine
    PenstockFileSystem.clear_instance_cache()


def test_open_by_url_reads_bytes_ranges_and_text(tree: Any) -> None:
    with fsspec.open("penstock:///data/a.bin") as stream:
        stream.seek(-4, 2)
        assert stream.read() == b"\xfc\xfd\xfe\xff"
    with fsspec.open("penstock:///data/sub/b.txt", "rt") as text:
        assert text.readlines() == ["one\n", "two\n"]
    fs = fsspec.filesystem("penstock")
    assert fs.cat_file("/data/a.bin", 10, 20) == bytes(range(10, 20))
    assert fs.cat_ranges(["/data/a.bin"] * 2, [0, 256], [2, 258]) == [b"\0\1", b"\0\1"]
    assert fs.cat(["/data/sub/b.txt"]) == {"/data/sub/b.txt": b"one\ntwo\n"}
    assert fs.find("penstock:///data") == ["/data/a.bin", "/data/sub/b.txt", "/data/t.csv", "/data/t.parquet"]


def test_the_version_changes_with_the_content(tree: Any) -> None:
    fs = fsspec.filesystem("penstock")
    before = fs.ukey("/data/sub/b.txt")
    (tree.directory / "lake/sub/b.txt").write_bytes(b"three\n")
    assert fs.ukey("/data/sub/b.txt") != before
    assert fs.cat_file("/data/sub/b.txt") == b"three\n"


def test_errors_are_those_of_penstock_and_the_builtins(tree: Any) -> None:
    fs = fsspec.filesystem("penstock")
    with pytest.raises(FileNotFoundError) as caught:
        fs.open("/data/none")
    assert isinstance(caught.value, NotFoundError)
    with pytest.raises(ReadOnlyError), fsspec.open("penstock:///data/x", "wb"):
        pass
    assert issubclass(StaleVersionError, OSError)


def test_pandas_reads_parquet_and_csv_by_url(tree: Any, table: Any) -> None:
    assert pandas.read_parquet("penstock:///data/t.parquet").equals(table)
    assert pandas.read_csv("penstock:///data/t.csv").equals(table)


def test_pyarrow_reads_a_data_set(tree: Any, table: Any) -> None:
    import pyarrow.dataset as datasets
    import pyarrow.parquet

    fs = fsspec.filesystem("penstock")
    assert pyarrow.parquet.read_table("/data/t.parquet", filesystem=fs).num_rows == len(table)
    known = datasets.dataset("/data/t.parquet", filesystem=fs, format="parquet")
    assert known.to_table(filter=datasets.field("id") < 10).num_rows == 10


def test_duckdb_reads_by_url(tree: Any, table: Any) -> None:
    with duckdb.connect() as connection:
        connection.register_filesystem(fsspec.filesystem("penstock"))
        [(count, total)] = connection.sql(
            "select count(*), sum(id) from read_parquet('penstock:///data/t.parquet')"
        ).fetchall()
    assert (count, total) == (len(table), int(table["id"].sum()))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_it_works_in_child_processes(tree: Any, method: str) -> None:
    # By name: a fork server that an earlier test started has the environment of that test.
    fs = fsspec.filesystem("penstock", home=str(tree.home.name))
    assert fs.cat_file("/data/sub/b.txt")
    copy = pickle.loads(pickle.dumps(fs))
    with multiprocessing.get_context(method).Pool(1) as pool:
        read = operator.methodcaller("cat_file", "/data/sub/b.txt")
        assert pool.apply_async(read, (copy,)).get(60) == b"one\ntwo\n"


def joined(*parts: str) -> str:
    return "/".join(parts)


class TestFsspecGet(AbstractFixtures, AbstractGetTests):
    """fsspec's own read tests, over files that stand behind an attachment: the tree itself takes none."""

    # Makes its directories in the tree by itself.
    test_get_directory_recursive = None

    @pytest.fixture
    def lake(self, machine: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
        lake: Path = machine.directory / "lake"
        lake.mkdir()
        machine("attach", f"file://{lake}", "/lake", "--freshness", "0")
        monkeypatch.setenv("PENSTOCK_HOME", machine.environment["PENSTOCK_HOME"])
        PenstockFileSystem.clear_instance_cache()
        yield lake
        PenstockFileSystem.clear_instance_cache()

    @pytest.fixture
    def fs(self, lake: Path) -> Any:
        return fsspec.filesystem("penstock")

    @pytest.fixture
    def fs_path(self) -> str:
        return "/lake"

    @pytest.fixture
    def fs_join(self) -> Any:
        return joined

    @pytest.fixture
    def fs_bulk_operations_scenario_0(self, lake: Path, local_fs: Any) -> str:
        self._bulk_operations_scenario_0(local_fs, joined, str(lake))
        return "/lake/source"

    @pytest.fixture
    def fs_10_files_with_hashed_names(self, lake: Path, local_fs: Any) -> str:
        self._10_files_with_hashed_names(local_fs, joined, str(lake))
        return "/lake/source"

    @pytest.fixture
    def fs_glob_edge_cases_files(self, lake: Path, local_fs: Any) -> str:
        self._glob_edge_cases_files(local_fs, joined, str(lake))
        return "/lake/source"

    @pytest.fixture
    def fs_dir_and_file_with_same_name_prefix(self, lake: Path, local_fs: Any) -> str:
        self._dir_and_file_with_same_name_prefix(local_fs, joined, str(lake))
        return "/lake/source"
