"""Reading what a load plan needs from the files of a checkpoint: few large reads, in parallel, copied once.

Whole entries and parts of them are cut into reads of at most 16 MiB. Of a file that is complete on this machine they go
straight into the memory of the tensors; of one that is not, neighbouring ones are asked of the node together, which
brings exactly those.
"""

from __future__ import annotations

import ctypes
import io
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint.filesystem import _StorageReaderTransforms
from torch.distributed.checkpoint.planner import LoadItemType

from penstock.errors import CorruptError, InvalidInputError, UnsupportedError
from penstock.integrations.stored_tensors import (
    GAP_BYTES,
    HEAD_BYTES,
    PIECE_BYTES,
    Piece,
    StoredTensor,
    cut,
    find_tensor,
)

if TYPE_CHECKING:
    from penstock._native import File
    from penstock.client import Client

__all__ = ["OpenedFile", "open_file", "read_box", "read_plan"]

SMALL_BYTES = 64 << 10
"""Entries of a local file up to this size are read whole and copied: that is cheaper than a look at their heads."""

JOBS_AHEAD = 2
"""Batches of reads that wait for each thread."""

Wanted: TypeAlias = "list[tuple[Any, Any]]"
"""Items of a plan, each with where its entry lies."""


@dataclass
class Read:
    """Bytes of a file and where they go.

    Attributes:
        start: first byte of the file.
        end: one past the last.
        place: takes the bytes.
        memory: where they go as they are; ``None`` where they have to be looked at.
    """

    start: int
    end: int
    place: Callable[[memoryview], None]
    memory: memoryview | None = None


@dataclass
class OpenedFile:
    """One file of the checkpoint, of one version.

    Attributes:
        path: in the tree.
        file: open for reading.
        client: to ask for ranges of it.
        is_local: every byte of it is on this machine.
        reads: what is wanted of it.
    """

    path: str
    file: File
    client: Client
    is_local: bool
    reads: list[Read] = field(default_factory=list)

    def bring(self, reads: list[Read]) -> None:
        """Reads and places a batch."""
        runs = list(merged(reads))
        if self.is_local:
            for run in runs:
                self._read_local(run)
            return
        views = self.ranges([(run[0].start, max(read.end for read in run)) for run in runs])
        for run, view in zip(runs, views, strict=True):
            for read in run:
                read.place(view[read.start - run[0].start : read.end - run[0].start])

    def bring_in_parallel(self, reads: list[Read], threads: int) -> None:
        """Reads and places everything, in batches, several at a time."""
        with ThreadPoolExecutor(threads, thread_name_prefix="penstock-checkpoint") as pool:
            work_off(pool, [(self, batch) for batch in batches(reads)], threads)

    def content(self, start: int, end: int) -> memoryview:
        """Bytes of the file."""
        if not self.is_local:
            return self.ranges([(start, end)])[0]
        content = memoryview(bytearray(end - start))
        self._fill(content, start)
        return content

    def ranges(self, ranges: list[tuple[int, int]]) -> list[memoryview]:
        """Ranges of the file in one call; nothing else is brought of it."""
        found = [memoryview(view) for view in self.client.core.read_ranges(self.path, ranges, self.file.version)]
        for (start, end), view in zip(ranges, found, strict=True):
            if len(view) != end - start:
                raise self._too_short(end)
        return found

    def _read_local(self, run: list[Read]) -> None:
        if len(run) == 1 and run[0].memory is not None:
            self._fill(run[0].memory, run[0].start)
            return
        start = run[0].start
        content = self.content(start, max(read.end for read in run))
        for read in run:
            read.place(content[read.start - start : read.end - start])

    def _fill(self, memory: memoryview, start: int) -> None:
        if self.file.pread_into(memory, start) != len(memory):
            raise self._too_short(start + len(memory))

    def _too_short(self, end: int) -> CorruptError:
        reason = f"the metadata of the checkpoint knows bytes up to {end}, and the file has {self.file.size}"
        return CorruptError(f"load {self.path}", reason, "load another checkpoint, or upload this one again")


