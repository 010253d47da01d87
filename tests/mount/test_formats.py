"""Libraries that read formats in their own way (by mapping, by footers, at random), over a mount."""

from __future__ import annotations

import io
import json
import random
import sqlite3
import zipfile
from contextlib import closing
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save

from mount import tfrecord
from mount.lake import KIB, MountedLake, digest, run

ROWS = 20_000
ROWS_OF_ALL = "SELECT count(*), sum(number), sum(length(content)) FROM item"


def database(path: Path, mode: str) -> tuple[bytes, tuple[int, ...]]:
    """A database of some MiB, and what a question about all of it answers."""
    chance = random.Random(1)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA journal_mode={mode}")
        connection.execute("CREATE TABLE item (number INTEGER PRIMARY KEY, content BLOB, name TEXT)")
        rows = ((number, chance.randbytes(number % 400), f"name {number % 997}") for number in range(ROWS))
        connection.executemany("INSERT INTO item VALUES (?, ?, ?)", rows)
        connection.execute("CREATE INDEX by_name ON item (name)")
        connection.commit()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        answer = connection.execute(ROWS_OF_ALL).fetchone()
    return path.read_bytes(), answer


@pytest.mark.parametrize(
    ("mode", "options"), [("delete", "mode=ro"), ("delete", "mode=ro&immutable=1"), ("wal", "mode=ro&immutable=1")]
)
@pytest.mark.parametrize("mapped", [0, 1 << 30])
def test_sqlite_reads_a_database(lake: MountedLake, tmp_path: Path, mode: str, options: str, mapped: int) -> None:
    content, wanted = database(tmp_path / "local.db", mode)
    shown = lake.show({"it.db": content}, "no-open" if mapped else "open")
    with closing(sqlite3.connect(f"file:{shown}/it.db?{options}", uri=True)) as connection:
        connection.execute(f"PRAGMA mmap_size={mapped}")
        by_name = connection.execute("SELECT sum(number) FROM item WHERE name = 'name 123'").fetchone()
        assert by_name == (sum(range(123, ROWS, 997)),)
        assert connection.execute(ROWS_OF_ALL).fetchone() == wanted
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            connection.execute("DELETE FROM item")


def test_numpy_maps_an_array(lake: MountedLake) -> None:
    array = np.random.default_rng(1).integers(0, 1 << 40, size=(700, 1000))
    stored = io.BytesIO()
    np.save(stored, array)
    shown = lake.show({"it.npy": stored.getvalue(), "raw": array.tobytes()}, "no-open")
    loaded = np.load(shown / "it.npy", mmap_mode="r")
    assert isinstance(loaded, np.memmap)
    np.testing.assert_array_equal(loaded[::-1, 3], array[::-1, 3])
    raw = np.memmap(shown / "raw", dtype=array.dtype, mode="r", shape=array.shape)
    np.testing.assert_array_equal(raw[123:456:7], array[123:456:7])
    np.testing.assert_array_equal(loaded, array)
    np.testing.assert_array_equal(raw, array)
    private = np.memmap(shown / "raw", dtype=array.dtype, mode="c", shape=array.shape)
    private[5, 5] = -1
    assert raw[5, 5] == array[5, 5]
    del loaded, raw, private


def test_hdf5_reads_slices_and_whole_datasets(lake: MountedLake, tmp_path: Path) -> None:
    chance = np.random.default_rng(2)
    plain, chunked = chance.random((300, 1000)), chance.integers(0, 100, size=(1000, 500))
    with h5py.File(tmp_path / "local.h5", "w") as file:
        file["plain"] = plain
        file.create_dataset("chunked", data=chunked, chunks=(100, 50), compression="gzip", fletcher32=True)
        file["chunked"].attrs["unit"] = "m"
    shown = lake.show({"it.h5": (tmp_path / "local.h5").read_bytes()})
    with h5py.File(shown / "it.h5", "r") as file:
        np.testing.assert_array_equal(file["chunked"][777:790, 33:444], chunked[777:790, 33:444])
        np.testing.assert_array_equal(file["plain"][::50, ::7], plain[::50, ::7])
        np.testing.assert_array_equal(file["chunked"][:], chunked)
        np.testing.assert_array_equal(file["plain"][:], plain)
        assert file["chunked"].attrs["unit"] == "m"


