"""Starts the node of a home where none runs, and waits until it answers: exactly one, however many start it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from penstock.client.control import Control
from penstock.errors import (
    InternalError,
    PenstockError,
    TimedOutError,
    UnavailableError,
    disk_error,
    error_from,
)

if TYPE_CHECKING:
    from penstock.home import Home

__all__ = ["START_TIMEOUT_S", "running_pid", "start_node"]

START_TIMEOUT_S = 60.0
"""A start asks no source and scans nothing; longer than this is a fault."""

STOP_TIMEOUT_S = 10.0
"""Longest wait for a start that was given up."""

EXIT_ALREADY_RUNNING = 3
_STEP_S = 0.02


def running_pid(home: Home) -> int | None:
    """Process id of the node that answers on this home; ``None`` where none does."""
    if home.node_is_dying():
        return None
    try:
        return int(Control(home.control_socket).status()["pid"])
    except UnavailableError:
        return None


def start_node(home: Home, settings: Sequence[str] = (), *, explicit: str | None = None) -> None:
    """Starts a node in a session of its own, unless one runs; returns once it answers.

    Args:
        home: whose node.
        settings: ``key=value`` each, the strongest layer of its configuration.
        explicit: the home as the caller gave it, where it is not the one of the environment.
    Raises:
        PenstockError: what the node said when it could not start; :class:`TimedOutError` when it said nothing.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    try:
        home.prepare()
        with _one_at_a_time(home, deadline):
            if not (home.node_file.exists() and running_pid(home) is not None):
                _spawn(home, settings, explicit, deadline)
    except PenstockError:
        raise
    except OSError as error:
        raise disk_error(f"start a node on {home.name}", error) from None


def _one_at_a_time(home: Home, deadline: float) -> BinaryIO:
    """Lets one process start the node while the others wait: a hundred workers cost one start, not a hundred.

    Who has the file it returns is the one, until it is closed.
    """
    while True:
        lock = None
        # A node that leaves may take the run directory with it.
        with contextlib.suppress(FileNotFoundError, BlockingIOError):
            home.prepare_run()
            lock = home.start_lock_file.open("ab")
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock.fileno()).st_nlink:
                return lock
        if lock is not None:
            lock.close()
        if time.monotonic() >= deadline:
            raise _silent(home)
        time.sleep(_STEP_S)


def _spawn(home: Home, settings: Sequence[str], explicit: str | None, deadline: float) -> None:
    errors = home.logs / "node.err"
    with errors.open("ab") as stream:
        errors.chmod(0o600)
        arguments = [sys.executable, "-P", "-m", "penstock.server", "--detach", "--project", str(Path.cwd())]
        # The node works in another directory, where a relative home would be another home.
        environment = dict(os.environ)
        if explicit is not None:
            arguments += ["--home", str(home.name)]
        elif "PENSTOCK_HOME" in environment:
            environment["PENSTOCK_HOME"] = str(home.name)
        for setting in settings:
            arguments += ["--set", setting]
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": stream}
        start = subprocess.Popen(arguments, **streams, env=environment, cwd="/", start_new_session=True)
    with start.stdout as said:  # type: ignore[union-attr]
        try:
            code = _await(start, home, deadline)
        except BaseException:
            # Ctrl-C, or a node that does not come up: nobody is left who waits for it.
            start.terminate()
            start.wait(STOP_TIMEOUT_S)
            raise
        if code not in (0, EXIT_ALREADY_RUNNING):
            raise _reason(said.read(), errors, code)


def _await(start: subprocess.Popen[bytes], home: Home, deadline: float) -> int:
    """Waits until a node answers or could not start; the exit code of its start, which ends then."""
    while time.monotonic() < deadline:
        code = start.poll()
        if code is not None and (code != EXIT_ALREADY_RUNNING or running_pid(home) is not None):
            return code
        time.sleep(_STEP_S)
    raise _silent(home)


def _silent(home: Home) -> TimedOutError:
    return TimedOutError(f"start a node on {home.name}", "it does not answer", f"look at {home.log_file}")


def _reason(said: bytes, errors: Path, code: int) -> PenstockError:
    lines = said.decode(errors="replace").splitlines()
    try:
        return error_from(**json.loads(lines[-1]))
    except (IndexError, ValueError, TypeError):
        return InternalError("start a node", f"it ended with {code} and did not say why", f"look at {errors}")
