"""An S3 store on loopback that answers wrongly on demand and counts what it was asked."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.message import Message
from email.utils import formatdate
from typing import Any, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

MODIFIED = 1_700_000_000


@dataclass
class Answer:
    """What a store that works would say."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """A request: ``kind`` is ``list``, ``stat`` or ``read``; ``whole`` is the object that is asked for."""

    kind: str
    key: str
    span: tuple[int, int] | None = None
    whole: bytes = b""


Fault = Callable[["Handler", Question, Answer], None]
"""Sends an answer, or none, instead of the right one."""


class Store:
    """Buckets of all names hold the same objects. ``judge`` decides which request is answered by which fault; ``watch``
    is told the headers of each.
    """

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, str]] = {}
        self.asked: Counter[str] = Counter()
        self.faulty: Counter[str] = Counter()
        self.judge: Callable[[Question], Fault | None] = lambda _: None
        self.watch: Callable[[str, Message], object] = lambda *_: None
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self._connections: set[socket.socket] = set()
        self._server = _Server(("127.0.0.1", 0), Handler, self)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    @property
    def endpoint(self) -> str:
        """Where it listens: on loopback alone."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def put(self, key: str, content: bytes, *, bare: bool = False) -> None:
        """A new version of an object; a bare one has no ETag."""
        with self.lock:
            self.objects[key] = (content, "" if bare else etag(content))

    def delete(self, key: str) -> None:
        """Takes an object away."""
        with self.lock:
            del self.objects[key]

    def answer_all(self, fault: Fault) -> None:
        """From now on every request meets this fault."""
        self.judge = lambda _: fault

    def recover(self) -> None:
        """From now on every answer is right."""
        self.judge = lambda _: None

    def close(self) -> None:
        """Ends it and every connection, the silent ones too; once."""
        if self.closing.is_set():
            return
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        with self.lock:
            connections = list(self._connections)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def connected(self, connection: socket.socket) -> Iterator[None]:
        """Knows a connection as long as it lasts."""
        with self.lock:
            self._connections.add(connection)
        try:
            yield
        finally:
            with self.lock:
                self._connections.discard(connection)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = False
    request_queue_size = 256

    def __init__(self, address: tuple[str, int], handler: type[Handler], store: Store) -> None:
        super().__init__(address, handler)
        self.store = store

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up in the middle is what these tests are about."""


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def handle(self) -> None:
        with self.server.store.connected(self.connection):
            super().handle()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        store = self.server.store
        question, answer = self._right()
        store.watch(question.kind, self.headers)
        with store.lock:
            fault = store.judge(question)
            store.asked[question.kind] += 1
            store.faulty[question.key] += fault is not None
        if fault is None:
            self.send(answer)
        else:
            fault(self, question, answer)

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        key, found = self._found()
        if not self._holds(found):
            self.send(error(412, "PreconditionFailed"))
            return
        self.server.store.put(key, content)
        self.send(Answer(200, headers={"ETag": etag(content)}))

    def do_DELETE(self) -> None:
        key, found = self._found()
        if found is None or not self._holds(found):
            self.send(error(404, "NoSuchKey") if found is None else error(412, "PreconditionFailed"))
            return
        self.server.store.delete(key)
        self.send(Answer(204))

    def send(self, answer: Answer, *, length: int | None = None) -> None:
        """Sends an answer with its length, or with one that is not its length."""
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def reset(self) -> None:
        """Breaks the connection without a goodbye."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def log_message(self, *_: Any) -> None:
        return

    def _found(self) -> tuple[str, tuple[bytes, str] | None]:
        """The key that is asked for, and what it has."""
        _, _, key = urlsplit(self.path).path.lstrip("/").partition("/")
        key = unquote(key)
        with self.server.store.lock:
            return key, self.server.store.objects.get(key)

    def _holds(self, found: tuple[bytes, str] | None) -> bool:
        """Whether the conditions of a request hold."""
        match, none = self.headers.get("If-Match"), self.headers.get("If-None-Match")
        return (match is None or (found is not None and match == found[1])) and (none is None or found is None)

    def _right(self) -> tuple[Question, Answer]:
        key, found = self._found()
        if not key:
            url = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
            return Question("list", ""), Answer(200, self._listing(query), {"Content-Type": "application/xml"})
        kind = "stat" if self.command == "HEAD" else "read"
        if found is None:
            return Question(kind, key), error(404, "NoSuchKey")
        whole, version = found
        headers = {"Last-Modified": formatdate(MODIFIED, usegmt=True), "Accept-Ranges": "bytes"}
        if version:
            headers["ETag"] = version
        if not self._holds(found):
            return Question(kind, key), error(412, "PreconditionFailed")
        asked = self.headers.get("Range")
        if asked is None:
            return Question(kind, key, (0, len(whole)), whole), Answer(200, whole, headers)
        first, last = (int(part) for part in asked.removeprefix("bytes=").split("-"))
        span = (first, min(last + 1, len(whole)))
        headers["Content-Range"] = f"bytes {span[0]}-{span[1] - 1}/{len(whole)}"
        return Question(kind, key, span, whole), Answer(206, whole[slice(*span)], headers)

    def _listing(self, query: dict[str, str]) -> bytes:
        prefix, limit = query.get("prefix", ""), int(query.get("max-keys", "1000"))
        after = query.get("continuation-token") or query.get("start-after", "")
        store = self.server.store
        with store.lock:
            objects = sorted((key, len(content), version) for key, (content, version) in store.objects.items())
        rows: dict[str, str] = {}
        for key, size, version in objects:
            name, row = key, _contents(key, size, version)
            if "delimiter" in query and "/" in key[len(prefix) :]:
                name = prefix + key[len(prefix) :].split("/")[0] + "/"
                row = f"<CommonPrefixes><Prefix>{quote(name)}</Prefix></CommonPrefixes>"
            if key.startswith(prefix) and name > after:
                rows[name] = row
        names = list(rows)[:limit]
        more = len(rows) > limit
        token = f"<NextContinuationToken>{escape(names[-1])}</NextContinuationToken>" if more else ""
        return (
            '<?xml version="1.0" encoding="UTF-8"?>'
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><EncodingType>url</EncodingType>'
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}"
            f"{''.join(rows[name] for name in names)}</ListBucketResult>"
        ).encode()


