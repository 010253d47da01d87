"""One node a home: the lock that says so, and the sockets and facts that its holder keeps in the run directory."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock._native import end_connection
from penstock.errors import BusyError, DiskError, PenstockError
from penstock.home import write_atomically
from penstock.policies.mounts import FILE_SYSTEM, lies_in, parse_mountinfo
from penstock.server.mount_store import MountStore

if TYPE_CHECKING:
    from penstock.home import Home

__all__ = ["AlreadyRunningError", "NodeLock"]

HANDOVER_S = 15.0
"""How long a start waits for a node that no longer answers, because it is draining, to let go of the lock."""

_STEP_S = 0.05
_TABLE = Path("/proc/self/mountinfo")


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
        deadline = time.monotonic() + handover_s
        while (descriptor := self._taken()) is None:
            if self._home.node_is_dying():
                self._end_mounts()
            elif answers(self._home):
                raise self._refusal()
            if time.monotonic() >= deadline:
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
            if self._home.run_stands_in():
                self._remove_run()
            os.close(self._descriptor)
            self._descriptor = None

    def _taken(self) -> int | None:
        """The descriptor of the lock file once it is locked; ``None`` while somebody else has it."""
        path = self._home.lock_file
        try:
            # A node that left may have taken the directory with it.
            self._home.prepare_run()
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DiskError(f"lock {path}", str(error.strerror), "fix the rights of the run directory") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        if os.fstat(descriptor).st_nlink == 0:
            # Removed by who had it: the next who starts makes another one.
            os.close(descriptor)
            return None
        return descriptor

    def _end_mounts(self) -> None:
        """Ends what a node served that was killed: where it waits for itself, it cannot end before.

        Nobody else serves them: a kernel that was asked to forget a name waits for who changes that directory, who
        waits for the node.
        """
        targets = [document["target"] for document in MountStore(self._home.mounts).load()[0]]
        table = parse_mountinfo(_TABLE.read_text(encoding="utf-8", errors="surrogateescape"))
        for each in table:
            if each.kind == FILE_SYSTEM and any(lies_in(each.point, target) for target in targets):
                # Where this user may not, the refusal tells at the end that the home is in use.
                with contextlib.suppress(PenstockError):
                    end_connection(int(each.device.partition(":")[2]))

    def _clear(self) -> None:
        for path in (self._home.data_socket, self._home.control_socket, self._home.node_file):
            path.unlink(missing_ok=True)

    def _remove_run(self) -> None:
        """Removes the run directory, unless a start is under way or something of others is in it."""
        start_lock = self._home.start_lock_file
        with contextlib.suppress(OSError), start_lock.open("ab") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            start_lock.unlink()
            self._home.lock_file.unlink()
            self._home.run.rmdir()

    def _refusal(self) -> AlreadyRunningError:
        holder = ""
        with contextlib.suppress(FileNotFoundError):
            holder = self._home.lock_file.read_text(encoding="ascii", errors="replace").strip()
        return AlreadyRunningError(
            f"start a node on {self._home.name}",
            "another node runs on this home",
            "use it, stop it with `penstock down`, or set PENSTOCK_HOME to another directory",
            pid=holder or "unknown",
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
