"""How commands reach the node of this home; most start one where none runs."""

from __future__ import annotations

import contextlib
import os
import select
import time
from typing import TYPE_CHECKING

from penstock.client.control import Control
from penstock.client.launch import running_pid as pid_of
from penstock.client.launch import start_node
from penstock.errors import TimedOutError
from penstock.home import locate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from penstock.client import Client

__all__ = [
    "client",
    "control",
    "exit_of",
    "running_pid",
    "start",
    "version",
    "wait_for_exit",
    "wait_until_stopped",
]

EXIT_TIMEOUT_S = 5.0
"""Longest wait for a process that has nothing left to do but to end."""

_STEP_S = 0.05


def control(*, start: bool = True) -> Control:
    """The control API of the node; one is started where none runs, unless told otherwise."""
    home = locate()
    if start and pid_of(home) is None:
        start_node(home)
    return Control(home.control_socket)


def client(*, start: bool = True) -> Client:
    """A client of the node, as Python programs have it."""
    from penstock.client import connect

    return connect(start=start)


def start(settings: Sequence[str]) -> None:
    """Starts the node with these settings on top of its configuration."""
    start_node(locate(), settings)


def running_pid() -> int | None:
    """Process id of the node of this home; ``None`` where none runs."""
    return pid_of(locate())


def exit_of(pid: int) -> int | None:
    """What :func:`wait_for_exit` takes; ``None`` where the process is not to be seen from here."""
    with contextlib.suppress(OSError):
        return os.pidfd_open(pid)
    return None


def wait_for_exit(process: int | None) -> None:
    """Waits a little for a node that has let go of its home to end: until then it keeps a disk from being unmounted."""
    if process is not None:
        select.select([process], [], [], EXIT_TIMEOUT_S)
        os.close(process)


def wait_until_stopped(timeout_s: float) -> None:
    """Waits until the node has let go of its home.

    Raises:
        TimedOutError: it has not within the time.
    """
    import fcntl

    home = locate()
    deadline = time.monotonic() + timeout_s
    with contextlib.suppress(FileNotFoundError), home.lock_file.open("rb") as stream:
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    reason = f"it still runs after {timeout_s:.0f} s"
                    raise TimedOutError("stop the node", reason, f"look at {home.log_file}") from None
                time.sleep(_STEP_S)
            else:
                return


def version() -> str:
    """Version of this client."""
    from penstock._native import VERSION

    return str(VERSION)
