"""Checkpoints of ``torch.distributed.checkpoint``, saved and loaded by real ranks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import penstock
from integration.conftest import Machine, make_writable_lake

torch: Any = pytest.importorskip("torch", reason="needs torch")

import torch.distributed.checkpoint as dcp  # noqa: E402

from penstock.integrations.dcp import Reader  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")

READ_ALLOWED = 1.05
"""Bytes read by a load, at most so many times what it needs."""


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A machine with /runs to be written, and ``home`` as the ranks are told it."""
    machine = Machine(tmp_path_factory.mktemp("lake"))
    try:
        made = make_writable_lake(machine)
        made.where = str(machine.home.name)
        yield made
        made.client.close()
    finally:
        machine.close()


@pytest.fixture
def elsewhere(lake: Any, tmp_path: Path) -> Iterator[Any]:
    """A machine that has nothing cached, with the same source at /runs."""
    machine: Any = Machine(tmp_path / "elsewhere")
    machine.directory.mkdir()
    try:
        machine.client = penstock.connect(machine.home.name)
        machine.client.attach(f"file://{lake.root}", "/runs")
        machine.where = str(machine.home.name)
        yield machine
        machine.client.close()
    finally:
        machine.close()


def source_bytes(machine: Any) -> int:
    return int(machine.control().status()["metrics"]["source_bytes"])


def state(seed: int = 1) -> dict[str, Any]:
    """Tensors of several types, sizes and layouts, and what is no tensor."""
    chance = torch.Generator().manual_seed(seed)
    tensors = {
        "large": torch.randn(2200, 2048, generator=chance),
        "turned": torch.randn(300, 500, generator=chance).t(),
        "half": torch.randn(700, 60, generator=chance).bfloat16(),
        "part": torch.randn(100, 100, generator=chance)[10:20, 5:50],
        "scalar": torch.randn((), generator=chance),
        "empty": torch.empty(0, 3),
        "flags": torch.randn(77, generator=chance) > 0,
    }
    return {"model": tensors, "step": seed, "options": {"lr": [0.1, 0.2], "name": "adam"}}


def blank() -> dict[str, Any]:
    tensors = {name: torch.zeros_like(tensor) for name, tensor in state()["model"].items()}
    return {"model": tensors, "step": 0, "options": {"lr": [0.0, 0.0], "name": ""}}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    tensors = all(torch.equal(one["model"][name], other["model"][name]) for name in other["model"])
    return tensors and (one["step"], one["options"]) == (other["step"], other["options"])


def load(reader: Any) -> dict[str, Any]:
    loaded = blank()
    dcp.load(loaded, storage_reader=reader)
    return loaded


def test_what_torch_saved_itself_is_loaded_and_only_what_is_wanted_of_it(lake: Any, elsewhere: Any) -> None:
    dcp.save(state(2), storage_writer=dcp.FileSystemWriter(lake.root / "torchs", thread_count=2))
    assert same(load(Reader("/runs/torchs", client=elsewhere.client)), state(2))
    elsewhere("evict", "/runs")
    before = source_bytes(elsewhere)
    wanted = {"model": {"turned": torch.zeros(500, 300)}}
    dcp.load(wanted, storage_reader=Reader("/runs/torchs", client=elsewhere.client))
    assert torch.equal(wanted["model"]["turned"], state(2)["model"]["turned"])
    assert source_bytes(elsewhere) - before < 2_000_000


def test_a_checkpoint_that_is_not_there_or_was_cut_off_is_named(lake: Any) -> None:
    with pytest.raises(dcp.api.CheckpointException, match=r"there is no complete checkpoint: \.metadata is missing"):
        load(Reader("/runs/nothing", client=lake.client))
    dcp.save(state(), storage_writer=dcp.FileSystemWriter(lake.root / "cut"))
    with next((lake.root / "cut").glob("*.distcp")).open("r+b") as file:
        file.truncate(1 << 20)
    with pytest.raises(dcp.api.CheckpointException, match="the metadata of the checkpoint knows bytes up to"):
        load(Reader("/runs/cut", client=lake.client))
