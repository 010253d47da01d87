"""Ending the node of a throw-away home, whatever state it is in."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.home import locate

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["stop_node"]

DRAIN_S = 10.0
"""How long a node may take to drain before it is killed: nothing of a throw-away home is worth more."""

_KILLED_S = 5.0
_STEP_S = 0.02


def stop_node(home: Path) -> None:
    """Tells the node of ``home`` to drain and waits until its process is gone; kills it when it takes too long.

    No node is nothing to do.
    """
    try:
        pid = int(json.loads(locate(home).node_file.read_text())["pid"])
    except (FileNotFoundError, ValueError, KeyError):
        return
    if not _serves(pid, home):
        return
    os.kill(pid, signal.SIGTERM)
    if not _await(lambda: not _serves(pid, home), DRAIN_S):
        os.kill(pid, signal.SIGKILL)
        _await(lambda: not _serves(pid, home), _KILLED_S)


def _serves(pid: int, home: Path) -> bool:
    """Whether the process is (still) the node of that home: a number alone could be anybody's by now."""
    process = Path(f"/proc/{pid}")
    try:
        arguments = (process / "cmdline").read_bytes()
        environment = (process / "environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False
    name = os.fsencode(home)
    return bool(arguments) and (name in arguments or name in environment)


def _await(condition: Callable[[], bool], limit_s: float) -> bool:
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_STEP_S)
    return True
