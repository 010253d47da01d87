"""The node's end of the process that touches mount points: started when needed, killed when it gets stuck."""

from __future__ import annotations

import array
import contextlib
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from penstock.errors import ERROR_TYPES, InternalError, PenstockError, TimedOutError
from penstock.policies.mounts import KernelMount, TargetFacts, parse_mountinfo
from penstock.server import mounting

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

__all__ = ["ANSWER_TIMEOUT_S", "Holder", "Mounted", "Mounter"]

ANSWER_TIMEOUT_S = 10.0
"""Longest that one question may take; what takes longer waits for a file system that does not answer."""

END_TIMEOUT_S = 1.0
"""A killed process that waits for a file system cannot end yet; nobody waits for it longer than this."""

READ_AHEAD_KIB = 4096
"""How far the kernel reads ahead of a sequential reader; its default of 128 KiB keeps too little under way."""

_TABLE = Path("/proc/self/mountinfo")
_left: list[subprocess.Popen[bytes]] = []


class Mounted(NamedTuple):
    """A mount that waits to be served."""

    descriptor: int
    privileged: bool
    """Made by the node's own rights: mounts can be nested in it."""


class Holder(NamedTuple):
    """A process that uses something in a mount."""

    pid: int
    name: str
    path: str


class Mounter:
    """Asks about mount points and changes them, each time within :data:`ANSWER_TIMEOUT_S`.

    A context manager; one thread at a time. Every method raises :class:`TimedOutError` where a file system does not
    answer, and goes on with another process at the next question.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def table(self) -> list[KernelMount]:
        """The kernel's table of mounts. Reading it touches none of them."""
        return parse_mountinfo(_TABLE.read_text(encoding="utf-8", errors="surrogateescape"))

    def look(self, target: str, directories: Sequence[str] = ()) -> tuple[TargetFacts, list[str]]:
        """What is at a directory; and the link-free paths of some others, in their order."""
        answer, _ = self._ask(f"look at {target}", {"do": "look", "target": target, "directories": list(directories)})
        return TargetFacts(answer["path"], answer["state"], answer["empty"]), answer["directories"]

    def mount(self, target: str, *, allow_other: bool, writable: bool = False, inside: str | None = None) -> Mounted:
        """Mounts on a directory; the caller serves the descriptor, or closes it and takes the mount away.

        Args:
            target: the directory.
            allow_other: let every user in.
            writable: have the kernel pass changes on, which it else refuses by itself.
            inside: device of the mount of ours that it lies in; where the kernel remembers that the directory was not
                there, it is asked to look again.
        Raises:
            UnsupportedError: no FUSE here.
            PermissionDeniedError: this user may not; says what would help.
        """
        wanted = {"allow_other": allow_other, "inside": inside, "writable": writable}
        question = {"do": "mount", "target": target, **wanted}
        answer, descriptor = self._ask(f"mount {target}", question)
        if descriptor is None:
            raise InternalError(f"mount {target}", "no descriptor came with the answer", "report it")
        return Mounted(descriptor, answer["privileged"])

    def check_image(self) -> None:
        """Asks whether this kernel and user can mount an image at all.

        Raises:
            UnsupportedError: the kernel knows no EROFS, or not in files.
            PermissionDeniedError: this user may not mount.
        """
        self._ask("mount an image", {"do": "check_image"})

    def mount_image(self, target: str, image: str, devices: Sequence[str]) -> None:
        """Has the kernel mount an image by itself.

        Args:
            target: the directory.
            image: file of the image.
            devices: files of its data devices.
        Raises:
            UnsupportedError: the kernel cannot; says what it would take.
            PermissionDeniedError: this user may not.
        """
        question = {"do": "mount_image", "target": target, "image": image, "devices": list(devices)}
        self._ask(f"mount {target}", {**question, "read_ahead_kb": READ_AHEAD_KIB})

    def settle(self, target: str, device: str) -> None:
        """Waits until a mount that is served answers, and has the kernel read further ahead where it may."""
        question = {"do": "settle", "target": target, "device": device, "read_ahead_kb": READ_AHEAD_KIB}
        self._ask(f"mount {target}", question)

    def unmount(self, target: str, *, lazy: bool) -> bool:
        """Takes a mount away; where nothing is mounted, nothing happens.

        Args:
            target: where it is.
            lazy: out of sight at once, with all that is nested in it; gone when nobody uses it any more.
        Returns:
            Whether it is away; not where somebody uses it.
        """
        answer, _ = self._ask(f"unmount {target}", {"do": "unmount", "target": target, "lazy": lazy})
        return bool(answer["state"] != "busy")

    def holders(self, target: str) -> tuple[list[Holder], bool]:
        """Some processes that use a mount, and whether there may be others that cannot be looked into.

        One of those is whoever waits in the middle of a change to its memory: not even its mappings can be read then.
        """
        try:
            answer, _ = self._ask(f"look for users of {target}", {"do": "holders", "target": target})
        except TimedOutError:
            return [], True
        return [Holder(**each) for each in answer["holders"]], answer["hidden"]

    def _ask(self, action: str, question: dict[str, Any]) -> tuple[dict[str, Any], int | None]:
        connection = self._socket or self._start()
        try:
            connection.send(json.dumps(question).encode())
            message, descriptors = _receive(connection)
        except TimeoutError:
            self._end()
            reason = f"a file system on the way did not answer within {ANSWER_TIMEOUT_S:.0f} s"
            raise TimedOutError(action, reason, "look at its server, or unmount it with `umount -l`") from None
        except OSError as error:
            self._end()
            raise InternalError(action, f"the process that mounts is lost: {error}", "try again") from None
        if not message:
            self._end()
            raise InternalError(action, "the process that mounts ended", "look at node.err beside the node's log")
        answer = json.loads(message)
        if failure := answer.get("error"):
            kind = ERROR_TYPES.get(failure["code"], PenstockError)
            raise kind(action, failure["reason"], failure["advice"])
        return answer, descriptors[0] if descriptors else None

    def _start(self) -> socket.socket:
        _left[:] = [process for process in _left if process.poll() is None]
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(ANSWER_TIMEOUT_S)
        with theirs:
            # By its path: it needs nothing of the package, and starts in a few hundredths of a second.
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(Path(mounting.__file__)), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,
            )
        self._socket = ours
        return ours

    def _end(self) -> None:
        process, self._process = self._process, None
        connection, self._socket = self._socket, None
        if connection is not None:
            connection.close()
        if process is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_TIMEOUT_S)
            return
        process.kill()
        try:
            process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            _left.append(process)


def _receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    # Not `recv_fds`: a descriptor must be closed to what the node starts from the moment it arrives.
    size = array.array("i").itemsize
    message, extra, _, _ = connection.recvmsg(
        mounting.MESSAGE_MAX_BYTES, socket.CMSG_SPACE(size), socket.MSG_CMSG_CLOEXEC
    )
    descriptors = array.array("i")
    for level, kind, data in extra:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(data[: len(data) - len(data) % size])
    return message, list(descriptors)
