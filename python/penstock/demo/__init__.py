"""The demo: the main job against a simulated store, measured with and without Penstock, in under a minute.

Owns everything it starts (store, node, files) and takes all of it down again, also when it is interrupted. Needs no
account, no root and no configuration, and touches no home but its own.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from penstock.demo.measurements import Measurement
    from penstock.demo.progress import Progress

__all__ = ["INTERRUPTED", "run"]

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


def run(json: bool = False) -> int:
    """Plays the demo and prints what it measured.

    Args:
        json: print one JSON document instead of a table; progress goes to standard error in any case.

    Returns:
        0, or 130 when it was interrupted; everything is cleaned up either way.

    Raises:
        PenstockError: a part did not start, or an answer was an error.
    """
    from rich.console import Console

    from penstock.demo import report
    from penstock.demo.progress import Progress

    start = time.monotonic()
    try:
        with _terminable(), Progress(Console(stderr=True)) as progress:
            rows, requests, no_mount = _play(progress)
    except KeyboardInterrupt:
        print("interrupted; everything is cleaned up", file=sys.stderr)  # noqa: T201
        return INTERRUPTED
    seconds = time.monotonic() - start
    if json:
        from json import dumps

        print(dumps(report.document(rows, requests, seconds, no_mount), indent=2))  # noqa: T201
    else:
        report.show(Console(), rows, seconds, no_mount)
    return 0


def _play(progress: Progress) -> tuple[list[Measurement], dict[str, int], str]:
    from penstock.demo import measurements, report
    from penstock.demo.scene import Scene

    rows = []
    with Scene() as scene:
        progress.step(f"start a simulated store: {report.SIMULATED}")
        scene.open_store()
        progress.step("put 512 files of 112 KiB and one of 256 MiB into it")
        scene.fill_store()
        progress.step("start a node and attach the store")
        scene.start_node()
        progress.step("mount it")
        scene.mount()
        for plan in measurements.plan(scene):
            progress.step(f"{plan.group}: {'Penstock, ' if plan.ours else ''}{plan.title} ({plan.how})")
            row = plan.measure()
            progress.done(row.seconds)
            rows.append(row)
        requests = scene.counters()
        progress.step("clean up")
    return rows, requests, scene.no_mount


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """A TERM cleans up as Ctrl-C does, where this thread may say so."""

    def interrupt(_number: int, _frame: FrameType | None) -> Any:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
