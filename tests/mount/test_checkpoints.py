"""What trainers do to a mount: checkpoints saved, rotated and resumed, logs that are followed; each in its own way.

The trainers themselves need not be there: these are their calls, in their order.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from typing import Any

import fsspec
import numpy
import pytest
import safetensors.numpy

from mount.lake import MIB, MountedLake
from mount.tfrecord import pack
from mount.tfrecord import read as read_records

BESIDES = 256 * 1024
"""Bytes that go to the store besides contents: metadata of requests, small files."""


class Runs:
    """A directory of the mount to be written, and what its source has."""

    def __init__(self, lake: MountedLake, name: str) -> None:
        self.lake, self.path = lake, f"/{name}"
        self.mount = lake.attach(name, self.path, writable=True)

    def persist(self) -> None:
        self.lake.client.persist(self.path, timeout=60)

    def uploaded(self) -> int:
        return int(self.lake.remote.counters()["bytes_in"])

    def files_stored(self) -> set[str]:
        """What a plain listing of the store shows; without the objects that stand for directories."""
        connection = http.client.HTTPConnection(self.lake.endpoint.removeprefix("http://"), timeout=30)
        connection.request("GET", f"/bucket?list-type=2&prefix={self.path[1:]}/")
        listing = connection.getresponse().read().decode()
        connection.close()
        keys = (key.removeprefix(f"{self.path[1:]}/") for key in re.findall(r"<Key>([^<]*)</Key>", listing))
        return {key for key in keys if not key.endswith("/")}


@pytest.fixture
def runs(lake: MountedLake, request: pytest.FixtureRequest) -> Iterator[Runs]:
    made = Runs(lake, request.node.originalname)
    yield made
    made.persist()
    lake.client.detach(made.path)


def arrays(seed: int, count: int = 3) -> dict[str, Any]:
    chance = numpy.random.default_rng(seed)
    return {f"layer{number}": chance.random((500, 1000)) for number in range(count)}


def equal(one: Any, other: Any) -> bool:
    return set(one) == set(other) and all((one[name] == other[name]).all() for name in other)


def test_safetensors_are_uploaded_once_under_their_own_name(runs: Runs) -> None:
    tensors, before = arrays(1, 5), runs.uploaded()
    size = sum(each.nbytes for each in tensors.values())
    safetensors.numpy.save_file(tensors, runs.mount / "model.safetensors")
    assert equal(safetensors.numpy.load_file(runs.mount / "model.safetensors"), tensors)
    runs.persist()
    assert runs.files_stored() == {"model.safetensors"}
    assert size <= runs.uploaded() - before <= size + BESIDES
    with safetensors.safe_open(runs.mount / "model.safetensors", "numpy") as opened:
        assert (opened.get_slice("layer2")[100:200, 5:] == tensors["layer2"][100:200, 5:]).all()


def test_a_trainer_fills_a_directory_renames_it_and_keeps_the_newest_two(runs: Runs) -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    before = runs.uploaded()
    for step in (10, 20, 30):
        # As transformers.Trainer does.
        staging, target = runs.mount / f"tmp-checkpoint-{step}", runs.mount / f"checkpoint-{step}"
        staging.mkdir()
        safetensors.numpy.save_file(arrays(step), staging / "model.safetensors", metadata={"format": "pt"})
        torch.save({"state": {0: torch.full((1000,), float(step))}}, staging / "optimizer.pt")
        torch.save({"cpu": torch.get_rng_state()}, staging / "rng_state.pth")
        (staging / "trainer_state.json").write_text(json.dumps({"global_step": step}, indent=2) + "\n")
        staging.rename(target)
        directory = os.open(runs.mount, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
        kept = sorted(runs.mount.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
        for old in kept[:-2]:
            shutil.rmtree(old)
    newest = max(runs.mount.glob("checkpoint-*"))
    assert json.loads((newest / "trainer_state.json").read_text())["global_step"] == 30
    assert torch.load(newest / "optimizer.pt")["state"][0][7] == 30
    assert equal(safetensors.numpy.load_file(newest / "model.safetensors"), arrays(30))
    runs.persist()
    names = ("model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json")
    assert runs.files_stored() == {f"checkpoint-{step}/{name}" for step in (20, 30) for name in names}
    contents = 3 * sum(each.nbytes for each in arrays(1).values())
    assert runs.uploaded() - before <= contents + BESIDES, "every byte is uploaded once, whatever was renamed"


def test_a_checkpoint_moved_into_place_from_elsewhere_is_there_with_its_rights(runs: Runs) -> None:
    # As Lightning does: a transaction of fsspec, which copies from a temporary file in another file system.
    files, best = fsspec.filesystem("file"), runs.mount / "version_0" / "checkpoints" / "epoch=0.ckpt"
    content = io.BytesIO()
    numpy.savez(content, **arrays(3))
    for _ in range(2):
        files.makedirs(best.parent, exist_ok=True)
        with files.transaction, files.open(str(best), "wb") as stream:
            stream.write(content.getvalue())
        assert best.read_bytes() == content.getvalue()
    last = best.with_name("last.ckpt")
    # It would rather link the newest one; where that cannot be, it copies.
    with pytest.raises(OSError, match="not supported"):
        last.symlink_to(best.name)
    shutil.copy(best, last)
    files.rm(str(best))
    runs.persist()
    assert runs.files_stored() == {"version_0/checkpoints/last.ckpt"}
    assert last.read_bytes() == content.getvalue()


@pytest.mark.parametrize("kept_open", [True, False], ids=["kept open", "opened for each"])
def test_a_log_that_grows_is_followed_record_by_record(runs: Runs, kept_open: bool) -> None:
    # As TensorBoard does: its writer flushes what it has, in one open file or by appending; its reader comes back to
    # where the last whole record ended.
    records = [b"%d" % number * (number % 700 + 1) for number in range(120)]
    path = runs.mount / "events.out.tfevents.1"
    path.write_bytes(pack(records[:1]))

    def write() -> None:
        for start in range(1, len(records), 7):
            with path.open("ab") as stream:
                for each in records[start : start + 7]:
                    stream.write(pack([each]))
                    if kept_open:
                        stream.flush()

    writer = threading.Thread(target=write)
    writer.start()
    found: list[bytes] = []
    offset, end = 0, time.monotonic() + 60
    while len(found) < len(records):
        assert time.monotonic() < end, "it does not grow"
        with path.open("rb") as stream:
            stream.seek(offset)
            whole = whole_records(stream.read())
        found += read_records(io.BytesIO(whole))
        offset += len(whole)
    writer.join()
    assert found == records
    runs.persist()
    assert runs.files_stored() == {path.name}


def whole_records(content: bytes) -> bytes:
    """As much of it as has arrived completely."""
    end = 0
    while end + 12 <= len(content):
        following = end + 16 + int.from_bytes(content[end : end + 8], "little")
        if following > len(content):
            break
        end = following
    return content[:end]


def test_torch_saves_over_the_newest_checkpoint_while_somebody_reads_it(runs: Runs) -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    path = runs.mount / "latest.pt"
    states = [{"step": step, "weight": torch.full((5 * MIB // 4,), float(step))} for step in range(3)]
    torch.save(states[0], path)
    runs.persist()
    before = runs.uploaded()
    with path.open("rb") as opened:
        for state in states[1:]:
            torch.save(state, path.with_suffix(".tmp"))
            path.with_suffix(".tmp").replace(path)
        assert torch.equal(torch.load(opened)["weight"], states[0]["weight"])
    assert torch.equal(torch.load(path, mmap=True)["weight"], states[2]["weight"])
    runs.persist()
    assert runs.files_stored() == {"latest.pt"}
    assert runs.uploaded() - before <= 2 * 5 * MIB + BESIDES


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_torch_distributed_saves_and_loads_by_its_own_files(runs: Runs) -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    dcp = pytest.importorskip("torch.distributed.checkpoint", reason="needs torch")
    state = {"weight": torch.randn(1500, 1000), "bias": torch.randn(7), "step": torch.tensor(3)}

    def blank() -> dict[str, Any]:
        return {name: torch.zeros_like(tensor) for name, tensor in state.items()}

    def same(reader: Any) -> bool:
        loaded = blank()
        dcp.load(loaded, storage_reader=reader, no_dist=True)
        return all(torch.equal(loaded[name], tensor) for name, tensor in state.items())

    from penstock.integrations.dcp import Reader, Writer

    dcp.save(state, storage_writer=dcp.FileSystemWriter(runs.mount / "own"), no_dist=True)
    dcp.save(state, storage_writer=Writer(f"{runs.path}/set", client=runs.lake.client), no_dist=True)
    for _ in range(2):
        for name in ("own", "set"):
            assert same(dcp.FileSystemReader(runs.mount / name))
            assert same(Reader(f"{runs.path}/{name}", client=runs.lake.client))
        runs.persist()
    assert {key for key in runs.files_stored() if key.startswith("own/")} == {"own/.metadata", "own/__0_0.distcp"}
