"""Checkpoints of ``torch.distributed.checkpoint``, read by ranges.

>>> import torch.distributed.checkpoint as dcp
>>> from penstock.integrations.dcp import Reader
>>> dcp.load(state, storage_reader=Reader("/runs/exp1/step-1000"))
"""

from __future__ import annotations

import os
import pickle
import threading
import uuid
from typing import TYPE_CHECKING, Any

from penstock.errors import InvalidInputError, NotFoundError, UnsupportedError
from penstock.policies.attachments import check_tree_path

try:
    from torch.distributed.checkpoint import StorageReader
    from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
    from torch.futures import Future
except ImportError as error:
    raise ImportError(f"penstock.integrations.dcp needs PyTorch 2.6 or newer: pip install torch ({error})") from error

from penstock.integrations.checkpoint_reads import read_plan

if TYPE_CHECKING:
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner

    from penstock.client import Client
    from penstock.client.client import TreePath

__all__ = ["Reader"]

METADATA = ".metadata"
READ_THREADS = 4


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


def _is_tree_path(checkpoint_id: TreePath) -> bool:
    try:
        _normal(checkpoint_id)
    except InvalidInputError:
        return False
    return True


class Reader(StorageReader):  # type: ignore[misc]  # torch is not followed
    """Reads of a checkpoint what the plan of this rank needs, in parallel, straight into the tensors where possible.

    Reads what torch's ``FileSystemWriter`` wrote, on a mount or uploaded from elsewhere.

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

    @property
    def checkpoint_id(self) -> str | None:
        """The path of the checkpoint."""
        return self._place.path

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: TreePath) -> bool:
        """Whether it is a path of the tree."""
        return _is_tree_path(checkpoint_id)


def _at_least_one(threads: int) -> int:
    if threads < 1:
        raise ValueError(f"threads is {threads}; at least one has to work")
    return threads
