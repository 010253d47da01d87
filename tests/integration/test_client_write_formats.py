"""What people save with writes through a file of the tree as through a local one, byte for byte."""

import csv
import gzip
import hashlib
import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy
import pytest

from integration.conftest import Machine, make_writable_lake
from penstock.integrations.fsspec import PenstockFileSystem

MIB = 1024 * 1024
NUMBERS = numpy.arange(400_000, dtype="<f8").reshape(400, 1000)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    machine = Machine(tmp_path_factory.mktemp("lake"))
    try:
        made = make_writable_lake(machine)
        yield made
        made.client.close()
    finally:
        machine.close()


def save_zip(file: Any) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(20):
            with archive.open(zipfile.ZipInfo(f"{number}.bin"), "w") as member:
                member.write(NUMBERS[number].tobytes())


def save_tar(file: Any) -> None:
    with tarfile.open(fileobj=file, mode="w") as archive:
        for number in range(20):
            info = tarfile.TarInfo(f"{number}.bin")
            info.size = NUMBERS[number].nbytes
            archive.addfile(info, io.BytesIO(NUMBERS[number].tobytes()))


def save_gzip(file: Any) -> None:
    with gzip.GzipFile("a", "wb", fileobj=file, mtime=0) as stream:
        stream.write(NUMBERS.tobytes())


def save_csv(file: Any) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    csv.writer(text).writerows(NUMBERS[:50].tolist())
    text.flush()
    text.detach()


def save_json(file: Any) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8")
    json.dump(NUMBERS[:50].tolist(), text)
    text.flush()
    text.detach()


def save_torch(file: Any, legacy: bool = False) -> None:
    torch = pytest.importorskip("torch")
    state = {"weight": torch.from_numpy(NUMBERS.copy()), "step": 7, "tied": [torch.ones(3)] * 2}
    torch.save(state, file, _use_new_zipfile_serialization=not legacy)


def save_safetensors(file: Any) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    file.write(safetensors.save({"weight": NUMBERS}))


def table() -> Any:
    pyarrow = pytest.importorskip("pyarrow")
    return pyarrow.table({"row": NUMBERS[0], "name": [f"row {number}" for number in range(1000)]})


def save_parquet(file: Any) -> None:
    pytest.importorskip("pyarrow.parquet").write_table(table(), file)


def save_arrow(file: Any) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    with pyarrow.ipc.new_file(file, table().schema) as writer:
        writer.write_table(table())


def save_pandas(file: Any) -> None:
    pytest.importorskip("pandas").DataFrame(NUMBERS[:, :20]).to_csv(file)


FORMATS: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda file: pickle.dump({"numbers": NUMBERS, "text": "x" * MIB}, file, protocol=5),
    "npy": lambda file: numpy.save(file, NUMBERS),
    "npz": lambda file: numpy.savez(file, first=NUMBERS, second=NUMBERS[:3]),
    "npz-compressed": lambda file: numpy.savez_compressed(file, first=NUMBERS[:50]),
    "savetxt": lambda file: numpy.savetxt(file, NUMBERS[:20]),
    "zip": save_zip,
    "tar": save_tar,
    "gzip": save_gzip,
    "csv": save_csv,
    "json": save_json,
    "torch": save_torch,
    "safetensors": save_safetensors,
    "parquet": save_parquet,
    "arrow": save_arrow,
    "pandas": save_pandas,
}


def sha256(content: Any) -> str:
    return hashlib.sha256(content).hexdigest()


def check_everywhere(lake: Any, name: str, expected: str) -> None:
    """The same content by the client at once, by fsspec, and in the source after persist."""
    with lake.client.open(f"/runs/{name}") as file:
        assert sha256(file.read()) == expected
    fsspec.register_implementation("penstock", PenstockFileSystem, clobber=True)
    with fsspec.filesystem("penstock", home=lake.environment["PENSTOCK_HOME"]).open(f"/runs/{name}") as file:
        assert sha256(file.read()) == expected
    lake.client.persist("/runs", timeout=60)
    assert sha256((lake.root / name).read_bytes()) == expected
    with lake.client.open(f"/runs/{name}") as file:
        assert sha256(file.read()) == expected


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_saved_as_into_memory(lake: Any, name: str) -> None:
    model = io.BytesIO()
    FORMATS[name](model)
    with lake.client.open(f"/runs/{name}", "wb") as file:
        FORMATS[name](file)
    check_everywhere(lake, name, sha256(model.getvalue()))


def test_what_writes_by_the_descriptor_goes_on_where_the_file_is(lake: Any) -> None:
    with lake.client.open("/runs/raw", "wb") as file:
        file.write(b"head")
        NUMBERS.tofile(file)
        assert file.tell() == 4 + NUMBERS.nbytes
        file.write(b"tail")
    check_everywhere(lake, "raw", sha256(b"head" + NUMBERS.tobytes() + b"tail"))


def test_the_old_format_of_torch_is_saved_as_into_a_local_file(lake: Any, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    with lake.client.open("/runs/legacy", "wb") as file:
        save_torch(file, legacy=True)
    with (tmp_path / "model").open("wb") as model:
        save_torch(model, legacy=True)
    assert lake.client.stat("/runs/legacy").size == (tmp_path / "model").stat().st_size
    with lake.client.open("/runs/legacy") as file:
        assert numpy.array_equal(torch.load(file, weights_only=True)["weight"].numpy(), NUMBERS)


def test_what_was_saved_is_loaded_again(lake: Any) -> None:
    torch = pytest.importorskip("torch")
    with lake.client.open("/runs/state.pt", "wb") as file:
        save_torch(file)
    with lake.client.open("/runs/state.pt") as file:
        assert torch.equal(torch.load(file, weights_only=True)["weight"], torch.from_numpy(NUMBERS))
    with lake.client.open("/runs/numbers.npz", "wb") as file:
        numpy.savez(file, first=NUMBERS)
    with lake.client.open("/runs/numbers.npz") as file:
        assert numpy.array_equal(numpy.load(file)["first"], NUMBERS)
    with lake.client.open("/runs/a.zip", "wb") as file:
        save_zip(file)
    with lake.client.open("/runs/a.zip") as file, zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None
