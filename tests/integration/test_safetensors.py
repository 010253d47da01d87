"""Tensors of safetensors files, read from the tree without a mount."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import penstock
from integration.conftest import Machine

torch: Any = pytest.importorskip("torch", reason="needs torch")

import safetensors.torch  # noqa: E402

from penstock.errors import CorruptError, InvalidInputError, NotFoundError  # noqa: E402
from penstock.integrations.safetensors import load_file, safe_open  # noqa: E402

LARGE = (6000, 1024)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A machine with /models; ``root`` is the directory that is its source."""
    machine: Any = Machine(tmp_path_factory.mktemp("lake"))
    machine.root = machine.directory / "source"
    machine.root.mkdir()
    try:
        machine.client = penstock.connect(machine.home.name)
        machine.client.attach(f"file://{machine.root}", "/models", freshness="0s")
        yield machine
        machine.client.close()
    finally:
        machine.close()


def tensors() -> dict[str, Any]:
    chance = torch.Generator().manual_seed(3)
    return {
        "large": torch.randn(LARGE, generator=chance),
        "half": torch.randn(70, 31, generator=chance).bfloat16(),
        "scalar": torch.tensor(7, dtype=torch.int64),
        "empty": torch.empty(0, 3),
        "flags": torch.randn(5, 4, 3, generator=chance) > 0,
        "tiny": torch.ones(3).to(torch.float8_e4m3fn),
    }


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return set(one) == set(other) and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name].float(), other[name].float()) for name in other
    )


def source_bytes(lake: Any) -> int:
    return int(lake.control().status()["metrics"]["source_bytes"])


def test_a_file_is_loaded_whether_it_is_here_or_not(lake: Any) -> None:
    safetensors.torch.save_file(tensors(), lake.root / "a.safetensors", metadata={"format": "pt", "by": "us"})
    before = source_bytes(lake)
    assert same(load_file("/models/a.safetensors", client=lake.client), tensors())
    size = (lake.root / "a.safetensors").stat().st_size
    assert source_bytes(lake) - before == size
    assert same(load_file("/models/a.safetensors", client=lake.client), tensors())
    assert source_bytes(lake) - before == size
    with safe_open("/models/a.safetensors", client=lake.client) as file:
        assert sorted(file.keys()) == sorted(tensors())
        assert file.metadata() == {"format": "pt", "by": "us"}
        assert same({"half": file.get_tensor("half")}, {"half": tensors()["half"]})
        with pytest.raises(NotFoundError, match="no such tensor"):
            file.get_tensor("nothing")


def test_of_a_slice_only_its_part_is_fetched(lake: Any) -> None:
    safetensors.torch.save_file(tensors(), lake.root / "b.safetensors")
    before = source_bytes(lake)
    with safe_open("/models/b.safetensors", client=lake.client) as file:
        part = file.get_slice("large")
        assert (part.get_shape(), part.get_dtype()) == (list(LARGE), "F32")
        assert torch.equal(part[1000:1500], tensors()["large"][1000:1500])
    # The part, the header, and what is rounded to whole units of the cache.
    assert source_bytes(lake) - before <= 500 * LARGE[1] * 4 + (512 << 10)


def test_slices_are_those_of_the_library_of_that_name(lake: Any) -> None:
    safetensors.torch.save_file(tensors(), lake.root / "c.safetensors")
    with (
        safetensors.safe_open(lake.root / "c.safetensors", "pt") as theirs,
        safe_open("/models/c.safetensors", client=lake.client) as ours,
    ):
        cuts: list[Any] = [slice(1, 3), (slice(None), slice(2, 3)), (slice(1, 9), slice(None), slice(0, 2)), Ellipsis]
        for index in [*cuts, (2, slice(1, 3)), (Ellipsis, slice(1, 2)), slice(3, 1), (-1,), (slice(-2, None),)]:
            expected = tensors()["flags"][index]
            assert torch.equal(ours.get_slice("flags")[index], expected), index
        for index in cuts[:3]:
            assert torch.equal(ours.get_slice("flags")[index], theirs.get_slice("flags")[index])
        with pytest.raises(InvalidInputError, match="a step of 2"):
            ours.get_slice("flags")[::2]
        for wrong in (5, (0, 0, 0, 0), (0, -5)):
            with pytest.raises(IndexError):
                ours.get_slice("flags")[wrong]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "length of a header"),
        (b"PK\3\4" * 100, "length of a header"),
        ((20).to_bytes(8, "little") + b"{" * 20, "no JSON"),
        ((4).to_bytes(8, "little") + b"[1 ]", "names no tensors"),
        (json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}), "does not lie in it"),
        (json.dumps({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}), "does not lie in it"),
        (json.dumps({"a": {"dtype": "X9", "shape": [2], "data_offsets": [0, 8]}}), "not understood"),
    ],
)
def test_what_is_no_safetensors_file_is_said_to_be_none(lake: Any, content: Any, reason: str, tmp_path: Path) -> None:
    if isinstance(content, str):
        content = len(content).to_bytes(8, "little") + content.encode() + bytes(4)
    name = f"{tmp_path.name}.safetensors"
    (lake.root / name).write_bytes(content)
    with pytest.raises(CorruptError, match=reason):
        load_file(f"/models/{name}", client=lake.client)


def test_another_framework_is_refused(lake: Any) -> None:
    with pytest.raises(ValueError, match="'tf' is not pt"):
        safe_open("/models/a.safetensors", "tf", client=lake.client)
