"""Runs a command in which every write to an extent file fails with EIO, or every read of what lies behind its first
mebibyte, as on a disk that dies.

The kernel asks about each such call (seccomp's user notification); who answers ends with the last process of the
command.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import select
import socket
import struct
import sys
from pathlib import Path

NUMBERS = {
    "x86_64": {"pread64": 17, "pwritev": 296, "seccomp": 317},
    "aarch64": {"pread64": 67, "pwritev": 70, "seccomp": 277},
}[platform.machine()]
FAILING = {"reads": ("pread64", 1 << 20), "writes": ("pwritev", 0)}
"""A system call, and the offset from which on it fails; the offset is the fourth argument of both."""

# From <linux/seccomp.h> and <linux/filter.h>.
SET_MODE_FILTER, NEW_LISTENER = 1, 8
RECEIVE, SEND, GO_ON = 0xC0502100, 0xC0182101, 1
ALLOW, ASK = 0x7FFF0000, 0x7FC00000
LOAD, JUMP_IF_EQUAL, JUMP_IF_AT_LEAST, ANSWER = 0x20, 0x15, 0x35, 0x06
QUESTION = struct.Struct("<QII iIQ 6Q")
REPLY = struct.Struct("<QqiI")


def listen(call: str, offset: int) -> int:
    """From now on the kernel asks whoever holds the descriptor about such calls of this process and what it starts."""
    at_number, at_offset = 0, 16 + 3 * 8
    steps = [
        (LOAD, 0, 0, at_number),
        (JUMP_IF_EQUAL, 0, 3, NUMBERS[call]),
        (LOAD, 0, 0, at_offset),
        (JUMP_IF_AT_LEAST, 0, 1, offset),
        (ANSWER, 0, 0, ASK),
        (ANSWER, 0, 0, ALLOW),
    ]
    program = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *step) for step in steps))
    header = struct.pack("<HxxxxxxQ", len(steps), ctypes.addressof(program))
    libc, no_new_privileges = ctypes.CDLL(None, use_errno=True), 38
    listener = -1
    if libc.prctl(no_new_privileges, 1, 0, 0, 0) == 0:
        listener = int(libc.syscall(NUMBERS["seccomp"], SET_MODE_FILTER, NEW_LISTENER, header))
    if listener < 0:
        raise OSError(ctypes.get_errno(), "the filter of system calls was refused")
    return listener


def answer(listener: int) -> None:
    """Fails calls on extent files and lets all others go on, until nobody is left who could ask."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    while not any(event & select.POLLHUP for _, event in poll.poll()):
        question = bytearray(QUESTION.size)
        try:
            fcntl.ioctl(listener, RECEIVE, question)
            asked, process, *_ = fields = QUESTION.unpack(question)
            path = Path(f"/proc/{process}/fd/{fields[6]}").readlink()
            fails = path.suffix == ".x" and "extents" in path.parts
            reply = (asked, 0, -errno.EIO, 0) if fails else (asked, 0, 0, GO_ON)
            fcntl.ioctl(listener, SEND, bytearray(REPLY.pack(*reply)))
        except FileNotFoundError:
            continue  # who asked was killed meanwhile


def main(what: str, command: list[str]) -> None:
    here, there = socket.socketpair()
    if os.fork() == 0:
        # A session and streams of its own: nobody waits for who answers.
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(null, stream)
        here.close()
        _, [listener], _, _ = socket.recv_fds(there, 1, 1)
        there.close()
        answer(listener)
        os._exit(0)
    there.close()
    listener = listen(*FAILING[what])
    socket.send_fds(here, [b"x"], [listener])
    os.close(listener)
    here.close()
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
