"""The least that lending a file costs: one round trip over a Unix socket that brings a descriptor.

Library: ``socket``; the server is a process of its own that answers each 64-byte frame with 128 bytes and one
descriptor. Connections: one. The client closes the descriptor and reads nothing from it. Both ends are Python, as
the caller of Penstock is; there is no parsing, no lookup and no check on either side.
"""

import array
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

HOW = "socketpair-like Unix stream: 64-byte frame there, 128 bytes and a descriptor back, descriptor closed"
REQUEST = b"q" * 64
ANSWER = b"a" * 128


class Server:
    """The other end, in its own process."""

    def __init__(self, socket_path: Path, file_path: Path) -> None:
        command = [sys.executable, __file__, str(socket_path), str(file_path)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE)
        self.pid = self._process.pid
        assert self._process.stdout
        self._process.stdout.readline()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(str(socket_path))

    def round_trips(self, count: int) -> list[float]:
        """Seconds of each of ``count`` round trips."""
        times = []
        connection, space = self._socket, socket.CMSG_SPACE(4)
        for _ in range(count):
            start = time.perf_counter()
            connection.sendall(REQUEST)
            data, ancillary, _, _ = connection.recvmsg(len(ANSWER), space)
            (descriptor,) = array.array("i", ancillary[0][2])
            os.close(descriptor)
            times.append(time.perf_counter() - start)
            assert len(data) == len(ANSWER)
        return times

    def stop(self) -> None:
        self._socket.close()
        self._process.wait(timeout=10)


def serve(socket_path: str, file_path: str) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(socket_path)
    listener.listen(1)
    print("ready", flush=True)
    connection, _ = listener.accept()
    descriptor = os.open(file_path, os.O_RDONLY)
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
    while connection.recv(len(REQUEST)):
        connection.sendmsg([ANSWER], rights)


if __name__ == "__main__":
    serve(*sys.argv[1:])
