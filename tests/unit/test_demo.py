"""The parts of the demo that need no node: the baseline, and how the numbers are told."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import pytest
from rich.console import Console

from penstock.demo import __main__ as program
from penstock.demo import report
from penstock.demo.measurements import Measurement
from penstock.demo.plain_gets import PART_BYTES, PlainStore

CONTENT = bytes(range(251)) * 80_000


class Store(BaseHTTPRequestHandler):
    """Just enough of a store: PUT, GET, one range."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1
    objects: dict[str, bytes]
    connections: set[tuple[str, int]]

    def do_PUT(self) -> None:
        self.objects[unquote(self.path)] = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._answer(200, b"")

    def do_GET(self) -> None:
        self.connections.add(self.client_address)
        content = self.objects.get(unquote(self.path))
        if content is None:
            self._answer(404, b"NoSuchKey")
        elif wanted := self.headers.get("Range"):
            start, end = map(int, wanted.removeprefix("bytes=").split("-"))
            self._answer(206, content[start : end + 1])
        else:
            self._answer(200, content)

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def plain() -> Iterator[PlainStore]:
    Store.objects, Store.connections = {}, set()
    with ThreadingHTTPServer(("127.0.0.1", 0), Store) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield PlainStore(f"http://127.0.0.1:{server.server_port}", "lake")
        server.shutdown()
        thread.join()


def test_plain_gets_come_back_in_the_order_of_the_keys_over_the_connections_asked_for(plain: PlainStore) -> None:
    keys = [f"a b/{number}+%.bin" for number in range(50)]
    plain.put_all(((key, key.encode) for key in keys), connections=4)
    for connections in (1, 8):
        Store.connections.clear()
        assert plain.fetch_files(keys, connections) == [key.encode() for key in keys]
        assert 1 <= len(Store.connections) <= connections


def test_plain_ranges_fill_buffer_and_file(plain: PlainStore, tmp_path) -> None:
    plain.put("large", CONTENT)
    assert len(CONTENT) > 2 * PART_BYTES
    for connections in (1, 3):
        buffer = bytearray(len(CONTENT))
        plain.fetch_ranges("large", len(CONTENT), memoryview(buffer), connections)
        assert buffer == CONTENT
    plain.fetch_to_file("large", len(CONTENT), str(tmp_path / "large"), 3)
    assert (tmp_path / "large").read_bytes() == CONTENT


def test_a_plain_get_that_fails_ends_the_batch_with_the_answer(plain: PlainStore) -> None:
    plain.put("there", b"x")
    with pytest.raises(OSError, match=r"404.*NoSuchKey"):
        plain.fetch_files(["there", "missing", "there"], 2)


ROWS = [
    Measurement("small", "plain_1", "plain GETs, 1 connection", "", 20.0, 512, 58_720_256, ours=False),
    Measurement("small", "plain_32", "plain GETs, 32 connections", "", 0.5, 512, 58_720_256, ours=False),
    Measurement("small", "first_epoch", "first epoch", "", 1.0, 512, 58_720_256, ours=True),
    Measurement("large", "warm", "warm", "", 0.05, 1, 268_435_456, ours=True),
]


def test_ratios_compare_rows_of_the_same_bytes_only() -> None:
    document = json.loads(json.dumps(report.document(ROWS, {"get": 3}, 30.0)))
    first, large = document["measurements"][2:]
    assert (first["times_plain_1"], first["times_plain_32"]) == (20.0, 0.5)
    assert "times_plain_1" not in large
    assert document["store_requests"] == {"get": 3}


def test_the_table_says_what_is_simulated_and_what_to_do_next() -> None:
    text = io.StringIO()
    report.show(Console(file=text, width=140), ROWS, 30.0)
    shown = text.getvalue()
    for part in ("Penstock: first epoch", "20×", "0.5×", "30 ms to the first byte", "penstock attach s3://", "50 ms"):
        assert part in shown, shown


def test_the_table_fits_a_terminal_of_80_columns_without_breaking_a_row() -> None:
    text = io.StringIO()
    report.show(Console(file=text, width=80), ROWS, 30.0)
    rows = [line for line in text.getvalue().splitlines() if "GETs, 32 conn" in line or "first epoch" in line]
    assert [row.split() for row in rows] == [
        ["plain", "GETs,", "32", "connections", "500", "ms", "1,024", "117"],
        ["Penstock:", "first", "epoch", "1.00", "s", "512", "59", "20×", "0.5×"],
    ]
    assert "penstock[pandas]" in text.getvalue()


@pytest.mark.parametrize(("arguments", "code", "told"), [(["--help"], 0, "--json"), (["--jsno"], 2, "usage: ")])
def test_the_program_of_the_demo_says_how_it_is_used_and_plays_nothing(
    arguments: list[str], code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        program.main(arguments)
    printed = capsys.readouterr()
    assert ended.value.code == code
    assert told in (printed.out if code == 0 else printed.err)
