"""How fast work goes and when it will be done, from samples. The caller passes the time in."""

from __future__ import annotations

from collections import deque

__all__ = ["FILE_COST_BYTES", "WINDOW_S", "RateMeter", "eta_s"]

WINDOW_S = 15.0
"""The rate is that of the last so many seconds: long enough to be calm, short enough to be true."""

FILE_COST_BYTES = 64 << 10
"""A file costs about as much as so many bytes besides its own: a question, an open, a line in the index."""

_SAMPLES_MAX = 64


class RateMeter:
    """Bytes and files per second over the last :data:`WINDOW_S`, in bounded memory."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int, int]] = deque(maxlen=_SAMPLES_MAX)

    def note(self, now: float, done_bytes: int, done_files: int) -> None:
        """Takes a sample of the running totals; samples closer than the window allows replace each other."""
        spacing = WINDOW_S / _SAMPLES_MAX
        if len(self._samples) >= 2 and now - self._samples[-2][0] < spacing:
            self._samples.pop()
        self._samples.append((now, done_bytes, done_files))
        while len(self._samples) > 2 and now - self._samples[1][0] > WINDOW_S:
            self._samples.popleft()

    def bytes_per_s(self) -> float:
        """0 before two samples are known."""
        return self._rate(1)

    def files_per_s(self) -> float:
        """0 before two samples are known."""
        return self._rate(2)

    def _rate(self, column: int) -> float:
        if len(self._samples) < 2:
            return 0.0
        first, last = self._samples[0], self._samples[-1]
        elapsed = last[0] - first[0]
        return max(0.0, (last[column] - first[column]) / elapsed) if elapsed > 0 else 0.0


def eta_s(left_bytes: int, left_files: int, bytes_per_s: float, files_per_s: float) -> float | None:
    """Seconds until nothing is left; ``None`` while that cannot be said.

    Neither count alone can say it: one large file among thousands makes the files look slow, and thousands of small
    ones the bytes. Both are taken together, each file at :data:`FILE_COST_BYTES` besides its bytes.
    """
    left = max(0, left_bytes) + max(0, left_files) * FILE_COST_BYTES
    if left <= 0:
        return 0.0
    speed = bytes_per_s + files_per_s * FILE_COST_BYTES
    return left / speed if speed > 0 else None
