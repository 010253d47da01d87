"""Telling the result: a table for people, a file with machine and commit for later."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.measure import Side, Verdict

RESULTS = Path(__file__).parent / "results"


def show(verdict: Verdict) -> None:
    """Prints one bar with both sides, and a row for each peer."""
    mark = "met   " if verdict.met else "MISSED"
    bar = f"bar {verdict.relation} {verdict.limit:g}{verdict.unit}"
    print(f"{mark} {verdict.bar}: {verdict.value:.3g}{verdict.unit} ({bar})")
    told = {""}
    for side in verdict.sides:
        _show_side(side, told)
    for peer in verdict.peers:
        if peer.value is None:
            print(f"  peer   {peer.side.name:<22} gave up: {peer.side.failure}")
        else:
            _show_side(peer.side, told, f"  peer   {peer.side.name:<22} {peer.value:.3g}{verdict.unit};")
    if verdict.note:
        print(f"         note: {verdict.note}")
    print(flush=True)


def _show_side(side: Side, told: set[str], begin: str = "") -> None:
    """One row, and below it how it was done unless a row above has told it."""
    spread = f"{min(side.seconds):.4g}–{max(side.seconds):.4g}" if side.seconds else "–"
    median = f"{side.median_s:.4g} s ({spread}, {len(side.seconds)}x)" if side.seconds else ""
    cpu = ", ".join(f"{name} {value:.2f}" for name, value in side.cpu_medians().items())
    figures = "; ".join(f"{name} {value:.4g}" for name, value in side.figures.items())
    begin = begin or f"         {side.name:<22}"
    print(f"{begin} {median}{f'  cpu s: {cpu}' if cpu else ''}{f'  {figures}' if figures else ''}")
    if side.how not in told:
        told.add(side.how)
        print(f"         {'':<22} {side.how}")


def keep(verdicts: list[Verdict], circumstances: dict[str, object]) -> Path:
    """Writes the numbers with machine, commit and what else the run was; returns the file."""
    now = datetime.now(tz=UTC)
    document = {
        "when": now.isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD") + ("+" if _git("status", "--porcelain", "--untracked-files=no") else ""),
        "machine": machine(),
        **circumstances,
        "bars": [asdict(verdict) | {"met": verdict.met} for verdict in verdicts],
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{now:%Y%m%dT%H%M%SZ}.json"
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path


def machine() -> dict[str, object]:
    """What the figures depend on."""
    models = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = next((line.split()[1] for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), "0")
    return {
        "processor": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": int(memory) * 1024,
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def _git(*arguments: str) -> str:
    result = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=RESULTS.parent)
    return result.stdout.strip()
