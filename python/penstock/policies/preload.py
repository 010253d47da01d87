"""How a preload goes: what one batch holds, how much is under way, when to wait for the rate limit."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["BATCH_MAX_BYTES", "BATCH_MAX_FILES", "RateLimit", "batch_max_bytes", "batches"]

BATCH_MAX_FILES = 64
"""One round trip to the core fetches so many small files in parallel; more would only delay progress and cancel."""

BATCH_MAX_BYTES = 64 << 20
"""A batch ends here, so that a checkpoint is at most some seconds of work behind. A larger file is one by itself."""


def batches(
    files: Iterable[tuple[str, int]], max_files: int = BATCH_MAX_FILES, max_bytes: int = BATCH_MAX_BYTES
) -> Iterator[list[tuple[str, int]]]:
    """Splits (path, size) pairs, in order, into batches within both bounds.

    A file above ``max_bytes`` makes a batch of its own, so that small files never wait behind it.
    """
    batch: list[tuple[str, int]] = []
    batch_bytes = 0
    for path, size in files:
        if batch and (len(batch) >= max_files or batch_bytes + size > max_bytes):
            yield batch
            batch, batch_bytes = [], 0
        batch.append((path, size))
        batch_bytes += size
    if batch:
        yield batch


def batch_max_bytes(max_bytes_per_s: int | None) -> int:
    """Bytes of a batch under a rate limit: a second's worth, so that the flow is even; at least one file goes."""
    return BATCH_MAX_BYTES if not max_bytes_per_s else min(BATCH_MAX_BYTES, max_bytes_per_s)


class RateLimit:
    """A token bucket of bytes. It keeps no clock: the caller passes the time in.

    What a batch may move is charged before it starts, and what it did not move is given back afterwards. A file
    larger than a second's worth overdraws; those after it wait until it is paid back, and the average holds.
    """

    def __init__(self, max_bytes_per_s: int | None, now: float) -> None:
        self._rate = max_bytes_per_s
        self._free_at = now

    def charge(self, size_bytes: int, now: float) -> None:
        """Takes note of bytes that will be moved, or with a negative number were not."""
        if self._rate:
            self._free_at = max(self._free_at, now) + size_bytes / self._rate

    def wait_s(self, now: float) -> float:
        """Seconds to wait before the next batch may start; 0 without a limit."""
        return max(0.0, self._free_at - now) if self._rate else 0.0
