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
from benchmarks.compare import Spot, Work, compare, peer_spots
from benchmarks.measure import (
    GaveUpError,
    PeerFigure,
    Side,
    Step,
    Verdict,
    memory_bytes,
    peer_figures,
    percentile,
    take_turns,
)
from benchmarks.peers import PEERS, mounting
from benchmarks.peers.mounting import Mount, Peer, Place, mounted

sys.path.insert(0, str(Path(__file__).parents[2] / "docs/_extensions"))

import compared
import measured


def peer(command: list[str], prepare: list[list[str]] | None = None) -> Peer:
    """A peer that runs a command of the test's instead of mounting."""
    return Peer(
        name="peer",
        program=command[0],
        version=["--version"],
        options="none",
        command=lambda _: command,
        prepare=lambda _: prepare or [],
    )


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place("http://127.0.0.1:1", "bucket", tmp_path / "own", tmp_path / "target")


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
    path = report.keep([Verdict("a bar", 2.0, "≥", 1.0, "×", [side])], {"what": ["a-workload"]})
    document = json.loads(path.read_text())
    assert document["machine"]["cores"] >= 1
    (bar,) = document["bars"]
    assert (bar["met"], bar["sides"][0]["seconds"]) == (True, [1.0, 2.0])


def test_a_side_that_gives_up_takes_no_more_turns_and_the_others_go_on() -> None:
    ours, other = Side("ours", "how"), Side("other", "how")
    turns = iter([1])

    def work() -> None:
        if next(turns, None) is None:
            raise GaveUpError("it took too long")

    take_turns([Step(other, work), Step(ours, lambda: None)], 3, {})
    assert (len(ours.seconds), len(other.seconds), other.failure) == (3, 1, "it took too long")
    assert peer_figures([other], lambda side: side.median_s) == [PeerFigure(other, None)]


def test_wrong_bytes_are_an_error_of_ours_and_end_a_peer(tmp_path: Path, place: Place) -> None:
    work = Work("how", lambda directory: 1, expected=2)
    mount = Mount(peer(["sleep", "0"]), place)
    ours, theirs = Spot("ours", tmp_path), *peer_spots([mount])
    with pytest.raises(AssertionError, match="ours: 1 where 2 was expected"):
        compare([ours], work, 1)
    (side,) = compare([theirs], work, 1)
    assert side.failure == "peer: 1 where 2 was expected"


def test_a_peer_that_ends_instead_of_mounting_says_why_in_every_row(place: Place) -> None:
    with mounted(peer(["sh", "-c", "echo no such bucket >&2; exit 3"]), place) as mount:
        sides = compare(peer_spots([mount]), Work("how", lambda _: 1, expected=1), 2)
    assert sides[0].failure == "it ended with exit code 3 instead of mounting: no such bucket"
    assert sides[0].seconds == []
    assert not place.directory.exists()


def test_a_peer_that_cannot_be_prepared_is_not_started(place: Place) -> None:
    with mounted(peer(["sleep", "1000"], prepare=[["sh", "-c", "echo full >&2; exit 1"]]), place) as mount:
        assert mount.failure.endswith("returned non-zero exit status 1.: full")
        assert mount.processes == {}


