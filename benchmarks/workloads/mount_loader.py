"""An epoch of an ordinary PyTorch data loader over cached small files: through the mount, and on the local disk."""

from __future__ import annotations

import importlib
import importlib.util
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.baselines import local_tree
from benchmarks.compare import Work
from benchmarks.lab import SMALL_BYTES, Lab
from benchmarks.measure import LeftOutError, Side, Verdict, peer_figures
from benchmarks.small_files import WAYS, everywhere

WHAT = "mount-loader"
SAMPLES = 1600
WORKERS = 2
BATCH = 32
NAMES = [f"{at:06}.bin" for at in range(SAMPLES)]
HOW = (
    f"torch.utils.data.DataLoader, shuffle=True, num_workers={WORKERS}, batch_size={BATCH}, the rest as it is by "
    f"default; a sample is open(path, 'rb').read() as floats between 0 and 1; {SAMPLES} files of 112 KiB"
)


class Samples:
    """A data set as people write it: a file is a sample, and becomes floats as an image does."""

    def __init__(self, directory: Path) -> None:
        self._paths = [f"{directory}/{name}" for name in NAMES]

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Any:
        import torch

        with open(self._paths[index], "rb") as file:  # noqa: PTH123 - the shortest way
            return torch.frombuffer(bytearray(file.read()), dtype=torch.uint8).float().div_(255)


def run(lab: Lab) -> list[Verdict]:
    if importlib.util.find_spec("torch") is None:
        raise LeftOutError("torch is not installed: `make torch` brings it, several gigabytes")
    with ExitStack() as stack:
        places = everywhere(lab, stack, NAMES)
        places.measure(Work(local_tree.HOW_SMALL, _touch, SAMPLES * SMALL_BYTES), 2)
        how = f"{HOW}; every file read just before"
        epoch = Work(how, _epoch, SAMPLES * SMALL_BYTES, prepare=_touch)
        # Imported before the first epoch, which would pay for it.
        importlib.import_module("torch.utils.data")
        return _verdicts(*places.measure(epoch, lab.repeats * 2))


def _touch(directory: Path) -> int:
    return local_tree.small(directory, NAMES, bytearray(SMALL_BYTES))


def _epoch(directory: Path) -> int:
    from torch.utils.data import DataLoader

    loader: Any = DataLoader(Samples(directory), batch_size=BATCH, shuffle=True, num_workers=WORKERS)
    return sum(batch.numel() for batch in loader)


def _verdicts(ours: list[Side], disk: Side, others: list[Side]) -> list[Verdict]:
    for side in (*ours, disk, *others):
        if not side.failure:
            side.figures["samples/s"] = SAMPLES / side.median_s

    def share(side: Side) -> float:
        return disk.median_s / side.median_s

    bar = "epoch of a PyTorch DataLoader through the mount, {}, samples per second ÷ local file system"
    peers = peer_figures(others, share)
    return [
        Verdict(bar.format(called), share(side), "≥", 0.97, sides=[side, disk], peers=peers)
        for called, side in zip(WAYS.values(), ours, strict=True)
    ]