@pytest.mark.parametrize("memory_map", [False, True])
def test_parquet_gives_rows_and_single_columns(lake: MountedLake, memory_map: bool) -> None:
    chance = random.Random(3)
    columns = {
        "number": list(range(40_000)),
        "wide": [chance.randbytes(200) for _ in range(40_000)],
        "name": [f"name {number % 100}" for number in range(40_000)],
    }
    table = pa.table(columns)
    stored = io.BytesIO()
    pq.write_table(table, stored, row_group_size=20_000)
    # Whole directories are read by threads.
    shown = lake.show({"part=0/it.parquet": stored.getvalue(), "part=1/it.parquet": stored.getvalue()})
    file = shown / "part=0/it.parquet"
    before = lake.metrics()["source_bytes"]
    name = pq.read_table(file, columns=["name"], memory_map=memory_map, partitioning=None)
    fetched = lake.metrics()["source_bytes"] - before
    assert name.equals(table.select(["name"]))
    assert fetched < len(stored.getvalue()) // 2, "the wide column was not wanted"
    some = pq.read_table(file, filters=[("number", ">=", 22_000)], memory_map=memory_map, partitioning=None)
    assert some.equals(table.slice(22_000))
    assert pq.read_table(file, memory_map=memory_map, partitioning=None).equals(table)
    both = pq.read_table(shown, memory_map=memory_map)
    assert both.num_rows == 80_000
    assert both.drop_columns(["part"]).equals(pa.concat_tables([table, table]))


def test_tfrecords_have_the_checksums_they_were_written_with(lake: MountedLake) -> None:
    chance = random.Random(4)
    records = [chance.randbytes(chance.randrange(3000)) for _ in range(300)]
    packed = tfrecord.pack(records)
    shown = lake.show({"it.tfrecord": packed}, "no-open")
    with (shown / "it.tfrecord").open("rb") as stream:
        assert list(tfrecord.read(stream)) == records
    with pytest.raises(AssertionError, match="a record is wrong"):
        list(tfrecord.read(io.BytesIO(packed[:100] + b"\0" + packed[101:])))


def test_members_of_a_zip_are_read_at_random(lake: MountedLake, tmp_path: Path) -> None:
    chance = random.Random(5)
    members = {f"dir/{number}": chance.randbytes(chance.randrange(120_000)) for number in range(60)}
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w") as archive:
        for number, (name, content) in enumerate(members.items()):
            archive.writestr(name, content, zipfile.ZIP_DEFLATED if number % 2 else zipfile.ZIP_STORED)
    shown = lake.show({"it.zip": stored.getvalue()}, "no-open")
    with zipfile.ZipFile(shown / "it.zip") as archive:
        for name in chance.sample(sorted(members), len(members)):
            assert archive.read(name) == members[name]
        assert archive.testzip() is None
    assert run("unzip", "-p", shown / "it.zip", "dir/33") == members["dir/33"]
    run("unzip", "-q", shown / "it.zip", "-d", tmp_path)
    assert {name: digest((tmp_path / name).read_bytes()) for name in members} == {
        name: digest(content) for name, content in members.items()
    }


def test_safetensors_are_mapped(lake: MountedLake) -> None:
    chance = np.random.default_rng(6)
    tensors = {f"layer.{number}": chance.random((200, 300), dtype=np.float32) for number in range(20)}
    content = save(tensors)
    shown = lake.show({"cold.safetensors": content, "it.safetensors": content})
    with safe_open(shown / "cold.safetensors", framework="np") as file:
        assert set(file.keys()) == set(tensors)
        np.testing.assert_array_equal(file.get_tensor("layer.17"), tensors["layer.17"])
        np.testing.assert_array_equal(file.get_slice("layer.3")[50:60], tensors["layer.3"][50:60])
    for name, tensor in load_file(shown / "it.safetensors").items():
        np.testing.assert_array_equal(tensor, tensors[name])


def test_lines_and_documents_are_read_as_text(lake: MountedLake) -> None:
    rows = [{"number": number, "text": "zeile \N{SNOWMAN} " * (number % 50)} for number in range(4000)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    shown = lake.show({"it.jsonl": lines.encode()})
    assert len(lines) > 64 * KIB
    with (shown / "it.jsonl").open(encoding="utf-8") as stream:
        assert [json.loads(line) for line in stream] == rows
    assert (shown / "it.jsonl").read_text(encoding="utf-8") == lines