def read_plan(client: Client, by_file: dict[str, Wanted], planner: Any, threads: int) -> None:
    """Reads everything that a plan wants.

    Args:
        client: reaches the files.
        by_file: items with where their entries lie, by the path of the file.
        planner: says which tensors take the bytes; it is asked by this thread alone.
        threads: reads under way at the same time.
    Raises:
        CorruptError: a file is shorter than the metadata says.
        PenstockError: what reading raises.
    """
    done: list[Callable[[], None]] = []
    targets = {
        id(item): planner.resolve_tensor(item).detach()
        for wanted in by_file.values()
        for item, _ in wanted
        if item.type != LoadItemType.BYTE_IO
    }

    def look(path: str) -> OpenedFile:
        opened = open_file(client, path)
        opened.reads = list(_reads_of(opened, by_file[path], targets, planner, done))
        return opened

    with ThreadPoolExecutor(threads, thread_name_prefix="penstock-checkpoint") as pool:
        files = list(pool.map(look, by_file))
        try:
            work_off(pool, [(file, batch) for file in files for batch in batches(file.reads)], threads)
        finally:
            for file in files:
                file.file.close()
    for each in done:
        each()
    for wanted in by_file.values():
        for item, _ in wanted:
            if item.type != LoadItemType.BYTE_IO:
                planner.commit_tensor(item, targets[id(item)])


def open_file(client: Client, path: str) -> OpenedFile:
    """A file of which nothing is wanted yet."""
    file = client.open(path)
    return OpenedFile(path, file, client, _is_local(file))


def read_box(stored: StoredTensor, offsets: Sequence[int], target: torch.Tensor) -> Iterator[Read]:
    """The reads of a box of a stored tensor into a tensor of its size."""
    for piece in cut(stored, offsets, target.shape):
        yield _read_piece(0, stored, piece, target)


def merged(reads: list[Read]) -> Iterator[list[Read]]:
    """Groups sorted reads into runs with little between them; what goes straight into memory is a run of its own."""
    run: list[Read] = []
    end = 0
    for read in reads:
        if run and (read.start - end > GAP_BYTES or read.memory is not None or run[-1].memory is not None):
            yield run
            run = []
        end = max(end, read.end) if run else read.end
        run.append(read)
    if run:
        yield run


def batches(reads: list[Read]) -> Iterator[list[Read]]:
    """Cuts the reads of a file, in their order in it, into parts of about 16 MiB."""
    batch: list[Read] = []
    for read in sorted(reads, key=lambda read: (read.start, read.end)):
        if batch and read.end - batch[0].start > PIECE_BYTES:
            yield batch
            batch = []
        batch.append(read)
    if batch:
        yield batch


def work_off(pool: ThreadPoolExecutor, jobs: list[tuple[OpenedFile, list[Read]]], threads: int) -> None:
    """Brings every batch; the first failure ends it."""
    under_way: deque[Any] = deque()
    try:
        for file, batch in jobs:
            under_way.append(pool.submit(file.bring, batch))
            if len(under_way) >= threads * JOBS_AHEAD:
                under_way.popleft().result()
        while under_way:
            under_way.popleft().result()
    finally:
        for future in under_way:
            future.cancel()


def _reads_of(
    opened: OpenedFile, wanted: Wanted, targets: dict[int, torch.Tensor], planner: Any, done: list[Callable[[], None]]
) -> Iterator[Read]:
    """The reads for some items of one file; what is left to do when all has been read is added to ``done``."""
    by_parts: Wanted = []
    for item, entry in wanted:
        if item.type == LoadItemType.BYTE_IO:
            yield _read_object(item, entry, planner, done)
            continue
        target = targets[id(item)]
        if target.size() != torch.Size(item.lengths):
            reason = f"{item.storage_index} is of size {tuple(item.lengths)} there, and {tuple(target.size())} here"
            raise InvalidInputError(f"load {opened.path}", reason, "load into tensors of the size that was saved")
        if not target.numel():
            continue
        if entry.transform_descriptors or _is_read_whole(opened, entry, target):
            yield _read_whole(item, entry, target)
        else:
            by_parts.append((item, entry))
    for (item, entry), head in zip(by_parts, _heads(opened, by_parts), strict=True):
        stored = find_tensor(head)
        if stored is None:
            yield _read_whole(item, entry, targets[id(item)])
        else:
            for piece in cut(stored, item.storage_offsets, item.lengths):
                yield _read_piece(entry.offset, stored, piece, targets[id(item)])


