"""Checkpoints of ``torch.distributed.checkpoint``: written as one set, read by ranges.

>>> import torch.distributed.checkpoint as dcp
>>> from penstock.integrations.dcp import Reader, Writer
>>> dcp.save(state, storage_writer=Writer("/runs/exp1/step-1000"))
>>> dcp.load(state, storage_reader=Reader("/runs/exp1/step-1000"))

The files are those that torch's own writer makes: ``FileSystemReader`` reads them on a mount or anywhere else, and what
``FileSystemWriter`` made is read here.
"""

from __future__ import annotations

import math
import os
import pickle
import threading
import uuid
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from penstock.errors import InvalidInputError, NotFoundError, PenstockError, UnsupportedError
from penstock.policies.attachments import check_tree_path

try:
    import torch
    from torch.distributed.checkpoint import StorageReader, StorageWriter
    from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION, _StorageInfo
    from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
    from torch.distributed.checkpoint.planner import WriteItemType
    from torch.distributed.checkpoint.storage import WriteResult
    from torch.futures import Future
except ImportError as error:
    raise ImportError(f"penstock.integrations.dcp needs PyTorch 2.6 or newer: pip install torch ({error})") from error

from penstock.integrations.checkpoint_reads import read_plan

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.distributed.checkpoint.planner import (
        LoadPlan,
        LoadPlanner,
        SavePlan,
        SavePlanner,
        WriteItem,
    )

    from penstock.client import Client
    from penstock.client.client import Durability, TreePath
    from penstock.client.sets import SetWriter

__all__ = ["Reader", "Writer"]

METADATA = ".metadata"
WRITE_THREADS = 2
READ_THREADS = 4

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class _Share:
    """What the coordinator tells a rank: the set that all write into, and how the rank's files begin."""

    files: SetWriter
    prefix: str


class _Place:
    """A path of the tree and the client that reaches it; pickled as where it connects to."""

    def __init__(self, path: TreePath | None, home: TreePath | None, client: Client | None) -> None:
        if home is not None and client is not None:
            raise ValueError("give a home or a client, not both: a client has its home")
        self.path = None if path is None else _normal(path)
        self._home = None if home is None else os.fspath(home)
        self._client = client
        self._connecting = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_connecting"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._connecting = threading.Lock()

    @property
    def client(self) -> Client:
        with self._connecting:
            if self._client is None:
                from penstock.client import connect

                self._client = connect(self._home)
            return self._client

    def named(self) -> str:
        if self.path is None:
            raise ValueError("a checkpoint needs a path: give it to the reader or writer, or as checkpoint_id")
        return self.path


def _normal(path: TreePath) -> str:
    return check_tree_path(os.fspath(path).removeprefix("penstock://"))


class _Placed:
    """What a writer and a reader say of the path of their checkpoint."""

    _place: _Place

    @property
    def checkpoint_id(self) -> str | None:
        """The path of the checkpoint."""
        return self._place.path

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: TreePath) -> bool:
        """Whether it is a path of the tree."""
        try:
            _normal(checkpoint_id)
        except InvalidInputError:
            return False
        return True


