"""The process that touches mount points, so that the node never does: a program of its own, standard library only.

A node that waited for a mount that it serves itself could not even be killed. It therefore starts this file as
``python -I -S mounting.py FD``, asks over the socket FD, one JSON document a message, and reads one answer each; a
FUSE descriptor travels beside its answer and is not kept here. The process ends with the socket. Where it gets stuck,
the node kills it and forgets it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DEVICE = "/dev/fuse"
MESSAGE_MAX_BYTES = 1 << 17
MOUNT_OPTIONS_MAX_BYTES = 4096

MS_RDONLY, MS_NOSUID, MS_NODEV = 1, 2, 4
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8

MAX_READ_BYTES = 1 << 20
"""Largest read that the kernel asks for at once."""

HOLDERS_MAX = 8
"""So many processes are named; more only make a line long."""

HOLDERS_SEARCH_S = 3.0
"""A machine may have very many processes; what was found until then is told."""

_DEAD = (errno.ENOTCONN, errno.ECONNABORTED)
"""Nobody serves it: any more, and since it was asked."""

_IN_A_CONTAINER = "in a container: --device /dev/fuse --cap-add SYS_ADMIN"
_PATHS = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"


class RefusedError(Exception):
    """What was asked cannot be done."""

    def __init__(self, code: str, reason: str, advice: str | None = None) -> None:
        super().__init__(reason)
        self.code, self.reason, self.advice = code, reason, advice


def main() -> int:
    """Answers until the other end of the socket is closed."""
    with socket.socket(fileno=int(sys.argv[1])) as node:
        while question := node.recv(MESSAGE_MAX_BYTES):
            descriptor = None
            try:
                asked = json.loads(question)
                answer, descriptor = _QUESTIONS[asked.pop("do")](**asked)
            except RefusedError as error:
                answer = {"error": {"code": error.code, "reason": error.reason, "advice": error.advice}}
            except OSError as error:
                answer = {"error": {"code": "unavailable", "reason": str(error), "advice": None}}
            message = json.dumps(answer).encode()
            if descriptor is None:
                node.send(message)
            else:
                socket.send_fds(node, [message], [descriptor])
                os.close(descriptor)  # a copy here would keep a mount alive that its node has left
    return 0


def look(target: str, directories: list[str]) -> tuple[dict[str, Any], None]:
    """What is at a directory, and the link-free paths of some others."""
    path = os.path.realpath(target)
    state, empty = _state(path)
    others = [os.path.realpath(each) for each in directories]
    return {"path": path, "state": state, "empty": empty, "directories": others}, None


def mount(target: str, allow_other: bool, inside: str | None, writable: bool) -> tuple[dict[str, Any], int]:
    """Mounts, and hands over the descriptor that serves it.

    By itself where it may, which also allows a mount inside another of ours; else by ``fusermount3``. ``inside`` is
    the device of the mount of ours that the directory lies in. The kernel refuses changes unless it is ``writable``.
    """
    rights = "rw" if writable else "ro"
    options = ["default_permissions", f"max_read={MAX_READ_BYTES}", *(["allow_other"] if allow_other else [])]
    if not Path(DEVICE).exists():
        raise RefusedError("unsupported", f"there is no {DEVICE}", f"sudo modprobe fuse; {_IN_A_CONTAINER}")
    try:
        descriptor = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM):
            raise RefusedError("unsupported", f"{DEVICE} cannot be opened: {error.strerror}", _IN_A_CONTAINER) from None
        return {"privileged": False}, _mount_by_program(target, [rights, *options], may_open=False)
    data = f"fd={descriptor},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()},{','.join(options)}"
    flags = MS_NOSUID | MS_NODEV | (0 if writable else MS_RDONLY)
    arguments = (b"penstock", os.fsencode(target), b"fuse.penstock", ctypes.c_ulong(flags), data.encode())
    failure = _call("mount", *arguments)
    if failure == errno.ENOENT and inside is not None:
        _look_again(Path(target), inside)
        failure = _call("mount", *arguments)
    if failure == 0:
        return {"privileged": True}, descriptor
    os.close(descriptor)
    if failure == errno.EPERM:
        return {"privileged": False}, _mount_by_program(target, [rights, *options], may_open=True)
    raise RefusedError("unavailable", f"the kernel refuses: {os.strerror(failure)}")


def check_image() -> tuple[dict[str, Any], None]:
    """Whether this kernel and user can mount an image at all."""
    if os.geteuid() != 0:
        raise RefusedError("permission-denied", "the kernel lets only root mount an image")
    known = Path("/proc/filesystems").read_text(encoding="ascii", errors="replace").split()
    if "erofs" not in known and not any(Path("/lib/modules", os.uname().release).rglob("erofs.ko*")):
        raise RefusedError(
            "unsupported", "the kernel knows no EROFS", "a kernel with EROFS in files: Linux 6.12 has it"
        )
    return {}, None


def mount_image(target: str, image: str, devices: list[str], read_ahead_kb: int) -> tuple[dict[str, Any], None]:
    """Has the kernel mount an image from its file, past the page cache of its data devices where it can."""
    if any("," in each for each in devices):
        raise RefusedError("unsupported", "the path of its data has a comma in it")
    before = _image_readahead()
    for extra in (["directio"], []):
        options = ",".join([f"device={each}" for each in devices] + extra)
        if len(options) >= MOUNT_OPTIONS_MAX_BYTES:
            raise RefusedError("unsupported", "it has more data devices than the kernel takes")
        flags = ctypes.c_ulong(MS_RDONLY | MS_NOSUID | MS_NODEV)
        failure = _call("mount", os.fsencode(image), os.fsencode(target), b"erofs", flags, os.fsencode(options))
        if failure == 0:
            for each in _image_readahead() - before:
                with contextlib.suppress(OSError):
                    each.write_text(f"{read_ahead_kb}\n", encoding="ascii")
            return {}, None
        if failure != errno.EINVAL:
            break
    if failure in (errno.EPERM, errno.EACCES):
        raise RefusedError("permission-denied", f"the kernel refuses an image: {os.strerror(failure)}")
    if failure in (errno.ENODEV, errno.ENOTBLK, errno.EINVAL, errno.EOPNOTSUPP):
        raise RefusedError("unsupported", f"the kernel mounts no image from a file: {os.strerror(failure)}")
    raise RefusedError("unavailable", f"the kernel refuses the image: {os.strerror(failure)}")


def _image_readahead() -> set[Path]:
    return set(Path("/sys/class/bdi").glob("erofs*/read_ahead_kb"))


def settle(target: str, device: str, read_ahead_kb: int) -> tuple[dict[str, Any], None]:
    """Asks a mount that is served now whether it answers, and has the kernel read further ahead where that is allowed.

    Not before: the kernel lowers the figure when the server introduces itself.
    """
    Path(target).stat()
    try:
        Path(f"/sys/class/bdi/{device}/read_ahead_kb").write_text(f"{read_ahead_kb}\n", encoding="ascii")
    except OSError:
        return {"read_ahead": False}, None
    return {"read_ahead": True}, None


def unmount(target: str, lazy: bool) -> tuple[dict[str, Any], None]:
    """Takes a mount away: ``done``, ``busy`` or ``absent``."""
    flags = UMOUNT_NOFOLLOW | (MNT_DETACH if lazy else 0)
    failure = _call("umount2", os.fsencode(target), ctypes.c_int(flags))
    if failure == errno.EPERM:
        return {"state": _unmount_by_program(target, lazy)}, None
    # Below a dead mount nothing can be reached: what was mounted there goes with it.
    absent = (errno.EINVAL, errno.ENOENT, *_DEAD)
    if failure and failure != errno.EBUSY and failure not in absent:
        raise RefusedError("unavailable", f"the kernel refuses: {os.strerror(failure)}")
    return {"state": "busy" if failure == errno.EBUSY else "absent" if failure else "done"}, None


def holders(target: str) -> tuple[dict[str, Any], None]:
    """Processes that use something at or below a directory, by what ``/proc`` says; asks no mount."""
    deadline = time.monotonic() + HOLDERS_SEARCH_S
    found: list[dict[str, Any]] = []
    hidden = False
    for process in sorted(int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()):
        if len(found) >= HOLDERS_MAX or time.monotonic() >= deadline:
            break
        try:
            used = next((path for path in _used(process) if path == target or path.startswith(target + "/")), None)
        except PermissionError:
            hidden = True
            continue
        except OSError:
            continue  # gone meanwhile
        if used is not None:
            found.append({"pid": process, "name": _name(process), "path": used})
    return {"holders": found, "hidden": hidden}, None


def _state(path: str) -> tuple[str, bool]:
    """What is at a path, and whether it is an empty directory."""
    try:
        if not stat.S_ISDIR(Path(path).stat().st_mode):
            return "file", False
        # Attributes may be believed beyond the death of who served them: only this asks.
        with os.scandir(path) as entries:
            return "directory", next(entries, None) is None
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return "missing", False
        return "dead" if error.errno in _DEAD else str(error.strerror), False


def _look_again(directory: Path, inside: str) -> None:
    """Has the kernel ask for names again that it believes are not there: what was just attached is.

    It asks before it makes a pipe, which is then refused, because no mount of ours has such.
    """
    missing = [directory]
    while not missing[-1].parent.exists():
        missing.append(missing[-1].parent)
    for each in reversed(missing):
        device = each.parent.stat().st_dev
        if f"{os.major(device)}:{os.minor(device)}" != inside:
            return
        with contextlib.suppress(OSError):
            os.mkfifo(each)


def _call(function: str, *arguments: Any) -> int:
    """Calls the C library; the error number, 0 for none."""
    library = ctypes.CDLL(None, use_errno=True)
    if function == "mount":
        source, target, kind, flags, data = arguments
        failed = library.mount(source, target, kind, flags, data)
    else:
        failed = library.umount2(*arguments)
    return ctypes.get_errno() if failed else 0


def _program() -> str | None:
    return next((path for name in ("fusermount3", "fusermount") if (path := shutil.which(name, path=_search()))), None)


def _search() -> str:
    return os.pathsep.join(filter(None, [os.environ.get("PATH"), _PATHS]))


def _mount_by_program(target: str, options: list[str], *, may_open: bool) -> int:
    """Mounts by the program that distributions allow everybody to use; it passes the descriptor back."""
    program = _program()
    if program is None and not may_open:
        mode = stat.S_IMODE(Path(DEVICE).stat().st_mode)
        reason = f"this user may not open {DEVICE} (mode {mode:04o})"
        raise RefusedError("permission-denied", reason, f"sudo chmod 666 {DEVICE}; {_IN_A_CONTAINER}")
    if program is None:
        reason = "it needs root, or the program fusermount3"
        raise RefusedError("permission-denied", reason, f"sudo apt-get install fuse3; {_IN_A_CONTAINER}")
    wanted = ["nosuid", "nodev", "fsname=penstock", "subtype=penstock", *options]
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            done = subprocess.run(
                [program, "-o", ",".join(wanted), "--", target],
                env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno()), "LC_ALL": "C"},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    if done.returncode == 0 and descriptors:
        return descriptors[0]
    said = " ".join(done.stderr.decode(errors="replace").split()) or f"it ended with {done.returncode}"
    raise RefusedError("permission-denied", f"{program} refuses: {said}", _advice(said, may_open))


def _advice(said: str, may_open: bool) -> str:
    if "user_allow_other" in said:
        return "put user_allow_other into /etc/fuse.conf, or leave --allow-other out"
    if not may_open:
        return f"sudo chmod 666 {DEVICE}; {_IN_A_CONTAINER}"
    return f"mount on a directory that this user may write; {_IN_A_CONTAINER}"


def _unmount_by_program(target: str, lazy: bool) -> str:
    program = _program()
    if program is None:
        reason = "it needs root, or the program fusermount3"
        raise RefusedError("permission-denied", reason, "sudo apt-get install fuse3")
    done = subprocess.run(
        [program, "-u", *(["-z"] if lazy else []), "--", target],
        env={**os.environ, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    said = " ".join(done.stderr.decode(errors="replace").split())
    if done.returncode == 0:
        return "done"
    if "busy" in said:
        return "busy"
    if "not found in" in said or "Invalid argument" in said:
        return "absent"
    raise RefusedError("permission-denied", f"{program} refuses: {said}")


def _used(process: int) -> list[str]:
    """Paths that a process has open, mapped, or works in. Reading the names asks no file system."""
    base = Path(f"/proc/{process}")
    paths = []
    for link in [base / "cwd", base / "root", base / "exe", *(base / "fd").iterdir()]:
        try:
            paths.append(str(link.readlink()))
        except FileNotFoundError:
            continue  # closed meanwhile, or a thread of the kernel
    for line in (base / "maps").read_text(encoding="utf-8", errors="surrogateescape").split("\n"):
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5].startswith("/"):
            paths.append(fields[5])
    return paths


def _name(process: int) -> str:
    try:
        return Path(f"/proc/{process}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "?"


_QUESTIONS: dict[str, Callable[..., tuple[dict[str, Any], int | None]]] = {
    "look": look,
    "mount": mount,
    "check_image": check_image,
    "mount_image": mount_image,
    "settle": settle,
    "unmount": unmount,
    "holders": holders,
}

if __name__ == "__main__":
    sys.exit(main())
