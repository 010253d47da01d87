"""What each kind of job does to a batch of files, and what it counts."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from penstock.errors import (
    CorruptError,
    NotFoundError,
    PenstockError,
    RateLimitedError,
    TimedOutError,
    UnavailableError,
)
from penstock.jobs.document import Counters, Failure, JobKind

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence

    from penstock.jobs.tree import Tree

__all__ = ["ATTEMPTS_MAX", "BatchResult", "GoneError", "InterruptedByStop", "persistently", "work"]

ATTEMPTS_MAX = 6
"""Tries of what failed transiently: with the pauses between them a store may be away for half a minute and longer."""

_FIRST_PAUSE_S = 1.0
_TRANSIENT = (UnavailableError, TimedOutError, RateLimitedError)

Answer = TypeVar("Answer")


class BatchResult(NamedTuple):
    """What one batch did."""

    counters: Counters
    failures: list[Failure]


class GoneError(Exception):
    """The path of the job is not in the tree any more; carries the core's words."""

    def __init__(self, error: PenstockError) -> None:
        super().__init__(str(error))
        self.error = error


class InterruptedByStop(Exception):  # noqa: N818
    """The job was asked to stop while it waited."""


class _Outcome(NamedTuple):
    """One file that was done: its size where it is known better now, and what its kind counts."""

    amounts: dict[str, int]
    size: int | None = None


def work(kind: JobKind, tree: Tree, root: str, files: Sequence[tuple[str, int]], stop: threading.Event) -> BatchResult:
    """Does one batch, trying again what failed transiently.

    Args:
        kind: what to do.
        tree: the connection of this thread.
        root: path of the job; where it is gone, the job fails as a whole.
        files: (path, size) each.
        stop: set when the job is to stop.
    Raises:
        GoneError: ``root`` is not in the tree any more.
        InterruptedByStop: ``stop`` was set during a pause.
    """
    result = BatchResult(Counters(), [])
    left = list(files)
    pause_s = _FIRST_PAUSE_S
    for attempt in range(ATTEMPTS_MAX):
        failed: list[tuple[str, int]] = []
        outcomes = _ACTS[kind](tree, [path for path, _ in left])
        for (path, size), outcome in zip(left, outcomes, strict=True):
            if isinstance(outcome, _Outcome):
                known = size if outcome.size is None else outcome.size
                result.counters.add(Counters(1, known, 0, outcome.amounts))
            elif isinstance(outcome, _TRANSIENT) and attempt + 1 < ATTEMPTS_MAX:
                failed.append((path, size))
            elif isinstance(outcome, NotFoundError) and _is_there(tree, root) and kind is not JobKind.PRELOAD:
                # It left the source after it was listed: there is nothing of it to evict or to check any more.
                result.counters.add(Counters(1, size, 0, {}))
            else:
                result.counters.failed_files += 1
                result.failures.append(Failure(path, outcome.code, str(outcome)))
        if not failed:
            break
        left = failed
        pause_s = _pause(stop, pause_s)
    return result


def persistently(ask: Callable[[], Answer], stop: threading.Event) -> Answer:
    """Asks again, with growing pauses, while the answer is a transient failure.

    Raises:
        PenstockError: the last failure.
        InterruptedByStop: ``stop`` was set during a pause.
    """
    pause_s = _FIRST_PAUSE_S
    for _ in range(ATTEMPTS_MAX - 1):
        try:
            return ask()
        except _TRANSIENT:
            pause_s = _pause(stop, pause_s)
    return ask()


def _pause(stop: threading.Event, pause_s: float) -> float:
    # Spread over half of the pause, so that batches which failed together do not come back together.
    if stop.wait(pause_s * (0.5 + random.random() / 2)):  # noqa: S311
        raise InterruptedByStop
    return pause_s * 2


def _preload(tree: Tree, paths: list[str]) -> list[_Outcome | PenstockError]:
    return [
        answer if isinstance(answer, PenstockError) else _Outcome({"fetched_bytes": answer[1]}, answer[0])
        for answer in tree.prefetch(paths)
    ]


def _evict(tree: Tree, paths: list[str]) -> list[_Outcome | PenstockError]:
    return [
        answer if isinstance(answer, PenstockError) else _Outcome({"freed_bytes": answer})
        for answer in tree.evict(paths)
    ]


def _verify(tree: Tree, paths: list[str]) -> list[_Outcome | PenstockError]:
    outcomes: list[_Outcome | PenstockError] = []
    for path, answer in zip(paths, tree.verify(paths), strict=True):
        if isinstance(answer, PenstockError):
            outcomes.append(answer)
            continue
        pages, bad, repaired = answer
        if bad > repaired:
            reason = f"{bad} pages were damaged and dropped, {bad - repaired} of them could not be fetched again"
            outcomes.append(CorruptError(f"verify {path}", reason, "check the source, then retry the job"))
        else:
            outcomes.append(_Outcome({"pages": pages, "bad_pages": bad, "repaired_pages": repaired}))
    return outcomes


_ACTS: dict[JobKind, Callable[[Tree, list[str]], list[_Outcome | PenstockError]]] = {
    JobKind.PRELOAD: _preload,
    JobKind.EVICT: _evict,
    JobKind.VERIFY: _verify,
}


def _is_there(tree: Tree, root: str) -> bool:
    """Tells a file that vanished from a path that is not attached any more.

    Raises:
        GoneError: it is the path.
    """
    try:
        tree.stat(root)
    except NotFoundError as error:
        raise GoneError(error) from None
    except PenstockError:
        return True
    return True
