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

IMAGE_KERNEL = (6, 12)
"""From here on the kernel mounts an image from its file, where it was built with EROFS."""

CAP_SYS_ADMIN = 21
"""Number of the capability to mount."""

OPEN_FILES_WANTED = 16384
OPEN_FILES_NEEDED = 4096


def check(node_pid: int | None) -> Iterator[Finding]:
    """Everything about the machine; its limits are those of the node that runs, if one does."""
    privileged = may_mount(Path("/proc/self/status").read_text(encoding="ascii"))
    yield kernel(platform.system(), platform.release())
    yield fuse(Path("/dev/fuse"), shutil.which("fusermount3"), privileged=privileged)
    yield passthrough(platform.release(), privileged=privileged)
    yield image(platform.release(), Path("/proc/filesystems").read_text(encoding="ascii"), privileged=privileged)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    yield open_files(hard if node_pid is None else resource.prlimit(node_pid, resource.RLIMIT_NOFILE)[1])


def kernel(system: str, release: str) -> Finding:
    """Linux, and whether it is new enough for passthrough."""
    if system != "Linux":
        return Finding("kernel", Level.FAILURE, f"{system} cannot run a node; it needs Linux", "use a Linux machine")
    return Finding("kernel", Level.OK, f"Linux {release}")


def fuse(device: Path, program: str | None, *, privileged: bool) -> Finding:
    """What mounts need: the FUSE device, and the right to mount or the program that has it. Python needs neither."""
    note = "mounts need it, reading from Python does not"
    if not device.exists():
        advice = "sudo modprobe fuse   # in a container: --device /dev/fuse --cap-add SYS_ADMIN"
        return Finding("fuse", Level.WARNING, f"{device} is missing; {note}", advice)
    if not os.access(device, os.R_OK | os.W_OK):
        return Finding("fuse", Level.WARNING, f"{device} is not accessible; {note}", f"sudo chmod 666 {device}")
    if privileged:
        return Finding("fuse", Level.OK, f"{device}, and the right to mount")
    if program is None:
        text = f"{device} is there, the program fusermount3 is not; {note}"
        return Finding("fuse", Level.WARNING, text, "sudo apt-get install fuse3")
    return Finding("fuse", Level.OK, f"{device} and {program}")


def passthrough(release: str, *, privileged: bool) -> Finding:
    """Whether the kernel may read cached files by itself through a mount, which is its fastest way."""
    if _version(release) < PASSTHROUGH_KERNEL:
        text = "mounts do without passthrough, which needs Linux 6.9: large cached files read more slowly through them"
        return Finding("passthrough", Level.OK, text)
    if not privileged:
        text = "mounts do without passthrough, which needs root: large cached files read more slowly through them"
        return Finding("passthrough", Level.OK, text)
    return Finding("passthrough", Level.OK, "mounts can have the kernel read cached files by itself")


def image(release: str, filesystems: str, *, privileged: bool) -> Finding:
    """Whether the kernel may mount a snapshot by itself."""
    missing = None
    if _version(release) < IMAGE_KERNEL:
        missing = "Linux 6.12"
    elif not privileged:
        missing = "root"
    elif "erofs" not in filesystems.split():
        missing = "a kernel with EROFS, or `modprobe erofs`"
    if missing is not None:
        return Finding("image", Level.OK, f"snapshots are mounted without an image, which needs {missing}")
    return Finding("image", Level.OK, "the kernel can mount snapshots by itself")


def _version(release: str) -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", release)
    return (0, 0) if match is None else (int(match[1]), int(match[2]))


def may_mount(status: str) -> bool:
    """Whether a process may mount by itself (CAP_SYS_ADMIN), by its ``/proc/…/status``."""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return found is not None and bool(int(found[1], 16) >> CAP_SYS_ADMIN & 1)


def open_files(hard: int) -> Finding:
    """How many descriptors a node may have: lent files and connections each need one."""
    if hard == resource.RLIM_INFINITY or hard >= OPEN_FILES_WANTED:
        return Finding("open files", Level.OK, "limit " + ("none" if hard == resource.RLIM_INFINITY else f"{hard:,}"))
    level = Level.FAILURE if hard < OPEN_FILES_NEEDED else Level.WARNING
    text = f"hard limit {hard:,}; many readers need more (wanted {OPEN_FILES_WANTED:,})"
    return Finding("open files", level, text, f"ulimit -Hn {OPEN_FILES_WANTED}   # or nofile in limits.conf")
