"""A cache disk that is damaged, full, read-only or failing, for a node alone: its mounts go with it."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fault import oracle

if TYPE_CHECKING:
    from collections.abc import Callable

    from integration.conftest import Machine

PAGE_BYTES = 64 << 10
UP = [sys.executable, "-m", "penstock.cli", "up"]
FAILING_CALLS = [sys.executable, str(Path(__file__).with_name("failing_calls.py"))]
WITH_FAILING_WRITES = [*FAILING_CALLS, "writes"]
"""Runs a command in which every write to an extent file fails."""

WITH_FAILING_READS = [*FAILING_CALLS, "reads"]
"""Runs a command in which every read of an extent file behind its first mebibyte fails."""

OTHER_BOOT = "00000000-0000-4000-8000-000000000000"


def await_index(machine: Machine, change: Callable[[int], object]) -> None:
    """Waits until the index of the cache has all that came so far. ``change`` has a little more come, each time it is
    called, so that there is something to write.
    """
    index = machine.home.state / "cache.redb"
    # One write may have begun before this, and shows itself twice: by its content and by its end.
    for turn in range(3):
        known = time.time()
        change(turn)
        machine.until(lambda known=known: index.stat().st_mtime > known)


def extent_of(machine: Machine, number: int) -> Path:
    """The extent file of an object, found by what is in it."""
    found = [path for path in machine.home.cache.rglob("*.x") if starts_with(path, number)]
    assert len(found) == 1, found
    return found[0]


def starts_with(path: Path, number: int) -> bool:
    """Whether what a file holds first is of that object."""
    with path.open("rb") as file:
        file.seek(0, os.SEEK_DATA)
        return file.read(24)[8:16] == struct.pack("<Q", number)


def flip(path: Path, offset: int) -> None:
    """Changes one bit of a file, as a failing disk does: the times of the file stay."""
    facts = path.stat()
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
    path.chmod(facts.st_mode & 0o777)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def zero(path: Path, start: int, end: int) -> int:
    """Has a file hold nothing there, as where it was never written; how many of its pages lost something."""
    mode = path.stat().st_mode & 0o777
    path.chmod(0o600)
    lost = 0
    with path.open("r+b") as file:
        for offset in range(start, min(end, path.stat().st_size), PAGE_BYTES):
            file.seek(offset)
            page = file.read(min(PAGE_BYTES, end - offset))
            lost += any(page)
            file.seek(offset)
            file.write(bytes(len(page)))
    path.chmod(mode)
    return lost


def up_after_a_crash(machine: Machine) -> None:
    """Starts the node as after the machine itself went down: the kernel says that it has booted since."""
    boot = machine.directory / "boot_id"
    boot.write_text(f"{OTHER_BOOT}\n")
    up_with_mounts(machine, f"mount --bind {boot} /proc/sys/kernel/random/boot_id")


def cut(path: Path, size: int) -> None:
    """Shortens a file."""
    mode = path.stat().st_mode & 0o777
    path.chmod(0o600)
    os.truncate(path, size)
    path.chmod(mode)


def up_with_mounts(machine: Machine, mounts: str, *settings: str) -> None:
    """Starts the node in a name space of its own where a shell has mounted something; `$0` is the home."""
    if os.getuid() != 0:
        pytest.skip("needs a mount that root gives away")
    flags = [part for each in settings for part in ("--set", each)]
    command = ["unshare", "--mount", "sh", "-c", f'set -e; {mounts}; exec "$@"', str(machine.home.name), *UP, *flags]
    done = subprocess.run(command, capture_output=True, text=True, env=machine.environment, timeout=60)
    assert done.returncode == 0, done.stderr


def beside_node(machine: Machine, script: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Runs a shell where the node's mounts are; `$0` is the home, `$@` the command."""
    entered = ["nsenter", "--mount", f"--target={machine.pid()}", "sh", "-c", script, str(machine.home.name), *command]
    return subprocess.run(entered, capture_output=True, text=True, env=machine.environment, timeout=60)


def whole(client: object, path: str, number: int, size: int) -> None:
    """Reads a file in every way and checks every byte."""
    with client.open(path) as file:  # type: ignore[attr-defined]
        found = file.read()
        assert len(found) == size
        oracle.check(number, 1, 0, found)
    oracle.check(number, 1, 0, bytes(client.read_many([path])[0]))  # type: ignore[attr-defined]
    [tail] = client.read_ranges(path, [(size // 2, size)])  # type: ignore[attr-defined]
    oracle.check(number, 1, size // 2, bytes(tail))
