"""The home and the disks of cache and stage: rights, space, speed, configuration."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from penstock import config
from penstock.cli.checks.finding import Finding, Level
from penstock.errors import PenstockError
from penstock.units import format_rate, format_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from penstock.home import Home

__all__ = ["check"]

TEST_BYTES = 64 << 20
"""Written and read once: enough to tell a slow disk, little enough not to disturb."""

SLOW_BYTES_PER_S = 100 << 20
LOW_SPACE_BYTES = 1 << 30
LEAST_SPACE_BYTES = 1 << 20

_LOOK = {
    errno.ENOSPC: "df -h {}",
    errno.EDQUOT: "df -h {}   # and: quota",
    errno.EROFS: "findmnt --target {}",
    errno.EACCES: "ls -ld {}",
    errno.EPERM: "ls -ld {}",
}
"""Where to look when a disk takes nothing, by why."""

_FAILING = "sudo dmesg | tail   # and: smartctl -a on the disk under {}"

NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "glusterfs", "lustre", "fuse.sshfs"}


def check(
    home: Home, directory: Path, in_use: Mapping[Path, int] | None = None, stage_in_use: Path | None = None
) -> Iterator[Finding]:
    """Everything about home and disk.

    Args:
        home: whose.
        directory: where the search for a project's file begins.
        in_use: cache directories of the node that runs, each with the bytes that it leaves free there; it may have been
            started with other settings than one that would be started here.
        stage_in_use: the directory of its stage.
    """
    yield rights(home)
    try:
        settings = config.load(home, directory=directory).settings
    except PenstockError as error:
        yield Finding("configuration", Level.FAILURE, str(error), "penstock config show --origin")
        settings = config.Settings()
    else:
        yield Finding("configuration", Level.OK, "every layer is valid")
    tiers: Mapping[Path, int | None] = in_use or {tier.directory: None for tier in settings.tiers(home, 0)}
    for each, floor_bytes in tiers.items():
        yield from cache_directory(each, floor_bytes, settings.cache.free_space_floor)
    yield stage(stage_in_use or settings.stage_directory(home), settings.stage.size or 0, next(iter(tiers)))


def rights(home: Home) -> Finding:
    """Whether the home can be used, and by nobody else."""
    try:
        home.prepare()
    except PenstockError as error:
        return Finding("home", Level.FAILURE, str(error), "export PENSTOCK_HOME=/a/directory/of/yours")
    if home.run_stands_in():
        text = f"{home.name}; its path is too long for a socket, so that sockets and locks are in {home.run}"
        return Finding("home", Level.OK, text)
    return Finding("home", Level.OK, str(home.name))


def cache_directory(directory: Path, floor_bytes: int | None, floor: float) -> Iterator[Finding]:
    """Kind, space and speed of the disk under one cache directory, of which a share stays free, or so many bytes."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = os.statvfs(directory)
    except OSError as error:
        yield Finding("cache disk", Level.FAILURE, f"{directory}: {error.strerror}", "penstock config show --origin")
        return
    kind = file_system_of(directory, _mounts())
    if kind in NETWORK_FILE_SYSTEMS:
        yield Finding(
            "cache disk",
            Level.FAILURE,
            f"{directory} is on {kind}; a cache needs a local disk",
            "penstock up --set cache.directory=/local/disk",
        )
    free, total = facts.f_bavail * facts.f_frsize, facts.f_blocks * facts.f_frsize
    yield space(directory, free, total, floor if floor_bytes is None else floor_bytes / max(total, 1))
    yield speed(directory)


def space(directory: Path, free: int, total: int, floor: float) -> Finding:
    """Whether there is room above the floor that the cache leaves free."""
    usable = free - int(total * floor)
    text = f"{format_size(free)} free of {format_size(total)} in {directory}"
    if usable < LEAST_SPACE_BYTES:
        where = "below" if usable <= 0 else "hardly above"
        return Finding(
            "cache space",
            Level.FAILURE,
            f"{text}, {where} the floor of {floor:.0%}: nothing new is cached",
            "free space, or: penstock up --set cache.directory=/larger/disk",
        )
    if usable < LOW_SPACE_BYTES:
        return Finding(
            "cache space",
            Level.WARNING,
            f"{text}: {format_size(usable)} above the floor of {floor:.0%}",
            "free space, or: penstock up --set cache.directory=/larger/disk",
        )
    return Finding("cache space", Level.OK, text)


def stage(directory: Path, size: int, tier: Path) -> Finding:
    """Whether what is written has room, and becomes cached without being copied.

    Args:
        directory: of the stage.
        size: most bytes it may hold; 0 where that is left to the node.
        tier: the cache directory that written files go to.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = os.statvfs(directory)
        is_apart = tier.exists() and directory.stat().st_dev != tier.stat().st_dev
    except OSError as error:
        return Finding("stage space", Level.FAILURE, f"{directory}: {error.strerror}", "penstock config show --origin")
    free = facts.f_bavail * facts.f_frsize
    text = f"{format_size(free)} free in {directory}"
    if free < max(size, LOW_SPACE_BYTES):
        wanted = f", and the stage may hold {format_size(size)}" if size else ""
        advice = "free space, or: penstock up --set stage.directory=/larger/disk"
        return Finding("stage space", Level.WARNING, f"{text}{wanted}: writing stops when the disk is full", advice)
    if is_apart:
        text += f"; not on the file system of {tier}: what is written is copied into the cache"
    return Finding("stage space", Level.OK, text)


def speed(directory: Path) -> Finding:
    """How fast the disk takes a file with fsync; a cache slower than the source is of little use."""
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            block = os.urandom(1 << 20)
            begun = time.perf_counter()
            for _ in range(TEST_BYTES >> 20):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            rate = TEST_BYTES / (time.perf_counter() - begun)
    except OSError as error:
        text = f"writing to {directory}: {error.strerror}"
        return Finding("cache speed", Level.FAILURE, text, _LOOK.get(error.errno or 0, _FAILING).format(directory))
    text = f"{format_rate(rate)} written with fsync in {directory}"
    if rate < SLOW_BYTES_PER_S:
        return Finding("cache speed", Level.WARNING, text, "penstock up --set cache.directory=/faster/disk")
    return Finding("cache speed", Level.OK, text)


def file_system_of(directory: Path, mounts: Sequence[tuple[str, str]]) -> str:
    """Type of the file system of a directory: that of the longest mount point above it."""
    best, kind = "", "unknown"
    for point, name in mounts:
        above = point.rstrip("/") + "/"
        if f"{directory}/".startswith(above) and len(above) >= len(best):
            best, kind = above, name
    return kind


def _mounts() -> list[tuple[str, str]]:
    with contextlib.suppress(OSError):
        lines = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
        return [(fields[1], fields[2]) for fields in map(str.split, lines) if len(fields) > 2]
    return []