class Gate:
    """Lets so many reads of a store through as it is told; the others wait in front of it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._turn = threading.Condition()
        self._admitted = 0.0
        store.judge = lambda question: self._pass if question.kind == "read" else None

    def admit(self, count: float) -> None:
        """Lets so many more through."""
        with self._turn:
            self._admitted += count
            self._turn.notify_all()

    def open(self) -> None:
        """Holds nobody up any more."""
        self.admit(float("inf"))

    def is_shut(self) -> bool:
        """Whether as many came through as were admitted."""
        with self._turn:
            return self._admitted < 1

    def _pass(self, handler: Handler, question: Question, right: Answer) -> None:
        with self._turn:
            while self._admitted < 1 and not self._store.closing.is_set():
                self._turn.wait(0.1)
            self._admitted -= 1
        handler.send(right)


def _contents(key: str, size: int, version: str) -> str:
    return (
        f"<Contents><Key>{quote(key)}</Key><LastModified>2023-11-14T22:13:20.000Z</LastModified>"
        f"{f'<ETag>{escape(version)}</ETag>' if version else ''}<Size>{size}</Size></Contents>"
    )


def etag(content: bytes) -> str:
    """The version of some content."""
    return f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'


def error(status: int, code: str, inside: str = "", **headers: str) -> Answer:
    """An S3 error document."""
    body = f"<Error><Code>{code}</Code><Message>told by the test</Message>{inside}</Error>"
    return Answer(status, body.encode(), {"Content-Type": "application/xml", **headers})
