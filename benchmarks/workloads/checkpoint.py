"""A checkpoint of 1 GiB by ``torch.save`` through a mount: how long training waits, and until the source has it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.baselines import raw_upload
from benchmarks.lab import BUCKET, Lab, attach, node_pid
from benchmarks.measure import LeftOutError, Side, Step, Verdict, back_memory, take_turns
from benchmarks.store import LINK_BYTES_PER_S, SLOW, Store, content
from benchmarks.workloads.write import numbered

if TYPE_CHECKING:
    from penstock.client import Client

WHAT = "checkpoint"
TENSORS = 32
TENSOR_BYTES = 32 << 20
TOTAL = TENSORS * TENSOR_BYTES
REPEATS_MAX = 3
"""Each takes several gigabytes of disk and half a minute."""
CACHE = {"cache__size": "6GiB", "cache__free_space_floor": "0"}
"""Of a disk that is nearly full, too."""
HOW_SAVE = "torch.save(state, path) of 32 tensors of 32 MiB"
HOW_LOAD = "torch.load(path, weights_only=True)"


def run(lab: Lab) -> list[Verdict]:
    state = some_state()
    repeats = min(lab.repeats, REPEATS_MAX)
    back_memory(lab.directory, 3 * TOTAL)
    with lab.store(SLOW) as store, lab.node(**CACHE) as client:
        store.put(BUCKET, "there", 1, seed=1)
        attach(client, store, "/runs", writable=True)
        with lab.mount(client, "/runs") as mounted:
            verdicts = _stall(lab, client, store, mounted, state, repeats)
            verdicts += _until_stored(lab, client, store, mounted, state, repeats)
    return verdicts


def some_state() -> dict[str, Any]:
    """1 GiB of tensors.

    Raises:
        LeftOutError: there is no torch.
    """
    try:
        import torch
    except ImportError:
        raise LeftOutError("torch is not installed: make torch") from None
    tensors = (bytearray(content(TENSOR_BYTES, number)) for number in range(TENSORS))
    return {f"layer{number}": torch.frombuffer(tensor, dtype=torch.int32) for number, tensor in enumerate(tensors)}


def _save(state: dict[str, Any], path: Path, *, synced: bool) -> None:
    import torch

    torch.save(state, path)
    if synced:
        for each in (path, path.parent):
            descriptor = os.open(each, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


def _load(path: Path) -> int:
    import torch

    return sum(tensor.nbytes for tensor in torch.load(path, weights_only=True).values())


def _emptied(client: Client, mounted: Path) -> None:
    """Nothing waits, and what was written before makes room."""
    for path in mounted.glob("*.pt"):
        path.unlink()
    client.persist("/runs")


def _stall(lab: Lab, client: Client, store: Store, mounted: Path, state: dict[str, Any], repeats: int) -> list[Verdict]:
    local, names = lab.path("local.pt"), numbered("stall")
    ours = Side("penstock mount", f"{HOW_SAVE}, closed at local; uploaded to the slow store afterwards")
    disk = Side("local file system", f"{HOW_SAVE}, fsync of file and directory")
    one = Side("upload, one connection", raw_upload.HOW_ONE)
    steps = [
        Step(
            ours,
            lambda: _save(state, mounted / f"{next(names)}.pt", synced=False),
            prepare=lambda: _emptied(client, mounted),
        ),
        Step(disk, lambda: _save(state, local, synced=True), prepare=lambda: local.unlink(missing_ok=True)),
    ]
    take_turns(steps, repeats, {"node": node_pid(client)})
    _emptied(client, mounted)
    body = memoryview(content(TOTAL, 1))
    take_turns([Step(one, lambda: raw_upload.run(store.endpoint, BUCKET, "one", body, 1))], 1, {"remote": store.pid})
    with_mbs(ours, disk, one)
    saved = "torch.save of 1 GiB through the mount, time until it returns ÷"
    upload_too = ours.median_s / (disk.median_s + one.median_s)
    return [
        Verdict(
            f"{saved} the same on the local disk, synced", ours.median_s / disk.median_s, "≤", 1.2, "", [ours, disk]
        ),
        Verdict(f"{saved} that and an upload over one connection", upload_too, "≤", 0.1, "", [ours, disk, one]),
    ]


def _until_stored(
    lab: Lab, client: Client, store: Store, mounted: Path, state: dict[str, Any], repeats: int
) -> list[Verdict]:
    names, body = numbered("stored"), memoryview(content(TOTAL, 2))
    local = lab.path("read.pt")
    _save(state, local, synced=True)
    ours = Side("penstock mount", f"{HOW_SAVE}, then client.persist: until the source has it")
    raw = Side("raw upload", raw_upload.HOW)
    back = Side("penstock mount", f"{HOW_LOAD} of what was just saved")
    disk = Side("local file", f"{HOW_LOAD}, page cache hot")
    cold = Side("penstock mount, fresh home", f"{HOW_LOAD}, mounted by a node that has nothing")

    def until_stored() -> Path:
        path = mounted / f"{next(names)}.pt"
        _save(state, path, synced=False)
        client.persist("/runs")
        return path

    last: list[Path] = []

    def check(total: object) -> None:
        assert total == TOTAL, total

    def fresh() -> None:
        with lab.node(**CACHE) as other:
            attach(other, store, "/runs")
            with lab.mount(other, "/runs") as there:
                step = Step(cold, lambda: _load(there / last[-1].name), check=check)
                take_turns([step], 1, {"node": node_pid(other), "remote": store.pid})

    steps = [
        Step(
            ours,
            until_stored,
            prepare=lambda: _emptied(client, mounted),
            check=lambda path: last.append(Path(str(path))),
        ),
        Step(raw, lambda: raw_upload.run(store.endpoint, BUCKET, "raw", body)),
        Step(back, lambda: _load(last[-1]), check=check),
        Step(disk, lambda: _load(local), prepare=lambda: _load(local), check=check),
    ]
    for _ in range(repeats):
        take_turns(steps, 1, {"node": node_pid(client), "remote": store.pid})
        fresh()
    with_mbs(ours, raw, back, disk, cold)
    stored = "torch.save of 1 GiB through the mount: from the first write until the source has it ÷ raw upload"
    link = Side("link", f"{LINK_BYTES_PER_S / 1e6:.0f} MB/s")
    return [
        Verdict(f"{stored} over 32 connections", ours.median_s / raw.median_s, "≤", 1.15, "", [ours, raw]),
        Verdict("reading it back at once ÷ local file", disk.median_s / back.median_s, "≥", 0.95, "", [back, disk]),
        Verdict(
            "reading it from the source with a fresh home ÷ the link",
            TOTAL / cold.median_s / LINK_BYTES_PER_S,
            "≥",
            0.9,
            "",
            [cold, link],
        ),
    ]


def with_mbs(*sides: Side) -> None:
    """Notes what each side's time means for a gigabyte."""
    for side in sides:
        side.figures["MB/s"] = TOTAL / side.median_s / 1e6
