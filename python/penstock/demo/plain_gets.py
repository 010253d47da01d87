"""The baseline: the same objects by plain GETs, as any S3 library sends them, only with less around them.

Library: ``http.client`` and threads of the standard library. Connections: as many as the caller says, each kept
alive, one request at a time on each. Signing and checksums: none, which is kinder to this side than to Penstock.
Destination: memory of this process, or a file. Nothing is cached and nothing is retried: a failure is an error.
"""

from __future__ import annotations

import http.client
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from typing import TypeVar
from urllib.parse import quote, urlsplit

__all__ = ["PART_BYTES", "PlainStore"]

PART_BYTES = 8 << 20
"""Length of one ranged GET when a large object is fetched over several connections."""

_BUFFER_BYTES = 1 << 20
_TIMEOUT_S = 30.0

Task = TypeVar("Task")


class PlainStore:
    """One bucket behind an endpoint, asked without any help.

    Args:
        endpoint: ``http://host:port``.
        bucket: name of the bucket, addressed by path.
    """

    def __init__(self, endpoint: str, bucket: str) -> None:
        parts = urlsplit(endpoint)
        self._host = parts.hostname or ""
        self._port = parts.port or 80
        self._bucket = bucket

    def put(self, key: str, content: bytes) -> None:
        """Stores one object over a connection of its own."""
        with closing(self._connect()) as connection:
            _check(self._ask(connection, "PUT", key, content), 200)

    def put_all(self, objects: Iterable[tuple[str, Callable[[], bytes]]], connections: int) -> None:
        """Stores objects, each made when its turn comes, over ``connections``."""
        self._share(objects, connections, self._put)

    def create_bucket(self) -> None:
        """Makes the bucket."""
        with closing(self._connect()) as connection:
            _check(self._ask(connection, "PUT", ""), 200)

    def fetch_files(self, keys: Sequence[str], connections: int) -> list[bytes]:
        """Whole objects into memory, in the order of ``keys``; one GET each."""
        contents: list[bytes] = [b""] * len(keys)

        def fetch(connection: http.client.HTTPConnection, task: tuple[int, str]) -> None:
            position, key = task
            contents[position] = _check(self._ask(connection, "GET", key), 200)

        self._share(enumerate(keys), connections, fetch)
        return contents

    def fetch_ranges(self, key: str, size: int, buffer: memoryview, connections: int) -> None:
        """One object into ``buffer``: a single GET over one connection, else ranges of ``PART_BYTES``."""
        part = size if connections == 1 else PART_BYTES

        def fetch(connection: http.client.HTTPConnection, start: int) -> None:
            end = min(start + part, size)
            response = self._open_range(connection, key, start, end)
            filled = start
            while filled < end and (count := response.readinto(buffer[filled:end])):
                filled += count
            _check_length(filled - start, end - start)

        self._share(range(0, size, part), connections, fetch)

    def fetch_to_file(self, key: str, size: int, path: str, connections: int) -> None:
        """One object into a new file, by ranges of ``PART_BYTES`` written where they belong; not synced."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)

        def fetch(connection: http.client.HTTPConnection, start: int) -> None:
            end = min(start + PART_BYTES, size)
            response = self._open_range(connection, key, start, end)
            buffer = memoryview(bytearray(_BUFFER_BYTES))
            filled = start
            while filled < end and (count := response.readinto(buffer)):
                filled += os.pwrite(descriptor, buffer[:count], filled)
            _check_length(filled - start, end - start)

        try:
            self._share(range(0, size, PART_BYTES), connections, fetch)
        finally:
            os.close(descriptor)

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self._host, self._port, timeout=_TIMEOUT_S)

    def _ask(
        self, connection: http.client.HTTPConnection, method: str, key: str, content: bytes | None = None
    ) -> http.client.HTTPResponse:
        connection.request(method, f"/{self._bucket}/{quote(key)}", content)
        return connection.getresponse()

    def _open_range(
        self, connection: http.client.HTTPConnection, key: str, start: int, end: int
    ) -> http.client.HTTPResponse:
        headers = {"Range": f"bytes={start}-{end - 1}"}
        connection.request("GET", f"/{self._bucket}/{quote(key)}", headers=headers)
        response = connection.getresponse()
        if response.status != http.client.PARTIAL_CONTENT:
            _check(response, http.client.PARTIAL_CONTENT)
        return response

    def _put(self, connection: http.client.HTTPConnection, task: tuple[str, Callable[[], bytes]]) -> None:
        key, make = task
        _check(self._ask(connection, "PUT", key, make()), 200)

    def _share(
        self,
        tasks: Iterable[Task],
        connections: int,
        work: Callable[[http.client.HTTPConnection, Task], None],
    ) -> None:
        """Does every task, in order, on whichever of the connections is free. The first failure ends it."""
        queue = iter(tasks)
        lock = threading.Lock()
        failures: list[BaseException] = []

        def serve() -> None:
            try:
                with closing(self._connect()) as connection:
                    while not failures:
                        with lock:
                            task = next(queue, None)
                        if task is None:
                            return
                        work(connection, task)
            except BaseException as error:  # noqa: BLE001 - raised again below, in the caller's thread
                failures.append(error)

        threads = [threading.Thread(target=serve, daemon=True) for _ in range(connections)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException as error:
            failures.append(error)
            raise
        if failures:
            raise failures[0]


def _check(response: http.client.HTTPResponse, status: int) -> bytes:
    body = response.read()
    if response.status != status:
        raise OSError(f"the store answered {response.status} {response.reason}: {body[:200]!r}")
    return body


def _check_length(got: int, expected: int) -> None:
    if got != expected:
        raise OSError(f"the store sent {got} of {expected} bytes")
