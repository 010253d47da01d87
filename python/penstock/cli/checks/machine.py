"""The machine: kernel, FUSE, file limits."""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.cli.checks.finding import Finding, Level

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["check"]

PASSTHROUGH_KERNEL = (6, 9)
"""From here on the kernel reads cached files by itself through a mount."""

OPEN_FILES_WANTED = 16384
OPEN_FILES_NEEDED = 4096


def check() -> Iterator[Finding]:
    """Everything about the machine."""
    yield kernel(platform.system(), platform.release())
    yield fuse(Path("/dev/fuse"), shutil.which("fusermount3"))
    yield open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[1])


def kernel(system: str, release: str) -> Finding:
    """Linux, and whether it is new enough for passthrough."""
    if system != "Linux":
        return Finding("kernel", Level.FAILURE, f"{system} cannot run a node; it needs Linux", "use a Linux machine")
    match = re.match(r"(\d+)\.(\d+)", release)
    if match and (int(match[1]), int(match[2])) >= PASSTHROUGH_KERNEL:
        return Finding("kernel", Level.OK, f"Linux {release}")
    return Finding("kernel", Level.OK, f"Linux {release}; mounts will do without passthrough, which needs 6.9")


def fuse(device: Path, helper: str | None) -> Finding:
    """The FUSE device and its helper. Reading from Python needs neither."""
    note = "only mounts need it, and this version has none yet"
    if not device.exists():
        return Finding("fuse", Level.OK, f"{device} is missing; {note}", "sudo modprobe fuse")
    if not os.access(device, os.R_OK | os.W_OK):
        return Finding("fuse", Level.OK, f"{device} is not accessible; {note}", f"sudo chmod 666 {device}")
    if helper is None:
        return Finding(
            "fuse", Level.OK, f"{device} is there, the helper fusermount3 is not; {note}", "sudo apt-get install fuse3"
        )
    return Finding("fuse", Level.OK, f"{device} and {helper}")


def open_files(hard: int) -> Finding:
    """How many descriptors a node may have: lent files and connections each need one."""
    if hard == resource.RLIM_INFINITY or hard >= OPEN_FILES_WANTED:
        return Finding("open files", Level.OK, "limit " + ("none" if hard == resource.RLIM_INFINITY else f"{hard:,}"))
    level = Level.FAILURE if hard < OPEN_FILES_NEEDED else Level.WARNING
    text = f"hard limit {hard:,}; many readers need more (wanted {OPEN_FILES_WANTED:,})"
    return Finding("open files", level, text, f"ulimit -Hn {OPEN_FILES_WANTED}   # or nofile in limits.conf")
