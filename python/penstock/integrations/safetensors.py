"""Tensors of a safetensors file, without a mount: only the bytes that are asked for, many at a time.

>>> from penstock.integrations.safetensors import load_file, safe_open
>>> weights = load_file("/models/llama/model.safetensors")
>>> with safe_open("/models/llama/model.safetensors") as file:
...     mine = file.get_slice("embedding.weight")[0:16000]

A file that is not here yet comes at the speed of the link, straight into the tensors; of a slice, only its part does.
"""

from __future__ import annotations

import json
import math
import os
from typing import TYPE_CHECKING, Any

from penstock.errors import CorruptError, InvalidInputError, NotFoundError
from penstock.policies.attachments import check_tree_path

try:
    import torch
except ImportError as error:
    raise ImportError(f"penstock.integrations.safetensors needs PyTorch: pip install torch ({error})") from error

from penstock.integrations.checkpoint_reads import OpenedFile, open_file, read_box
from penstock.integrations.stored_tensors import StoredTensor

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from penstock.client import Client
    from penstock.client.client import TreePath

__all__ = ["SafeFile", "SafeSlice", "load_file", "safe_open"]

THREADS = 4
LENGTH_BYTES = 8
HEADER_BYTES_MAX = 100_000_000
"""As the format has it."""
FIRST_BYTES = 64 << 10
"""Read at once: most headers end there, and less would not come sooner."""

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}


def load_file(path: TreePath, device: Any = "cpu", *, client: Client | None = None) -> dict[str, torch.Tensor]:
    """All tensors of a file.

    Args:
        path: absolute path in the tree.
        device: where the tensors are to be.
        client: reaches the tree; a new one of the environment's home where none is given.
    Raises:
        NotFoundError: no such file.
        CorruptError: it is no safetensors file, or shorter than its header says.
    Cost: each byte is copied once; what is missing is fetched in parallel.
    """
    with safe_open(path, device=device, client=client) as file:
        return file.get_tensors(file.keys())


def safe_open(path: TreePath, framework: str = "pt", device: Any = "cpu", *, client: Client | None = None) -> SafeFile:
    """Opens a file to read some of its tensors, or parts of them; as the function of that name of safetensors.

    Args:
        path: absolute path in the tree.
        framework: ``pt``, torch; there is no other.
        device: where the tensors are to be.
        client: reaches the tree; a new one of the environment's home where none is given.
    Raises:
        NotFoundError: no such file.
        CorruptError: it is no safetensors file.
        ValueError: another framework.
    Cost: its header is fetched where it is not here.
    """
    if framework not in ("pt", "torch", "pytorch"):
        raise ValueError(f"safe_open {os.fspath(path)}: framework {framework!r} is not pt")
    if client is None:
        from penstock.client import connect

        client = connect()
    return SafeFile(client, check_tree_path(os.fspath(path)), device)


class SafeFile:
    """An open safetensors file. Everything read of it is of one version.

    Args:
        client: reaches the tree.
        path: absolute path in the tree.
        device: where the tensors are to be.
    """

    def __init__(self, client: Client, path: str, device: Any) -> None:
        self._device = device
        self._opened = open_file(client, path)
        try:
            header, start = _header(self._opened)
            self._metadata: dict[str, str] | None = header.pop("__metadata__", None)
            self._stored = {name: self._checked(name, told, start) for name, told in header.items()}
        except BaseException:
            self._opened.file.close()
            raise

    def keys(self) -> list[str]:
        """Names of the tensors, in the order of the file."""
        return sorted(self._stored, key=lambda name: self._stored[name].start)

    def metadata(self) -> dict[str, str] | None:
        """What was saved beside the tensors."""
        return self._metadata

    def get_tensor(self, name: str) -> torch.Tensor:
        """One tensor."""
        return self.get_tensors([name])[name]

    def get_tensors(self, names: list[str]) -> dict[str, torch.Tensor]:
        """Several tensors, read together."""
        stored = {name: self._known(name) for name in names}
        whole = {name: (each, (0,) * len(each.size), each.size) for name, each in stored.items()}
        return dict(zip(names, self.read_boxes(list(whole.values())), strict=True))

    def get_slice(self, name: str) -> SafeSlice:
        """A tensor of which parts are read by their indices."""
        return SafeSlice(self, name, self._known(name))

    def read_boxes(self, boxes: list[tuple[StoredTensor, tuple[int, ...], tuple[int, ...]]]) -> list[torch.Tensor]:
        """Parts of tensors: each with where it begins and its lengths."""
        read = [torch.empty(lengths, dtype=stored.dtype) for stored, _, lengths in boxes]
        wanted = zip(boxes, read, strict=True)
        self._opened.bring_in_parallel(
            [each for (stored, offsets, _), target in wanted for each in read_box(stored, offsets, target)], THREADS
        )
        return [each.to(self._device) for each in read]

    def close(self) -> None:
        """Ends the lease."""
        self._opened.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _known(self, name: str) -> StoredTensor:
        if name not in self._stored:
            raise NotFoundError(f"read {name} of {self._opened.path}", "the file has no such tensor", "see keys()")
        return self._stored[name]

    def _checked(self, name: str, told: Any, start: int) -> StoredTensor:
        try:
            dtype, size = DTYPES[told["dtype"]], tuple(int(each) for each in told["shape"])
            first, end = (start + int(each) for each in told["data_offsets"])
        except (KeyError, TypeError, ValueError) as error:
            raise _no_safetensors(self._opened, f"what it says of {name} is not understood: {error!r}") from None
        whole = end - first == math.prod(size) * dtype.itemsize and min(size, default=0) >= 0
        if not whole or not start <= first <= end <= self._opened.file.size:
            raise _no_safetensors(self._opened, f"{name} does not lie in it as its header says")
        stride = tuple(math.prod(size[axis + 1 :]) for axis in range(len(size)))
        return StoredTensor(dtype, size, stride, first)


