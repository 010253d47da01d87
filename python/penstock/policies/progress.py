"""How fast work goes and when it will be done, from samples. The caller passes the time in."""

from __future__ import annotations

from collections import deque

__all__ = ["WINDOW_S", "RateMeter", "eta_s"]

WINDOW_S = 15.0
"""The rate is that of the last so many seconds: long enough to be calm, short enough to be true."""

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
    """Seconds until nothing is left: the slower of the two counts; ``None`` while that cannot be said."""
    if left_bytes <= 0 and left_files <= 0:
        return 0.0
    guesses = []
    if left_bytes > 0:
        guesses.append(left_bytes / bytes_per_s if bytes_per_s > 0 else None)
    if left_files > 0:
        guesses.append(left_files / files_per_s if files_per_s > 0 else None)
    known = [guess for guess in guesses if guess is not None]
    return max(known) if known else None
