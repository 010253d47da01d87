"""How the benchmarks measure and keep: without any workload."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

# They are no part of the package: only a checkout has them.
sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import report, run
from benchmarks.measure import Side, Step, Verdict, memory_bytes, percentile, take_turns


def test_sides_take_turns_and_only_the_work_is_timed() -> None:
    order: list[str] = []
    sides = [Side("a", "how"), Side("b", "how")]
    steps = [
        Step(
            side,
            work=lambda side=side: order.append(side.name) or side.name,
            prepare=lambda: order.append("prepare"),
            check=lambda result: order.append(f"check {result}"),
        )
        for side in sides
    ]
    take_turns(steps, 2, {"self-by-pid": os.getpid()})
    assert order == ["prepare", "a", "check a", "prepare", "b", "check b"] * 2
    assert [len(side.seconds) for side in sides] == [2, 2]
    assert set(sides[0].cpu_medians()) == {"self", "self-by-pid"}


def test_a_bar_is_met_on_the_right_side_of_its_limit() -> None:
    assert Verdict("speed", 0.9, "≥", 0.9).met
    assert not Verdict("speed", 0.89, "≥", 0.9).met
    assert Verdict("time", 1.0, "≤", 1.0).met
    assert not Verdict("time", 1.01, "≤", 1.0).met


def test_a_percentile_is_a_value_that_was_measured() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert (percentile(values, 0.5), percentile(values, 0.99), percentile([7.0], 0.99)) == (51.0, 100.0, 7.0)


def test_memory_counts_memfds_once_and_no_file_pages() -> None:
    before = memory_bytes(os.getpid())
    descriptor = os.memfd_create("counted")
    twice = os.dup(descriptor)
    os.write(descriptor, bytes(64 << 20))
    grown = memory_bytes(os.getpid()) - before
    os.close(descriptor)
    os.close(twice)
    assert 60 << 20 < grown < 80 << 20


def test_results_are_kept_with_machine_and_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    side = Side("ours", "how", seconds=[1.0, 2.0], figures={"MB/s": 3.0})
    path = report.keep([Verdict("a bar", 2.0, "≥", 1.0, "×", [side])], ["a-workload"])
    document = json.loads(path.read_text())
    assert document["machine"]["cores"] >= 1
    (bar,) = document["bars"]
    assert (bar["met"], bar["sides"][0]["seconds"]) == (True, [1.0, 2.0])


def test_an_unknown_workload_is_a_misuse_that_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run.main(["warm-sequentail"])
    assert ended.value.code == 2
    assert "warm-sequential" in capsys.readouterr().err
