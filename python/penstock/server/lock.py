"""One node a home: the lock that says so, and the sockets and facts that its holder keeps in the run directory."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from typing import TYPE_CHECKING, Any

from penstock.errors import BusyError, DiskError
from penstock.home import write_atomically

if TYPE_CHECKING:
    from penstock.home import Home

__all__ = ["AlreadyRunningError", "NodeLock"]

HANDOVER_S = 15.0
"""How long a start waits for a node that no longer answers, because it is draining, to let go of the lock."""

_STEP_S = 0.05


class AlreadyRunningError(BusyError):
    """Another node holds the home and answers."""


class NodeLock:
    """The lock of a home; taking it also clears away what a dead node left."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._descriptor: int | None = None

    def acquire(self, handover_s: float = HANDOVER_S) -> None:
        """Takes the lock.

        Raises:
            AlreadyRunningError: a node runs on this home; the message has its pid.
            DiskError: the lock file cannot be made.
        """
        path = self._home.lock_file
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DiskError(f"lock {path}", str(error.strerror), "fix the rights of the run directory") from None
        deadline = time.monotonic() + handover_s
        while not self._taken(descriptor):
            if answers(self._home) or time.monotonic() >= deadline:
                os.close(descriptor)
                raise self._refusal()
            time.sleep(_STEP_S)
        os.truncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        self._descriptor = descriptor
        self._clear()

    def announce(self, facts: dict[str, Any]) -> None:
        """Writes ``node.json``: the node is ready."""
        write_atomically(self._home.node_file, json.dumps({"pid": os.getpid(), **facts}), durable=False)

    def release(self) -> None:
        """Takes sockets and facts away and lets go of the lock."""
        if self._descriptor is not None:
            self._clear()
            os.close(self._descriptor)
            self._descriptor = None

    def _taken(self, descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _clear(self) -> None:
        for path in (self._home.data_socket, self._home.control_socket, self._home.node_file):
            path.unlink(missing_ok=True)

    def _refusal(self) -> AlreadyRunningError:
        holder = self._home.lock_file.read_text(encoding="ascii", errors="replace").strip() or "unknown"
        return AlreadyRunningError(
            f"start a node on {self._home.name}",
            "another node runs on this home",
            "use it, stop it with `penstock down`, or set PENSTOCK_HOME to another directory",
            pid=holder,
        )


def answers(home: Home) -> bool:
    """Whether somebody listens on the control socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(home.control_socket))
        except OSError:
            return False
    return True
