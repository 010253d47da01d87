"""Runs a command in which every write to an extent file fails with EIO, as on a disk that has died."""

import ctypes
import os
import platform
import struct
import sys

PWRITEV = {"x86_64": 296, "aarch64": 70}


def fail_pwritev() -> None:
    """From now on this process and what it starts get EIO from ``pwritev`` of several pieces: the index of the cache
    is written in one piece, an extent in as many as came from the source.
    """
    number = PWRITEV[platform.machine()]
    load, jump_if_equal, jump_if_greater, answer = 0x20, 0x15, 0x25, 0x06
    at_number, at_pieces = 0, 16 + 2 * 8
    allow, eio = 0x7FFF0000, 0x00050000 | 5
    steps = [
        (load, 0, 0, at_number),
        (jump_if_equal, 0, 3, number),
        (load, 0, 0, at_pieces),
        (jump_if_greater, 0, 1, 1),
        (answer, 0, 0, eio),
        (answer, 0, 0, allow),
    ]
    program = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *step) for step in steps))
    header = struct.pack("<HxxxxxxQ", len(steps), ctypes.addressof(program))
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, set_seccomp, filter_mode = 38, 22, 2
    if libc.prctl(no_new_privileges, 1, 0, 0, 0) or libc.prctl(set_seccomp, filter_mode, header, 0, 0):
        raise OSError(ctypes.get_errno(), "the filter of system calls was refused")


if __name__ == "__main__":
    fail_pwritev()
    os.execvp(sys.argv[1], sys.argv[1:])
