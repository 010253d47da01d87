"""Which way a mount is read is asked of its sources, but none is waited for long."""

import threading
from typing import Any

import pytest

from penstock.errors import UnavailableError
from penstock.policies.mounts import Sample, Way
from penstock.server import ways

MINUTE = {"seconds": 60.0}
DOCUMENTS: dict[str, Any] = {
    "/small": {"way": "auto", "freshness": MINUTE, "write": None},
    "/large": {"way": "auto", "freshness": "immutable", "write": None},
    "/gone": {"way": "auto", "freshness": MINUTE, "write": None},
    "/asked": {"way": "no-open", "freshness": MINUTE, "write": None},
    "/fresh": {"way": "auto", "freshness": {"seconds": 0.0}, "write": None},
    "/written": {"way": "auto", "freshness": MINUTE, "write": {"durability": "local"}},
}


def test_each_path_gets_its_way_and_only_those_are_asked_for_whose_files_matter() -> None:
    asked = []

    def sample(path: str) -> Sample:
        asked.append(path)
        if path == "/gone":
            raise UnavailableError(f"look at {path}", "no answer")
        return Sample(10, 10 * (1000 if path == "/small" else 10_000_000))

    chosen = ways.choose_ways(["/", *DOCUMENTS], DOCUMENTS.get, sample)
    assert {path: way.name for path, way in chosen.items()} == {
        "/": "open",
        "/small": "no-open",
        "/large": "open",
        "/gone": "open",
        "/asked": "no-open",
        "/fresh": "open",
        "/written": "open",
    }
    assert all(way.why for way in chosen.values())
    assert [path for path, way in chosen.items() if way.writable] == ["/written"]
    assert sorted(asked) == ["/gone", "/large", "/small"]


def test_a_source_that_does_not_answer_holds_no_mount_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "SAMPLE_PATIENCE_S", 0.2)
    answer = threading.Event()

    def sample(path: str) -> Sample:
        if path == "/silent":
            answer.wait(60)
        return Sample(10, 10)

    documents = {path: {"way": "auto", "freshness": MINUTE, "write": None} for path in ("/silent", "/quick")}
    try:
        chosen = ways.choose_ways(list(documents), documents.get, sample)
    finally:
        answer.set()
    assert chosen["/silent"] == Way("open", "nothing is known of its files yet")


def test_more_paths_than_are_asked_for_at_once_are_all_asked_for() -> None:
    paths = [f"/{number}" for number in range(5 * ways.SAMPLES_AT_ONCE)]
    chosen = ways.choose_ways(
        paths, lambda _: {"way": "auto", "freshness": MINUTE, "write": None}, lambda _: Sample(1, 1)
    )
    assert {way.name for way in chosen.values()} == {"no-open"}