class SafeSlice:
    """A tensor in the file: indexing reads that part of it."""

    def __init__(self, file: SafeFile, name: str, stored: StoredTensor) -> None:
        self._file, self._name, self._stored = file, name, stored

    def get_shape(self) -> list[int]:
        """Its size in each dimension."""
        return list(self._stored.size)

    def get_dtype(self) -> str:
        """Its type, as the format names it."""
        return next(name for name, dtype in DTYPES.items() if dtype == self._stored.dtype)

    def __getitem__(self, index: Any) -> torch.Tensor:
        indices = list(index) if isinstance(index, tuple) else [index]
        size = self._stored.size
        if Ellipsis in indices:
            at = indices.index(Ellipsis)
            indices[at : at + 1] = [slice(None)] * (len(size) - len(indices) + 1)
        indices += [slice(None)] * (len(size) - len(indices))
        if len(indices) > len(size):
            raise IndexError(f"{self._name} has {len(size)} dimensions, not {len(indices)}")
        bounds = [_bounds(each, length) for each, length in zip(indices, size, strict=True)]
        offsets, lengths = tuple(first for first, _ in bounds), tuple(end - first for first, end in bounds)
        [read] = self._file.read_boxes([(self._stored, offsets, lengths)])
        kept = [length for each, length in zip(indices, lengths, strict=True) if isinstance(each, slice)]
        return read.reshape(kept)


def _bounds(index: Any, length: int) -> tuple[int, int]:
    if isinstance(index, slice):
        first, end, step = index.indices(length)
        if step != 1:
            raise InvalidInputError(
                "slice a tensor", f"a step of {step} is not read from a file", "read it, then index"
            )
        return first, max(first, end)
    at = index + length if index < 0 else index
    if not 0 <= at < length:
        raise IndexError(f"index {index} is out of range for a dimension of {length}")
    return at, at + 1


def _header(opened: OpenedFile) -> tuple[dict[str, Any], int]:
    """What the file says of itself, and where its data begin."""
    size = opened.file.size
    first = bytes(opened.content(0, min(size, FIRST_BYTES)))
    length = int.from_bytes(first[:LENGTH_BYTES], "little")
    start = LENGTH_BYTES + length
    if len(first) < LENGTH_BYTES or length > HEADER_BYTES_MAX or start > size:
        raise _no_safetensors(opened, "it does not begin with the length of a header")
    if start > len(first):
        first += bytes(opened.content(len(first), start))
    try:
        header = json.loads(first[LENGTH_BYTES:start])
    except ValueError as error:
        raise _no_safetensors(opened, f"its header is no JSON: {error}") from None
    if not isinstance(header, dict):
        raise _no_safetensors(opened, "its header names no tensors")
    return header, start


def _no_safetensors(opened: OpenedFile, reason: str) -> CorruptError:
    return CorruptError(f"read {opened.path}", reason, "is it a safetensors file, uploaded to its end?")