def _is_read_whole(opened: OpenedFile, entry: Any, target: torch.Tensor) -> bool:
    """Whether an entry is read in one, head and all, because all of it is wanted or it is small."""
    if opened.is_local or entry.length <= SMALL_BYTES:
        return bool(entry.length <= SMALL_BYTES)
    return bool(entry.length <= min(PIECE_BYTES, target.nbytes + GAP_BYTES))


def _heads(opened: OpenedFile, wanted: Wanted) -> list[bytes]:
    ranges = [(entry.offset, entry.offset + min(HEAD_BYTES, entry.length)) for _, entry in wanted]
    if opened.is_local:
        return [bytes(opened.file.pread(end - start, start)) for start, end in ranges]
    return [bytes(view) for view in opened.ranges(ranges)] if ranges else []


def _read_object(item: Any, entry: Any, planner: Any, done: list[Callable[[], None]]) -> Read:
    def place(content: memoryview) -> None:
        stream = io.BytesIO(_transformed(item, entry, content).read())
        done.append(lambda: planner.load_bytes(item, stream))

    return Read(entry.offset, entry.offset + entry.length, place)


def _read_whole(item: Any, entry: Any, target: torch.Tensor) -> Read:
    def place(content: memoryview) -> None:
        stored = None if entry.transform_descriptors else find_tensor(bytes(content[:HEAD_BYTES]))
        if stored is None:
            loaded = torch.load(_transformed(item, entry, content), map_location="cpu", weights_only=True)
            target.copy_(narrow_tensor_by_index(loaded, item.storage_offsets, item.lengths))
            return
        for piece in cut(stored, item.storage_offsets, item.lengths):
            _read_piece(0, stored, piece, target).place(content[piece.start : piece.end])

    return Read(entry.offset, entry.offset + entry.length, place)


def _transformed(item: Any, entry: Any, content: memoryview) -> Any:
    """The entry as a file that can be sought in, with what extensions did to it undone."""
    stream: Any = io.BytesIO(content)
    if entry.transform_descriptors:
        stream = _StorageReaderTransforms().transform_load_stream(item, entry.transform_descriptors, stream)
    return stream if stream.seekable() else io.BytesIO(stream.read())


def _read_piece(offset: int, stored: StoredTensor, piece: Piece, target: torch.Tensor) -> Read:
    """The read of a piece of the archive that begins at ``offset``, into its part of the target."""
    part = narrow_tensor_by_index(target, piece.offsets, piece.lengths)
    start, end = offset + piece.start, offset + piece.end
    as_it_is = part.dtype == stored.dtype and piece.dense and part.is_contiguous()
    if as_it_is and part.device.type == "cpu" and not part.is_conj() and not part.is_neg():
        memory = _memory_of(part)

        def fill(content: memoryview) -> None:
            memory[:] = content

        return Read(start, end, fill, memory)

    def copy(content: memoryview) -> None:
        # In memory of its own: what was read may begin where no element may.
        bytes_of = torch.empty(len(content), dtype=torch.uint8)
        _memory_of(bytes_of)[:] = content
        part.copy_(bytes_of.view(stored.dtype).as_strided(piece.lengths, stored.stride))

    return Read(start, end, copy)


def _memory_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor; the tensor has to be kept as long."""
    return memoryview((ctypes.c_ubyte * tensor.nbytes).from_address(tensor.data_ptr())).cast("B")


def _is_local(file: File) -> bool:
    try:
        file.fileno()
    except (UnsupportedError, OSError):
        return False
    return True
