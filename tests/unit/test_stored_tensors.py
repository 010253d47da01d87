"""Where tensors lie in what torch saved, and which reads bring a part of them."""

from __future__ import annotations

import io
import pickle
import random
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="needs torch")

from penstock.integrations.stored_tensors import (  # noqa: E402
    GAP_BYTES,
    HEAD_BYTES,
    PIECE_BYTES,
    StoredTensor,
    cut,
    find_tensor,
)

TYPES = ["float32", "float64", "bfloat16", "float16", "float8_e4m3fn", "bool", "uint8", "int16", "int64", "uint16"]


def saved(value: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, **options)
    return stream.getvalue()


def read(archive: bytes, stored: StoredTensor, offsets: Any, lengths: Any) -> Any:
    """A box of a tensor, from the pieces alone."""
    box = torch.zeros(lengths, dtype=stored.dtype)
    for piece in cut(stored, offsets, lengths):
        part = box
        for axis, (offset, length) in enumerate(zip(piece.offsets, piece.lengths, strict=True)):
            part = part.narrow(axis, offset, length)
        content = torch.frombuffer(bytearray(archive[piece.start : piece.end]), dtype=torch.uint8).clone()
        elements = content.view(stored.dtype)
        if piece.dense:
            assert elements.numel() == part.numel()
        part.copy_(elements.as_strided(piece.lengths, stored.stride))
    return box


@pytest.mark.parametrize("name", TYPES)
def test_a_tensor_of_any_type_and_layout_is_found_in_its_archive(name: str) -> None:
    values = (torch.arange(3 * 5 * 7).reshape(3, 5, 7) % 2).to(getattr(torch, name))
    for tensor in (values, values.permute(2, 0, 1), values[1], values[0, 0, 0].clone()):
        archive = saved(tensor)
        stored = find_tensor(archive[:HEAD_BYTES])
        assert stored is not None
        assert (stored.dtype, stored.size, stored.stride) == (tensor.dtype, tuple(tensor.shape), tensor.stride())
        assert torch.equal(read(archive, stored, [0] * tensor.dim(), tensor.shape), tensor)


def test_what_is_no_plain_tensor_is_left_to_torch() -> None:
    plain = torch.ones(3)
    others = [
        saved({"a": plain}),
        saved(torch.nn.Parameter(plain)),
        saved(torch.ones(3, dtype=torch.complex64).conj()),
        saved(plain.to_sparse()),
        saved(plain, _use_new_zipfile_serialization=False),
        saved(plain)[:100],
        saved(plain).replace(b"little", b"bigger"),
        pickle.dumps([1]),
        b"",
    ]
    assert [find_tensor(other[:HEAD_BYTES]) for other in others] == [None] * len(others)


def test_nothing_that_a_pickle_names_is_run() -> None:
    archive = saved(torch.ones(3)).replace(
        b"ctorch._utils\n_rebuild_tensor_v2\n", b"cbuiltins\nlist\nX\x0e\x00\x00\x00aaaaaaaaaaaaaa"
    )
    assert find_tensor(archive) is None


def test_boxes_of_random_tensors_are_read_whatever_their_layout() -> None:
    chance = random.Random(5)
    for _ in range(200):
        size = [chance.randrange(1, 9) for _ in range(chance.randrange(4))]
        tensor = torch.randn(size).permute(chance.sample(range(len(size)), len(size)))
        archive = saved(tensor)
        stored = find_tensor(archive)
        assert stored is not None
        offsets = [chance.randrange(length) for length in tensor.shape]
        lengths = [chance.randrange(length - first + 1) for length, first in zip(tensor.shape, offsets, strict=True)]
        box = tensor[tuple(slice(first, first + more) for first, more in zip(offsets, lengths, strict=True))]
        assert torch.equal(read(archive, stored, offsets, lengths), box)


def test_large_boxes_are_cut_and_what_is_not_wanted_is_left_out() -> None:
    wide = StoredTensor(torch.float32, (1000, 1 << 20), (1 << 20, 1), 640)
    pieces = cut(wide, (5, 10), (100, 1 << 19))
    assert sum(piece.end - piece.start for piece in pieces) == 100 * (1 << 19) * 4
    assert all(piece.dense and piece.end - piece.start <= PIECE_BYTES for piece in pieces)
    assert pieces[0].start == 640 + (5 * (1 << 20) + 10) * 4
    narrow = StoredTensor(torch.float32, (100_000, 1000), (1000, 1), 0)
    whole = cut(narrow, (0, 0), (100_000, 1000))
    assert sum(piece.end - piece.start for piece in whole) == 400_000_000
    assert all(piece.dense and piece.end - piece.start <= PIECE_BYTES for piece in whole)
    # Rows that lie close together are read with what is between them.
    half = cut(narrow, (0, 0), (100_000, 500))
    assert len(half) <= len(whole) + 1
    assert not any(piece.dense for piece in half)
    assert GAP_BYTES > (1000 - 500) * 4
