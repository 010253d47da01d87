"""``penstock://`` URLs through a real node: fsspec itself, and the libraries that people use it by."""

import json
import multiprocessing
import operator
import pickle
from collections.abc import Iterator
from typing import Any

import fsspec
import pytest

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


@pytest.fixture
def runs(tree: Any) -> Any:
    """The same machine with a place to write to, and what its plain files are then."""
    (tree.directory / "runs").mkdir()
    tree("attach", f"file://{tree.directory}/runs", "/runs", "--writable")
    return tree


def persisted(machine: Any, name: str) -> bytes:
    """What the source has under a name once it has all."""
    machine("persist", "/runs", "--timeout", "2min")
    return bytes((machine.directory / "runs" / name).read_bytes())


def test_open_by_url_writes_bytes_text_and_compressed(runs: Any) -> None:
    with fsspec.open("penstock:///runs/a.bin", "wb") as stream:
        stream.write(bytes(range(256)) * 5000)
    with fsspec.open("penstock:///runs/b.txt", "wt", newline="\n") as text:
        text.writelines(["one\n", "two\n"])
    with fsspec.open("penstock:///runs/c.gz", "wb", compression="gzip") as packed:
        packed.write(b"three" * 1000)
    fs = fsspec.filesystem("penstock")
    assert fs.exists("/runs/a.bin")
    assert fs.cat_file("/runs/b.txt") == b"one\ntwo\n"
    with fsspec.open("penstock:///runs/c.gz", compression="infer") as packed:
        assert packed.read() == b"three" * 1000
    assert persisted(runs, "a.bin") == bytes(range(256)) * 5000


def half_written(opened: Any, half: Any) -> None:
    with opened as stream:
        stream.write(half)
        raise ZeroDivisionError


def test_an_exception_discards_what_the_file_systems_own_open_began(runs: Any) -> None:
    fs = fsspec.filesystem("penstock")
    for mode, half in (("wb", b"half"), ("w", "half")):
        with pytest.raises(ZeroDivisionError):
            half_written(fs.open("/runs/a", mode), half)
    assert not fs.exists("/runs/a")


def test_a_file_is_appended_to_and_changed_in_part(runs: Any) -> None:
    fs = fsspec.filesystem("penstock")
    for number, mode in enumerate(("ab", "ab", "a", "at")):
        with fs.open("/runs/log", mode) as stream:
            stream.write(str(number) if "b" not in mode else str(number).encode())
    assert fs.cat_file("/runs/log") == b"0123"
    with fsspec.open("penstock:///runs/log", "a") as text:
        text.write("4")
    with fs.open("/runs/log", "r+b") as stream:
        assert stream.read(2) == b"01"
        stream.seek(1)
        stream.write(b"x")
    with pytest.raises(ZeroDivisionError):
        half_written(fs.open("/runs/log", "ab"), b"half")
    assert fs.cat_file("/runs/log") == b"0x234"
    with fs.transaction:
        with fs.open("/runs/log", "r+b") as stream:
            stream.write(b"y")
        assert fs.cat_file("/runs/log") == b"0x234"
    assert fs.cat_file("/runs/log") == b"yx234"


def test_a_table_grows_by_pandas_and_a_log_by_lines(runs: Any) -> None:
    url = "penstock:///runs/table.csv"
    for number in range(3):
        frame = pandas.DataFrame({"step": [number], "loss": [1 / (number + 1)]})
        frame.to_csv(url, mode="a", header=number == 0, index=False)
    assert list(pandas.read_csv(url)["step"]) == [0, 1, 2]
    for number in range(3):
        with fsspec.open("penstock:///runs/log.jsonl", "a") as log:
            log.write(json.dumps({"step": number}) + "\n")
    with fsspec.open("penstock:///runs/log.jsonl", "r") as log:
        assert [json.loads(line)["step"] for line in log] == [0, 1, 2]


def half_copied(fs: Any) -> None:
    fs.pipe("/runs/a", b"other")
    fs.cp_file("/runs/none", "/runs/b")


def test_the_files_of_a_transaction_appear_at_its_end_or_never(runs: Any) -> None:
    fs = fsspec.filesystem("penstock")
    large = bytes(range(256)) * 10_000
    with fs.transaction:
        fs.pipe("/runs/a", b"a")
        with fs.open("/runs/deep/b", "wb") as stream:
            stream.write(large)
        with fs.open("/runs/c", "w") as text:
            text.write("c")
        assert fs.find("/runs") == []
    assert fs.cat(["/runs/a", "/runs/deep/b", "/runs/c"]) == {"/runs/a": b"a", "/runs/deep/b": large, "/runs/c": b"c"}
    with pytest.raises(NotFoundError), fs.transaction:
        half_copied(fs)
    assert fs.cat_file("/runs/a") == b"a"


def test_pandas_writes_parquet_and_csv_by_url(runs: Any, table: Any) -> None:
    table.to_parquet("penstock:///runs/t.parquet")
    table.to_csv("penstock:///runs/t.csv", index=False)
    table.to_csv("penstock:///runs/t.csv.gz", index=False)
    table.to_pickle("penstock:///runs/t.pkl")
    assert pandas.read_parquet("penstock:///runs/t.parquet").equals(table)
    assert pandas.read_csv("penstock:///runs/t.csv").equals(table)
    assert pandas.read_csv("penstock:///runs/t.csv.gz").equals(table)
    assert persisted(runs, "t.csv") == table.to_csv(index=False).encode()
    assert pandas.read_parquet(runs.directory / "runs/t.parquet").equals(table)


def test_pyarrow_writes_a_data_set(runs: Any, table: Any) -> None:
    import pyarrow.dataset as datasets

    fs = fsspec.filesystem("penstock")
    content = pyarrow.Table.from_pandas(table.assign(part=table["id"] % 3))
    for _ in range(2):
        datasets.write_dataset(
            content,
            "/runs/set",
            filesystem=fs,
            format="parquet",
            partitioning=["part"],
            existing_data_behavior="delete_matching",
        )
    assert len(fs.find("/runs/set")) == 3
    known = datasets.dataset("/runs/set", filesystem=fs, format="parquet", partitioning=["part"])
    assert known.to_table().num_rows == len(table)
    runs("persist", "/runs", "--timeout", "2min")
    plain = datasets.dataset(str(runs.directory / "runs/set"), format="parquet", partitioning=["part"])
    assert plain.to_table().num_rows == len(table)


def test_duckdb_writes_by_url(runs: Any, table: Any) -> None:
    with duckdb.connect() as connection:
        connection.register_filesystem(fsspec.filesystem("penstock"))
        connection.sql("copy (select range as id from range(1000)) to 'penstock:///runs/d.parquet' (format parquet)")
    assert pandas.read_parquet("penstock:///runs/d.parquet")["id"].sum() == 499_500


def test_directories_go_in_and_out(runs: Any) -> None:
    local = runs.files("in", {f"{number % 7}/{number}": b"%d" % number for number in range(100)})
    fs = fsspec.filesystem("penstock")
    fs.put(str(local), "/runs/in", recursive=True)
    fs.get("/runs/in", str(runs.directory / "out"), recursive=True)
    for number in range(100):
        assert (runs.directory / f"out/{number % 7}/{number}").read_bytes() == b"%d" % number
    fs.mv("/runs/in", "/runs/moved", recursive=True)
    assert len(fs.find("/runs/moved")) == 100
    assert not fs.exists("/runs/in")
    fs.rm("/runs/moved", recursive=True)
    assert fs.find("/runs") == []
