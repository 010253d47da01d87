"""An epoch of an ordinary PyTorch data loader over cached small files: through the mount, and on the local disk."""

from __future__ import annotations

import importlib
import importlib.util
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.baselines import local_tree
from benchmarks.compare import Spot, Work, compare, peer_spots
from benchmarks.lab import BUCKET, SMALL_BYTES, Lab, attach, node_pid
from benchmarks.measure import LeftOutError, Side, Verdict, peer_figures
from benchmarks.store import FREE, content

WHAT = "mount-loader"
SAMPLES = 1600
WORKERS = 2
BATCH = 32
WAYS = {"no-open": "without opens", "open": "passthrough"}
HOW = (
    f"torch.utils.data.DataLoader, shuffle=True, num_workers={WORKERS}, batch_size={BATCH}, the rest as it is by "
    f"default; a sample is open(path, 'rb').read() as floats between 0 and 1; {SAMPLES} files of 112 KiB"
)


class Samples:
    """A data set as people write it: a file is a sample, and becomes floats as an image does."""

    def __init__(self, directory: Path) -> None:
        self._paths = [f"{directory}/{at:06}.bin" for at in range(SAMPLES)]

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Any:
        import torch

        with open(self._paths[index], "rb") as file:  # noqa: PTH123 - the shortest way
            return torch.frombuffer(bytearray(file.read()), dtype=torch.uint8).float().div_(255)


def run(lab: Lab) -> list[Verdict]:
    if importlib.util.find_spec("torch") is None:
        raise LeftOutError("torch is not installed: `make torch` brings it, several gigabytes")
    local = lab.path("samples")
    local.mkdir()
    with ExitStack() as stack:
        store = stack.enter_context(lab.store(FREE))
        for seed in range(SAMPLES):
            store.put(BUCKET, f"{seed:06}.bin", SMALL_BYTES, seed)
            (local / f"{seed:06}.bin").write_bytes(content(SMALL_BYTES, seed))
        client = stack.enter_context(lab.node())
        spots = []
        for way, called in WAYS.items():
            attach(client, store, f"/{way}", way=way)
            client.preload(f"/{way}").wait()
            path = stack.enter_context(lab.mount(client, f"/{way}"))
            spots.append(Spot(f"penstock mount, {called}", path, {"node": node_pid(client)}))
        spots.append(Spot("local file system", local))
        spots += peer_spots(stack.enter_context(lab.peers(store)))
        names = [f"{at:06}.bin" for at in range(SAMPLES)]
        compare(spots, Work(local_tree.HOW_SMALL, lambda directory: _touch(directory, names), None), 2)
        # Imported before the first epoch, which would pay for it.
        importlib.import_module("torch.utils.data")
        sides = compare(spots, Work(HOW, _epoch, SAMPLES * SMALL_BYTES), lab.repeats * 2)
    return _verdicts(sides)


def _touch(directory: Path, names: list[str]) -> None:
    local_tree.small(directory, names, bytearray(SMALL_BYTES))


def _epoch(directory: Path) -> int:
    from torch.utils.data import DataLoader

    loader: Any = DataLoader(Samples(directory), batch_size=BATCH, shuffle=True, num_workers=WORKERS)
    return sum(batch.numel() for batch in loader)


def _verdicts(sides: list[Side]) -> list[Verdict]:
    ours, disk, others = sides[: len(WAYS)], sides[len(WAYS)], sides[len(WAYS) + 1 :]
    for side in sides:
        if not side.failure:
            side.figures["samples/s"] = SAMPLES / side.median_s

    def share(side: Side) -> float:
        return disk.median_s / side.median_s

    bar = "epoch of a PyTorch DataLoader through the mount, {}, samples per second ÷ local file system"
    return [
        Verdict(bar.format(called), share(side), "≥", 0.97, sides=[side, disk], peers=peer_figures(others, share))
        for called, side in zip(WAYS.values(), ours, strict=True)
    ]
