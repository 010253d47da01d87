"""Ranks that save and load checkpoints together: ``python -m benchmarks.ranks RANK WORLD RENDEZVOUS``.

Each takes jobs on its standard input, a line of JSON each, and answers each with the seconds that it took.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from benchmarks.store import REPOSITORY

WORLD = 4


class Crew:
    """Processes that do a job together."""

    def __init__(self, rendezvous: Path) -> None:
        command = [sys.executable, "-m", "benchmarks.ranks"]
        pipe = subprocess.PIPE
        self._ranks = [
            subprocess.Popen(
                [*command, str(rank), str(WORLD), str(rendezvous)], stdin=pipe, stdout=pipe, text=True, cwd=REPOSITORY
            )
            for rank in range(WORLD)
        ]

    def __call__(self, do: str, *, ranks: int = WORLD, **job: Any) -> float:
        """Seconds that the slowest took, without making what is saved."""
        for rank in self._ranks:
            assert rank.stdin
            rank.stdin.write(json.dumps({"do": do, "ranks": ranks, **job}) + "\n")
            rank.stdin.flush()
        return max(self._answer(rank) for rank in self._ranks)

    def pids(self) -> dict[str, int]:
        """Their processes, by the name of their processor time."""
        return {f"rank {number}": rank.pid for number, rank in enumerate(self._ranks)}

    def stop(self) -> None:
        """Ends them."""
        for rank in self._ranks:
            rank.communicate(timeout=60)

    @staticmethod
    def _answer(rank: subprocess.Popen[str]) -> float:
        assert rank.stdout
        line = rank.stdout.readline()
        if not line:
            raise RuntimeError(f"a rank ended with exit code {rank.wait()}")
        return float(json.loads(line))


class Rank:
    """One of them; a tensor is shared out by rows."""

    def __init__(self, rank: int, world: int, rendezvous: str) -> None:
        import torch.distributed as dist
        from torch.distributed.device_mesh import DeviceMesh

        dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
        self.rank = rank
        self.meshes = {size: DeviceMesh("cpu", list(range(size))) for size in range(2, world + 1)}
        self.saved: dict[str, Any] = {}

    def do(self, job: dict[str, Any]) -> float:
        """Seconds from when all were ready until it was done here."""
        import torch.distributed as dist
        import torch.distributed.checkpoint as dcp

        mesh = self.meshes[job["ranks"]]
        if self.rank >= mesh.size():
            return 0.0
        storage, state = self._storage(job), self._state(mesh, job["tensors"], job["rows"], full=job["do"] == "save")
        dist.barrier(mesh.get_group())
        start = time.perf_counter()
        if job["do"] == "save":
            dcp.save(state, storage_writer=storage, process_group=mesh.get_group())
        else:
            dcp.load(state, storage_reader=storage, process_group=mesh.get_group())
        seconds = time.perf_counter() - start
        if job["do"] == "load":
            self._check(mesh, state)
        return seconds

    @staticmethod
    def _storage(job: dict[str, Any]) -> Any:
        import torch.distributed.checkpoint as dcp

        from penstock.integrations.dcp import Reader, Writer

        if job["home"] is None:
            return (dcp.FileSystemWriter if job["do"] == "save" else dcp.FileSystemReader)(job["path"])
        return (Writer if job["do"] == "save" else Reader)(job["path"], home=job["home"])

    def _state(self, mesh: Any, tensors: int, rows: int, *, full: bool) -> dict[str, Any]:
        import torch
        from torch.distributed.tensor import DTensor, Shard

        first, last = (rows * (mesh.get_local_rank() + more) // mesh.size() for more in (0, 1))
        state = {}
        for number in range(tensors):
            if full:
                local = torch.arange(first * 1024 + number, last * 1024 + number, dtype=torch.int32)
            else:
                local = torch.zeros((last - first) * 1024, dtype=torch.int32)
            shape = torch.Size((rows, 1024))
            state[f"layer{number}"] = DTensor.from_local(
                local.reshape(-1, 1024), mesh, [Shard(0)], shape=shape, stride=(1024, 1)
            )
        return state

    @staticmethod
    def _check(mesh: Any, state: dict[str, Any]) -> None:
        for number, tensor in enumerate(state.values()):
            local = tensor.to_local()
            first = local.shape[0] * mesh.get_local_rank() * 1024
            assert int(local[0, 0]) == first + number, "the wrong rows"
            assert int(local[-1, -1]) == first + number + local.numel() - 1, "the wrong rows"


def serve(rank: int, world: int, rendezvous: str) -> None:
    import torch.distributed as dist

    warnings.simplefilter("ignore")
    worker = Rank(rank, world, rendezvous)
    for line in sys.stdin:
        print(json.dumps(worker.do(json.loads(line))), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