class Writer(_Placed, StorageWriter):  # type: ignore[misc]  # torch is not followed
    """Writes a checkpoint that appears as a whole, when every rank has written its part, or not at all.

    Every rank writes its files straight into the stage of its machine's node; the coordinator publishes them together.
    The upload follows by itself; with durability ``source``, the save returns when the source has everything. All ranks
    are on one machine. Works with ``save`` and with ``async_save`` by threads and processes.

    Args:
        path: absolute path in the tree, where nothing is yet; a ``checkpoint_id`` given to ``save`` takes its place.
        home: the home of the node; default is that of the environment.
        client: a client to use instead.
        threads: files that a rank writes at the same time.
        durability: ``local`` or ``source``, as of :meth:`penstock.Client.open`; ``None`` is what the attachment says.
    Raises:
        AlreadyExistsError: from ``save``: something has the path.
        ReadOnlyError: from ``save``: the attachment was not made writable.
        NoSpaceError: from ``save``: the stage or its disk is full.
        UnsupportedError: from ``save``: with ``use_collectives=False`` or a planner that caches plans.
    Cost: each byte is written to the local disk once; one sync a file and one to publish.
    """

    def __init__(
        self,
        path: TreePath | None = None,
        *,
        home: TreePath | None = None,
        client: Client | None = None,
        threads: int = WRITE_THREADS,
        durability: Durability | None = None,
    ) -> None:
        super().__init__()
        self._place = _Place(path, home, client)
        self.threads = _at_least_one(threads)
        self.durability = durability
        self.save_id = str(uuid.uuid4())
        self._begun: weakref.finalize[Any, Any] | None = None
        self._files: SetWriter | None = None

    def __getstate__(self) -> dict[str, Any]:
        # What is under way belongs to the process that began it.
        return {**self.__dict__, "_begun": None, "_files": None}

    def reset(self, checkpoint_id: TreePath | None = None) -> None:
        """Begins a new checkpoint; one that was begun before and is not complete is given up."""
        self._give_up()
        if checkpoint_id:
            self._place.path = _normal(checkpoint_id)
        self.save_id = str(uuid.uuid4())

    def set_up_storage_writer(self, is_coordinator: bool, *_: Any, **kwargs: Any) -> None:  # noqa: ARG002 - torch's
        """Checks on every rank that there is a path, and a way for the ranks to appear together."""
        self._give_up()
        path = self._place.named()
        if not kwargs.get("use_collectives", True):
            reason = "ranks that do not speak with each other cannot appear together"
            raise UnsupportedError(f"save {path}", reason, "leave use_collectives=True")

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """The plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Begins the set, and tells every rank of it."""
        path = self._place.named()
        if not all(getattr(plan, "usable", True) for plan in plans):
            reason = (
                "ranks with a cached plan are told nothing new, and would write into the checkpoint before this one"
            )
            raise UnsupportedError(f"save {path}", reason, "use a planner with enable_plan_caching=False")
        files = self._place.client.commit(path, durability=self.durability)
        self._files = files
        # Who is collected or ends without having published leaves nothing behind.
        self._begun = weakref.finalize(self, _discard, files, os.getpid())
        return [replace(plan, storage_data=_Share(files, f"__{rank}_")) for rank, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Writes the files of this rank; where one fails, nothing of the checkpoint appears."""
        share: _Share = plan.storage_data
        parts = _even_parts(plan.items, self.threads)

        def write(number: int) -> list[WriteResult]:
            return _write_file(share.files, f"{share.prefix}{number}.distcp", parts[number], planner)

        try:
            written = _in_threads(write, list(range(len(parts))), self.threads)
        except BaseException:
            _discard(share.files, os.getpid())
            raise
        done: Future[list[WriteResult]] = Future()
        done.set_result([result for results in written for result in results])
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Writes the metadata and publishes the set: from now on everybody sees the checkpoint."""
        files = self._files
        if files is None:
            reason = "it was not begun by this process, or was given up"
            raise InvalidInputError(f"save {self._place.named()}", reason, "call prepare_global_plan before finish")
        metadata.version = CURRENT_DCP_VERSION
        metadata.storage_data = {result.index: result.storage_data for rank in results for result in rank}
        metadata.storage_meta = self.storage_meta()
        try:
            files.write(METADATA, pickle.dumps(metadata))
        except BaseException:
            self._give_up()
            raise
        # From here on it may have appeared whatever is answered, so that nobody discards it any more.
        if self._begun is not None:
            self._begun.detach()
        self._files = self._begun = None
        files.publish()

    def storage_meta(self) -> StorageMeta:
        """The path and the id of this save."""
        return StorageMeta(checkpoint_id=self.checkpoint_id, save_id=self.save_id)

    def _give_up(self) -> None:
        begun, self._begun, self._files = self._begun, None, None
        if begun is not None:
            begun()


class Reader(_Placed, StorageReader):  # type: ignore[misc]  # torch is not followed
    """Reads of a checkpoint what the plan of this rank needs, in parallel, straight into the tensors where possible.

    Reads what :class:`Writer` and torch's ``FileSystemWriter`` wrote, on a mount, uploaded from elsewhere or local.

    Args:
        path: absolute path in the tree; a ``checkpoint_id`` given to ``load`` takes its place.
        home: the home of the node; default is that of the environment.
        client: a client to use instead.
        threads: reads under way at the same time; each takes up to 16 MiB of memory.
    Raises:
        NotFoundError: from ``load``: there is no checkpoint; torch tells it as a ``CheckpointException``.
        CorruptError: from ``load``: a file is shorter than its metadata says.
    Cost: nothing from the source where the files are cached; else what is needed of them, rounded to 128 KiB.
    """

    def __init__(
        self,
        path: TreePath | None = None,
        *,
        home: TreePath | None = None,
        client: Client | None = None,
        threads: int = READ_THREADS,
    ) -> None:
        super().__init__()
        self._place = _Place(path, home, client)
        self.threads = _at_least_one(threads)
        self.load_id = str(uuid.uuid4())
        self._stored: dict[Any, Any] = {}

    def reset(self, checkpoint_id: TreePath | None = None) -> None:
        """Begins a new load."""
        self._stored = {}
        if checkpoint_id:
            self._place.path = _normal(checkpoint_id)
        self.load_id = str(uuid.uuid4())

    def read_metadata(self, *_: Any, **kwargs: Any) -> Metadata:
        """What the checkpoint consists of; of one rank where it is named, as ranks without collectives write it."""
        path, rank = self._place.named(), kwargs.get("rank")
        name = METADATA if rank is None else f"__{rank}{METADATA}"
        try:
            with self._place.client.open(f"{path}/{name}") as file:
                metadata = pickle.load(file)  # noqa: S301 - it is torch's format, and torch does the same
        except NotFoundError as error:
            reason = f"there is no complete checkpoint: {name} is missing"
            raise NotFoundError(f"load {path}", reason, "look with: penstock ls, or penstock ckpt ls") from error
        if getattr(metadata, "storage_meta", None) is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *_: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Keeps where everything lies."""
        if metadata.storage_data is None:
            reason = "its metadata does not say where anything is"
            raise UnsupportedError(f"load {self._place.named()}", reason, "was it written by another kind of writer?")
        self._stored = metadata.storage_data

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """The plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """The plans as they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Reads what the plan needs, and only that."""
        by_file: dict[str, list[tuple[Any, _StorageInfo]]] = {}
        for item in plan.items:
            stored = self._stored[item.storage_index]
            by_file.setdefault(f"{self._place.named()}/{stored.relative_path}", []).append((item, stored))
        read_plan(self._place.client, by_file, planner, self.threads)
        done: Future[None] = Future()
        done.set_result(None)
        return done


def _at_least_one(threads: int) -> int:
    if threads < 1:
        raise ValueError(f"threads is {threads}; at least one has to work")
    return threads


def _discard(files: SetWriter, began_in: int) -> None:
    """Discards a set, from the process that began it: a forked child has the same object and no part in it.

    What made it necessary says more than a failure of this. One that was published stays: it refuses.
    """
    if os.getpid() == began_in:
        with suppress(PenstockError):
            files.discard()


def _even_parts(items: list[WriteItem], most: int) -> list[list[WriteItem]]:
    """Deals items out to at most so many files, none empty, so that all take about equally long."""
    parts: list[list[WriteItem]] = [[] for _ in range(min(most, len(items)))]
    filled = [0] * len(parts)
    for item in sorted(items, key=_item_bytes, reverse=True):
        least = filled.index(min(filled))
        parts[least].append(item)
        filled[least] += _item_bytes(item) + 1
    return parts


def _item_bytes(item: WriteItem) -> int:
    if item.type == WriteItemType.BYTE_IO or item.tensor_data is None:
        return 0
    # What the rank has of it; the size is that of the whole tensor.
    return int(math.prod(item.tensor_data.chunk.sizes) * item.tensor_data.properties.dtype.itemsize)


def _write_file(files: SetWriter, name: str, items: list[WriteItem], planner: SavePlanner) -> list[WriteResult]:
    results = []
    with files.open(name, "wb") as stream:
        for item in items:
            start = stream.tell()
            data = planner.resolve_data(item)
            if item.type == WriteItemType.BYTE_IO:
                stream.write(data.getbuffer())
            else:
                torch.save(_alone(data), stream)
            length = stream.tell() - start
            results.append(WriteResult(item.index, length, _StorageInfo(name, start, length)))
    return results


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in memory, without what else its storage holds: that would be saved along."""
    tensor = tensor.detach().cpu()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _in_threads(work: Callable[[int], Answer], numbers: list[int], threads: int) -> list[Answer]:
    """Works on every number; raises the first failure, after those under way have ended."""
    if len(numbers) <= 1 or threads == 1:
        return [work(number) for number in numbers]
    with ThreadPoolExecutor(threads, thread_name_prefix="penstock-checkpoint") as pool:
        return list(pool.map(work, numbers))
