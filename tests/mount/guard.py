"""Kills the nodes of some tests when one of them takes too long.

Run as ``python guard.py PREFIX...`` with what the paths of their homes begin with. A line on its standard input says
how many seconds the test that begins may take, or that it is over; with the end of the input it ends.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from pathlib import Path


def nodes(prefixes: list[str]) -> list[int]:
    """Processes of nodes by the paths of their homes; touches no path that could lie in a mount."""
    homes = tuple(f"PENSTOCK_HOME={prefix}".encode() for prefix in prefixes)
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            if b"penstock.server" not in (entry / "cmdline").read_bytes():
                continue
            settings = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            # It ended meanwhile, or is somebody else's.
            continue
        if any(line.startswith(homes) for line in settings):
            found.append(int(entry.name))
    return found


def main(*prefixes: str) -> None:
    limit_s: float | None = None
    while True:
        if not select.select([sys.stdin], [], [], limit_s)[0]:
            for pid in nodes(list(prefixes)):
                print(f"a test took longer than {limit_s:.0f} s: node {pid} is killed", file=sys.stderr, flush=True)
                os.kill(pid, signal.SIGKILL)
            limit_s = None
            continue
        # Unbuffered: a line that was read ahead would not be seen by the next select.
        lines = os.read(sys.stdin.fileno(), 1 << 16).decode().splitlines()
        if not lines:
            return
        limit_s = None if lines[-1] == "over" else float(lines[-1])


if __name__ == "__main__":
    main(*sys.argv[1:])
