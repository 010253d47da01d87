"""How the kernel is to get at the bytes of each kernel mount. Sources are asked for it, and none is waited for long."""

from __future__ import annotations

import queue
import threading
import time
from typing import TYPE_CHECKING, Any

from penstock.errors import PenstockError
from penstock.policies.mounts import Sample, Way, choose_way, depends_on_files

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["choose_ways"]

SAMPLE_PATIENCE_S = 2.0
"""Longest wait for all sources together: a mount must not wait for one that does not answer."""

SAMPLES_AT_ONCE = 8


def choose_ways(
    paths: Sequence[str], covering: Callable[[str], dict[str, Any] | None], sample: Callable[[str], Sample]
) -> dict[str, Way]:
    """The way of each path of the tree that is to be mounted, and why.

    Args:
        paths: of the tree.
        covering: the document of the attachment that a path belongs to.
        sample: asks a source for some of the files below a path.
    Cost: one request to the source of each path whose way depends on its files, within :data:`SAMPLE_PATIENCE_S`.
    """
    documents = {path: covering(path) for path in paths}
    asked = [path for path, known in documents.items() if known and depends_on_files(known)]
    samples = _samples(asked, sample)
    ways = {}
    for path, document in documents.items():
        if document is None:
            ways[path] = Way("open", "it only leads to what is attached")
        else:
            ways[path] = choose_way(document, samples.get(path))
    return ways


def _samples(paths: Sequence[str], sample: Callable[[str], Sample]) -> dict[str, Sample]:
    """What could be learnt in time."""
    found: dict[str, Sample] = {}
    todo: queue.SimpleQueue[str] = queue.SimpleQueue()
    for path in paths:
        todo.put(path)
    deadline = time.monotonic() + SAMPLE_PATIENCE_S

    def work() -> None:
        while time.monotonic() < deadline:
            try:
                path = todo.get_nowait()
            except queue.Empty:
                return
            try:
                found[path] = sample(path)
            except PenstockError:
                continue  # who reads there is told

    workers = [threading.Thread(target=work, name="samples", daemon=True) for _ in paths[:SAMPLES_AT_ONCE]]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(max(0.0, deadline - time.monotonic()))
    return dict(found)
