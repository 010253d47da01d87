"""What commands print: tables, JSON, one line an error, one line about an ended job."""

import json
import time
from typing import Any

import pytest

from penstock.cli import backlog, configuration, jobs, node, output, progress
from penstock.cli.paths import tree_path
from penstock.errors import InvalidInputError, NotFoundError


def test_a_table_is_aligned_and_never_truncated(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(["NAME", "SIZE"], [("a" * 100, 1), ("b", 1234)], right=["SIZE"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("  SIZE")
    assert lines[1] == "a" * 100 + "     1"
    assert lines[2] == "b" + " " * 99 + "  1234"


@pytest.mark.parametrize("rows", [[], [{"a": 1}], [{"a": 1}, {"b": [2]}]])
def test_a_streamed_array_is_json(rows: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    output.print_json_array(iter(rows))
    assert json.loads(capsys.readouterr().out) == rows


def test_an_error_is_one_line_with_its_code_whatever_is_in_it() -> None:
    line = output.error_line(NotFoundError("open /a\n/b", "no such file", "check it", size=3))
    assert line == "error: open /a /b: no such file; check it (size=3) [not-found]"


def test_only_what_the_user_can_fix_is_misuse() -> None:
    assert output.exit_code_of(InvalidInputError("a", "b")) == 2
    assert output.exit_code_of(NotFoundError("a", "b")) == 1


def test_nothing_is_styled_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    output.say(output.styled("x", "red"))
    assert capsys.readouterr().out == "x\n"


@pytest.mark.parametrize(
    ("text", "path"),
    [("/a/b/", "/a/b"), ("penstock:///a", "/a"), ("penstock://a/b", "/a/b"), ("penstock://", "/")],
)
def test_a_url_of_the_tree_is_a_path(text: str, path: str) -> None:
    assert tree_path(text) == path


JOB: dict[str, Any] = {
    "kind": "preload",
    "state": "finished",
    "busy_s": 2.0,
    "done_files": 512,
    "done_bytes": 56 << 20,
    "failed_files": 0,
    "results": {"fetched_bytes": 28 << 20},
}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "preloaded 512 files, 56.0 MiB in 2.0 s; 28.0 MiB fetched at 14.0 MiB/s"),
        ({"results": {"fetched_bytes": 0}}, "preloaded 512 files, 56.0 MiB in 2.0 s; 0 B fetched"),
        (
            {"kind": "evict", "results": {"freed_bytes": 1 << 30}},
            "evicted 512 files, 56.0 MiB in 2.0 s; 1.0 GiB freed",
        ),
        (
            {"kind": "verify", "results": {"pages": 9, "bad_pages": 2, "repaired_pages": 1}, "failed_files": 1},
            "verified 512 files, 56.0 MiB in 2.0 s; 9 pages checked, 2 bad, 1 repaired; 1 failed",
        ),
        (
            {"state": "cancelled", "busy_s": 0.0, "results": {}},
            "preload cancelled: 512 files, 56.0 MiB in 0 ms",
        ),
    ],
)
def test_an_ended_job_is_told_in_one_line(changes: dict[str, Any], line: str) -> None:
    assert progress.summary({**JOB, **changes}) == line


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("cache.size", None, "(chosen by the node)"),
        ("cache.size", 1 << 30, "1.0 GiB"),
        ("stage.size", None, "(chosen by the node)"),
        ("stage.size", 1 << 30, "1.0 GiB"),
        ("source.max_rate", None, "off"),
        ("source.max_rate", 1 << 20, "1.0 MiB/s"),
        ("deadlines.attach", 10.0, "10 s"),
        ("node.idle_timeout", 0.0, "off"),
        ("cache.tiers", [], "(one)"),
        ("cache.tiers", [{"directory": "/a", "size": 1 << 30}], "/a (1.0 GiB)"),
        ("cache.allow_network_filesystem", False, "false"),
        ("jobs.workers", 4, "4"),
    ],
)
def test_a_configured_value_is_shown_as_it_would_be_written(key: str, value: Any, text: str) -> None:
    assert configuration._text(key, value) == text


def test_a_job_that_has_ended_is_one_line_off_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = dict.fromkeys(progress._LINE_KEYS) | {"state": "finished", "failed_files": 0, "failures": []}
    monkeypatch.setattr(progress, "_updates", lambda _: iter([ended]))
    progress.follow("1", as_json=False)
    assert capsys.readouterr().out.count("\n") == 1


@pytest.mark.parametrize(
    ("counted", "row"),
    [(("fetched_bytes", 28 << 20), ("fetched", "28.0 MiB")), (("bad_pages", 1234), ("bad", "1,234 pages"))],
)
def test_what_a_job_counted_is_told_with_its_unit(counted: tuple[str, int], row: tuple[str, str]) -> None:
    assert jobs._result(*counted) == row


STAGE: dict[str, Any] = {"files": 2, "bytes": 3 << 20, "oldest_ms": None}


def test_a_backlog_is_told_by_files_bytes_and_age() -> None:
    assert backlog.summary({"files": 0}) == "nothing waits for its source"
    assert backlog.summary(STAGE) == "2 files, 3.0 MiB not in the source yet"
    old = {**STAGE, "oldest_ms": (time.time() - 3600) * 1000}
    assert backlog.summary(old) == "2 files, 3.0 MiB not in the source yet, the oldest for 1 h"
    assert backlog.left_behind({"files": 0}) is None
    assert str(backlog.left_behind(STAGE)).startswith("not in their source yet: 2 files, 3.0 MiB; they are kept")


def test_a_stage_that_fills_up_says_what_that_means_for_writers() -> None:
    assert backlog.pressure({"pressure": "none"}) == ""
    assert "slowed to the pace of the uploads" in backlog.pressure({"pressure": "slowed"})
    assert "writes fail" in backlog.pressure({"pressure": "full"})


@pytest.mark.parametrize(
    ("free", "used", "floor", "reason"),
    [
        (50, 0, 10, None),
        # What is cached makes room: at its floor a cache goes on.
        (10, 40, 10, None),
        (9, 0, 10, "9.0 GiB free, cache.free_space_floor leaves 10.0 GiB to others"),
        # No floor: a full disk is told by the write that fails.
        (0, 0, 0, None),
    ],
)
def test_a_tier_below_its_floor_that_can_make_no_room_caches_nothing(
    free: int, used: int, floor: int, reason: str | None
) -> None:
    tier = {"healthy": True, "free_bytes": free << 30, "used_bytes": used << 30, "floor_bytes": floor << 30}
    assert node.not_caching(tier) == reason
    assert node.not_caching({**tier, "healthy": False, "reason": "it burns"}) == "it burns"