def test_a_peer_that_takes_too_long_is_ended_with_all_its_processes(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.directory.mkdir()
    pipe = place.directory / "pipe"
    os.mkfifo(pipe)
    states = iter([True])
    monkeypatch.setattr(mounting, "is_mounted", lambda _: next(states, False))
    mount = Mount(peer(["sh", "-c", f"sleep 1000 > {pipe}; true"]), place, limits_s=(60, 0.2))

    def read(_: Path) -> None:
        # Waits for the other end, as who reads a file of a mount waits for its program, and fails without it.
        with pipe.open("rb") as file:
            if not file.read():
                raise ConnectionError("the other end is gone")

    try:
        mount.start()
        spots = peer_spots([mount])
        (side,) = compare(spots, Work("how", read, None), 2)
        (later,) = compare(spots, Work("how", lambda _: None, None), 2)
    finally:
        mount.stop()
    assert (side.failure, side.seconds) == ("it took longer than 0.2 s", [])
    assert later.failure == side.failure


def test_every_peer_states_its_options_and_its_cache_and_reads_only(place: Place) -> None:
    for known in PEERS:
        command = known.command(place)
        assert command[0] == known.program
        assert str(place.target) in command
        assert any(str(place.directory) in word for word in command), f"{known.name} keeps its cache elsewhere"
        assert "AWS_CA_BUNDLE" not in known.environment(place)
        assert any(word in ("ro", "--read-only") for word in command)


def test_peers_that_are_not_here_are_named_with_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    described = {peer["name"]: peer["missing"] for peer in run.companions(without=False)}
    assert described["s3fs"] == described["rclone mount"] == described["JuiceFS"] == "not found on this machine"
    assert described["mount-s3"].startswith("not compared")


def kept_comparison() -> dict[str, object]:
    """A run as it is kept: a peer that is better, one that is worse, and one that gave up."""
    sides = [Side("penstock mount", "how", seconds=[2.0]), Side("local file system", "how", seconds=[1.0])]
    peers = [
        PeerFigure(Side("fast", "how | so", seconds=[1.0, 1.5]), 1.25),
        PeerFigure(Side("slow", "how", seconds=[9.0]), 9.0),
        PeerFigure(Side("lame", "how", failure="it took longer than 60 s"), None),
    ]
    verdict = Verdict("reading, time ÷ local", 2.0, "≤", 3.0, "×", sides, peers=peers)
    known = [
        {"name": "fast", "version": "1.0", "options": "--all", "missing": ""},
        {"name": "gone", "version": "", "options": "", "missing": "not found on this machine"},
    ]
    path = report.keep([verdict], {"what": ["reading"], "load_before": 0.125, "peers": known})
    document: dict[str, object] = json.loads(path.read_text())
    return document


def test_the_page_of_peers_says_who_is_better_and_who_gave_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(measured, "RESULTS", tmp_path)
    assert compared.page() == compared.NOTHING
    kept_comparison()
    lines = compared.page().splitlines()
    assert "| gone | – | not found on this machine |" in lines
    row = "| reading, time ÷ local | ≤ 3× | 2× | **1.25×** | gave up: it took longer than 60 s | 9× |"
    assert row in lines
    assert "Load of the machine before: 0.12." in lines
    better = lines[lines.index("### Where a peer is better") + 2]
    assert better == "- reading, time ÷ local: fast **1.25×**, Penstock 2×"
    assert any("1 1.5" in line and "how \\| so" in line for line in lines)


def test_a_bar_is_printed_with_both_sides_and_a_row_for_each_peer(capsys: pytest.CaptureFixture[str]) -> None:
    sides = [Side("ours", "reading", seconds=[2.0], cpu_s={"self": [0.5]}), Side("local", "reading", seconds=[1.0])]
    peers = [
        PeerFigure(Side("fast", "reading", seconds=[1.0], cpu_s={"peer": [0.25]}), 1.0),
        PeerFigure(Side("lame", "reading", failure="no such bucket"), None),
    ]
    report.show(Verdict("time ÷ local", 2.0, "≤", 1.5, sides=sides, peers=peers))
    printed = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines() if line]
    assert printed == [
        "MISSED time ÷ local: 2 (bar ≤ 1.5)",
        "ours 2 s (2–2, 1x) cpu s: self 0.50",
        "reading",
        "local 1 s (1–1, 1x)",
        "peer fast 1; 1 s (1–1, 1x) cpu s: peer 0.25",
        "peer lame gave up: no such bucket",
    ]


def test_a_comparison_outlives_a_later_run_without_peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(measured, "RESULTS", tmp_path)
    document = kept_comparison()
    bars = [bar | {"value": 1.0, "peers": []} for bar in document["bars"]]  # type: ignore[attr-defined]
    (tmp_path / "99990101T000000Z.json").write_text(json.dumps(document | {"bars": bars}))
    assert [bar["value"] for bar in measured.newest_bars()] == [1.0]
    assert [bar["value"] for bar in measured.newest_bars(having="peers")] == [2.0]


def test_who_measures_sees_the_table_and_only_who_asks_for_it_has_it_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = tmp_path / "README.md"
    before = "above\n<!-- measured: begin -->\nold\n<!-- measured: end -->\nbelow\n"
    readme.write_text(before)
    monkeypatch.setattr(measured, "ROOT", tmp_path)
    monkeypatch.setattr(measured, "RESULTS", tmp_path / "results")
    measured.main([])
    assert (capsys.readouterr().out, readme.read_text()) == (measured.NOTHING, before)
    measured.main(["--write"])
    assert readme.read_text() == before.replace("old\n", measured.NOTHING)
    bench = (Path(__file__).parents[2] / "Makefile").read_text().partition("\nbench:")[2].partition("\n\n")[0]
    assert "measured.py;" in bench


def test_an_unknown_workload_is_a_misuse_that_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run.main(["warm-sequentail"])
    assert ended.value.code == 2
    assert "warm-sequential" in capsys.readouterr().err
