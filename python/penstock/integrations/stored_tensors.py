"""Where the bytes of a tensor lie in what ``torch.save`` made of it, so that a part of them can be read by itself.

``torch.save`` makes a zip archive without compression: a pickle that describes the tensor, some short records, then the
tensor's storage. Knows that layout and plans reads of it; reads nothing by itself, and never runs what a pickle says.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import sys
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["HEAD_BYTES", "Piece", "StoredTensor", "cut", "find_tensor"]

HEAD_BYTES = 4096
"""The storage of a tensor begins within so many bytes of its archive: what precedes it takes about 700."""

PIECE_BYTES = 16 << 20
"""Bytes that are read at a time: bounds memory, and lets a large tensor come over many connections."""

GAP_BYTES = 128 << 10
"""What is not wanted is read along up to so many bytes: a request of its own would cost more."""

LOCAL_HEADER = struct.Struct("<4s5H3L2H")
LOCAL_SIGNATURE = b"PK\x03\x04"
STORED_PLAINLY = 0


@dataclass(frozen=True)
class StoredTensor:
    """How a tensor lies in its archive.

    Attributes:
        dtype: of its elements.
        size: of each dimension.
        stride: elements from one index to the next, of each dimension.
        start: byte of the archive where its first element is.
    """

    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class Piece:
    """A box of a stored tensor, and the stretch of the archive that its elements lie in.

    Attributes:
        offsets: where the box begins, counted from the box that it was cut from.
        lengths: its size in each dimension.
        start: first byte, counted from the start of the archive.
        end: one past its last byte.
        dense: nothing else lies there, and the elements follow each other in the order of their indices.
    """

    offsets: tuple[int, ...]
    lengths: tuple[int, ...]
    start: int
    end: int
    dense: bool


def find_tensor(head: bytes) -> StoredTensor | None:
    """How the tensor lies whose archive begins with ``head``.

    Args:
        head: the first ``HEAD_BYTES`` of the archive, or all of it where it is shorter.
    Returns:
        ``None`` where it is anything else than one plain tensor of this machine's byte order: ``torch.load`` knows.
    """
    described: tuple[Any, StoredTensor] | None = None
    at = 0
    while 0 <= at <= len(head) - LOCAL_HEADER.size:
        signature, _, _, method, *_, name_bytes, extra_bytes = LOCAL_HEADER.unpack_from(head, at)
        if signature != LOCAL_SIGNATURE or method != STORED_PLAINLY:
            return None
        content = at + LOCAL_HEADER.size + name_bytes + extra_bytes
        name = head[at + LOCAL_HEADER.size :][:name_bytes].partition(b"/")[2]
        if name == b"data.pkl":
            described = _described(head[content:])
            if described is None:
                return None
        elif name == b"byteorder" and not head.startswith(sys.byteorder.encode(), content):
            return None
        elif name.startswith(b"data/"):
            if described is None or name != b"data/" + described[0].encode():
                return None
            tensor = described[1]
            return StoredTensor(tensor.dtype, tensor.size, tensor.stride, content + tensor.start)
        # The lengths of records stand behind them; what precedes the storage holds no signature.
        at = head.find(LOCAL_SIGNATURE, content)
    return None


def cut(stored: StoredTensor, offsets: Sequence[int], lengths: Sequence[int]) -> list[Piece]:
    """The reads that bring a box of a tensor, each at most about 16 MiB, and little more than the box in all.

    Args:
        stored: how the tensor lies.
        offsets: where the box begins.
        lengths: its size in each dimension; nothing is read of an empty one.
    """
    if not math.prod(lengths):
        return []
    first = sum(offset * stride for offset, stride in zip(offsets, stored.stride, strict=True))
    return list(_cut(stored, first, (0,) * len(lengths), tuple(lengths)))


def _cut(stored: StoredTensor, first: int, offsets: tuple[int, ...], lengths: tuple[int, ...]) -> Iterator[Piece]:
    item_bytes, strides = stored.dtype.itemsize, stored.stride
    span = 1 + sum((length - 1) * stride for length, stride in zip(lengths, strides, strict=True))
    widest = max(
        (axis for axis, length in enumerate(lengths) if length > 1), key=lambda axis: strides[axis], default=-1
    )
    # Between one index of the widest dimension and the next lies so much that is not wanted.
    gap = strides[widest] - (span - (lengths[widest] - 1) * strides[widest]) if widest >= 0 else 0
    apart = gap * item_bytes >= GAP_BYTES
    if widest < 0 or not (apart or span * item_bytes > PIECE_BYTES):
        start = stored.start + first * item_bytes
        yield Piece(offsets, lengths, start, start + span * item_bytes, _is_dense(lengths, strides))
        return
    step = 1 if apart else PIECE_BYTES // max(1, strides[widest] * item_bytes)
    step = min(max(1, step), lengths[widest] // 2)
    for index in range(0, lengths[widest], step):
        length = min(step, lengths[widest] - index)
        yield from _cut(
            stored,
            first + index * strides[widest],
            _put(offsets, widest, offsets[widest] + index),
            _put(lengths, widest, length),
        )


def _put(values: tuple[int, ...], axis: int, value: int) -> tuple[int, ...]:
    return (*values[:axis], value, *values[axis + 1 :])


def _is_dense(lengths: Sequence[int], strides: Sequence[int]) -> bool:
    expected = 1
    for length, stride in zip(reversed(lengths), reversed(strides), strict=True):
        if length > 1 and stride != expected:
            return False
        expected *= length
    return True


def _described(pickled: bytes) -> tuple[str, StoredTensor] | None:
    """The storage's name and the tensor, as the pickle of an archive says; ``start`` counts from the storage."""
    try:
        found = _Description(io.BytesIO(pickled)).load()
    except Exception:  # noqa: BLE001 - whatever is in it that is not known: torch.load reads it, or says what is wrong
        return None
    return found if isinstance(found, tuple) else None


class _Description(pickle.Unpickler):
    """Reads the description of one tensor, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        dtype = getattr(torch, name, None) if module == "torch" else None
        if isinstance(dtype, torch.dtype):
            return dtype
        raise pickle.UnpicklingError(f"not of a plain tensor: {module}.{name}")

    def persistent_load(self, named: Any) -> Any:
        return named


def _rebuild(
    storage: tuple[str, Any, str, str, int],
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    _requires_grad: bool,
    _hooks: object,
    *rest: object,
) -> tuple[str, StoredTensor]:
    _, kind, name, _, length = storage
    dtype: Any = kind
    if kind is torch.uint8 and rest and isinstance(rest[0], torch.dtype):
        dtype, rest = rest[0], rest[1:]
        length //= dtype.itemsize
    last = offset + sum((each - 1) * step for each, step in zip(size, stride, strict=True))
    if any(rest) or min(stride, default=0) < 0 or (0 not in size and last >= length):
        raise pickle.UnpicklingError("not a plain tensor")
    return name, StoredTensor(dtype, tuple(size), tuple(stride), offset * dtype.itemsize)


_STORAGES = {
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ShortStorage": torch.int16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
_KNOWN: dict[tuple[str, str], Any] = {
    **{("torch", name): dtype for name, dtype in _STORAGES.items()},
    # Untyped ones count bytes, as those of bytes do; the tensor's own type follows.
    ("torch.storage", "UntypedStorage"): torch.uint8,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild,
    ("collections", "OrderedDict"): OrderedDict,
}
