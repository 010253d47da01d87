"""Four real ranks that talk over gloo on loopback: ``python ranks.py RENDEZVOUS`` takes jobs on its standard input.

A job is a line of JSON, done by every rank that it names; the answer is a line with what each of them returned, or the
failure that it met. Torch is imported once and the ranks are forked: importing it takes longer than all jobs.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import sys
import threading
import warnings
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from penstock.integrations.dcp import Reader, Writer

WORLD = 4
ROWS, COLUMNS = 4080, 512
TENSOR_BYTES = ROWS * COLUMNS * 4
NAMES = ("weight", "momentum")


class RankFailedError(Exception):
    """What one rank meets in the middle of its save."""


class FailingPlanner(dcp.DefaultSavePlanner):
    """Fails at the last tensor, when others have been written."""

    def resolve_data(self, write_item: Any) -> Any:
        if write_item.index.fqn == NAMES[-1]:
            raise RankFailedError("out of memory")
        return super().resolve_data(write_item)


class Ranks:
    """What one rank knows."""

    def __init__(self, rank: int, rendezvous: str) -> None:
        self.rank = rank
        dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=WORLD)
        # All ranks take part in making each of them.
        self.meshes = {size: DeviceMesh("cpu", list(range(size))) for size in (1, 2, 3, 4)}

    def do(self, job: dict[str, Any]) -> Any:
        size = job.get("ranks", WORLD)
        if self.rank >= size:
            return None
        return getattr(self, job.pop("do"))(self.meshes[size], **job)

    def save(
        self, mesh: DeviceMesh, path: str, home: str, how: str = "save", failing: int | None = None, **_: Any
    ) -> None:
        writer = Writer(path, home=home) if how != "plain" else dcp.FileSystemWriter(path, overwrite=False)
        planner = FailingPlanner() if failing == self.rank else dcp.DefaultSavePlanner()
        options: dict[str, Any] = {"storage_writer": writer, "planner": planner, "process_group": mesh.get_group()}
        if how in ("thread", "process"):
            kind = AsyncCheckpointerType[how.upper()]
            dcp.async_save(self.state(mesh, 1.0), async_checkpointer_type=kind, **options).result(timeout=60)
        else:
            dcp.save(self.state(mesh, 1.0), **options)

    def load(self, mesh: DeviceMesh, path: str, home: str, plain: bool = False, **_: Any) -> bool:
        """Whether what was loaded is what was saved."""
        state, expected = self.state(mesh, 0.0), self.state(mesh, 1.0)
        reader = dcp.FileSystemReader(path) if plain else Reader(path, home=home)
        dcp.load(state, storage_reader=reader, process_group=mesh.get_group())
        same = [torch.equal(state[name].to_local(), expected[name].to_local()) for name in NAMES]
        return all(same) and bool(torch.equal(state["norm"], expected["norm"])) and state["step"] == expected["step"]

    def state(self, mesh: DeviceMesh, factor: float) -> dict[str, Any]:
        """Two tensors that the ranks share out by rows, one that all of them have, and a number."""
        first, last = (ROWS * (mesh.get_local_rank() + more) // mesh.size() for more in (0, 1))
        state: dict[str, Any] = {"norm": torch.arange(1000.0) * factor, "step": int(7 * factor)}
        for number, name in enumerate(NAMES):
            values = torch.arange(first * COLUMNS, last * COLUMNS, dtype=torch.float32) + number
            local = (values * factor).reshape(last - first, COLUMNS)
            shape = torch.Size((ROWS, COLUMNS))
            state[name] = DTensor.from_local(local, mesh, [Shard(0)], shape=shape, stride=(COLUMNS, 1))
        return state


def work(rank: int, rendezvous: str, jobs: Connection) -> None:
    # What OpenMP would start does not survive a fork, and nothing here is large enough to need it.
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    ranks = Ranks(rank, rendezvous)
    while True:
        try:
            job = jobs.recv()
        except EOFError:
            for child in multiprocessing.active_children():
                child.terminate()
            dist.destroy_process_group()
            return
        try:
            jobs.send({"answer": ranks.do(job)})
        except BaseException as failure:
            jobs.send({"failure": f"{type(failure).__name__}: {failure}"})


def main(rendezvous: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    pipes: list[Connection] = []
    children = []
    for rank in range(WORLD):
        here, there = Pipe()
        if child := os.fork():
            there.close()
            pipes.append(here)
            children.append(child)
            continue
        for pipe in (*pipes, here):
            pipe.close()
        # The jobs are read by the first process alone.
        with contextlib.suppress(KeyboardInterrupt):
            os.close(sys.stdin.fileno())
            work(rank, rendezvous, there)
        os._exit(0)
    for line in sys.stdin:
        for pipe in pipes:
            pipe.send(json.loads(line))
        print(json.dumps([pipe.recv() for pipe in pipes]), flush=True)
    for pipe in pipes:
        pipe.close()
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    assert threading.active_count() == 1, "nothing that a fork would lose"
    main(sys.argv[1])
