"""Leaving the process that started a node, so that no ``os.wait()`` of a user's program ever waits for the node."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["detached"]


def detached(run: Callable[[Callable[[], None]], int]) -> int:
    """Runs a node in a child with a session of its own, which is left behind once it answers.

    Call it before there are threads: it forks. SIGTERM meanwhile ends both.

    Args:
        run: the life of the node; calls what it is given once the node answers, and returns its exit code.
    Returns:
        Here, 0 once the node answers, or its exit code where it ended before that; in the child, its exit code.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.setsid()
        return run(lambda: _answer(writing))
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
    os.close(writing)
    if os.read(reading, 1):
        return 0
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _answer(writing: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # who started us is gone
        os.write(writing, b"1")
    os.close(writing)
    # Nobody reads what is printed from now on.
    os.dup2(2, 1)
