"""Logs: JSON lines with fields, text for people, a bound on the file."""

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock import logs


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    for handler in list(root.handlers):
        if handler not in handlers:
            root.removeHandler(handler)
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)


def test_a_line_is_one_json_object_with_its_fields(tmp_path: Path) -> None:
    logs.start("info", tmp_path / "node.jsonl")
    logging.getLogger("penstock.test").warning("page %d dropped", 7, extra={"code": "corrupt", "path": Path("/a")})
    logging.getLogger("penstock.test").debug("not kept")
    [line] = (tmp_path / "node.jsonl").read_text().splitlines()
    assert {name: value for name, value in json.loads(line).items() if name != "timestamp"} == {
        "level": "WARNING",
        "target": "penstock.test",
        "message": "page 7 dropped",
        "code": "corrupt",
        "path": "/a",
    }


def test_the_log_is_for_the_user_alone(tmp_path: Path) -> None:
    logs.start("info", tmp_path / "node.jsonl")
    assert (tmp_path / "node.jsonl").stat().st_mode & 0o077 == 0


def test_a_container_gets_json_lines_and_a_terminal_gets_text(tmp_path: Path) -> None:
    plain = io.StringIO()
    logs.start("info", tmp_path / "a", plain)
    logging.getLogger("x").info("hello", extra={"code": "c"})
    assert json.loads(plain.getvalue())["code"] == "c"
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    logs.start("info", tmp_path / "a", terminal)
    logging.getLogger("x").info("hello", extra={"code": "c"})
    assert terminal.getvalue().rstrip().endswith("info    hello (code=c)")


def test_an_exception_is_part_of_its_line(tmp_path: Path) -> None:
    logs.start("info", tmp_path / "a")
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("x").exception("defect")
    assert "ValueError: broken" in json.loads((tmp_path / "a").read_text())["exception"]


def test_a_log_past_its_bound_is_moved_aside_and_writers_go_on(tmp_path: Path) -> None:
    file = tmp_path / "node.jsonl"
    logs.start("info", file)
    logging.getLogger("x").info("first")
    assert not logs.rotate(file, 1 << 20)
    assert logs.rotate(file, 10)
    logging.getLogger("x").info("second")
    assert "first" in (tmp_path / "node.jsonl.1").read_text()
    assert json.loads(file.read_text())["message"] == "second"


def test_a_missing_log_is_no_failure(tmp_path: Path) -> None:
    assert not logs.rotate(tmp_path / "none", 1)
