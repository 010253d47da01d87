"""The demo as a user plays it: what it prints, and that nothing is left, however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

DEMO = [sys.executable, "-m", "penstock.demo"]
FIRST_STEP_S = 60.0


def environment(directory: Path) -> dict[str, str]:
    return os.environ | {"TMPDIR": str(directory)}


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a short path, so that what the demo makes there is all in it."""
    with tempfile.TemporaryDirectory(prefix="demo-") as made:
        yield Path(made)


def processes_of(directory: Path) -> list[str]:
    """Command lines of processes that know the directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            facts = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:
            continue
        if os.fsencode(directory / "penstock-demo-") in facts:
            found.append(facts.decode(errors="replace"))
    return found


def await_nothing_left(directory: Path) -> None:
    deadline = time.monotonic() + 20
    while processes_of(directory) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_of(directory) == []
    assert list(directory.glob("penstock-demo-*")) == []


@pytest.mark.timeout(240)
def test_the_demo_measures_both_sides_and_leaves_nothing_behind(place: Path) -> None:
    done = subprocess.run([*DEMO, "--json"], capture_output=True, text=True, env=environment(place), timeout=200)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    rows = {(row["group"], row["name"]): row for row in document["measurements"]}
    assert rows[("small", "plain_1")]["seconds"] > 512 * 0.03
    for group, name in [("small", "first_epoch"), ("small", "second_epoch"), ("small", "read_many"), ("large", "warm")]:
        assert rows[(group, name)]["times_plain_1"] > 1, rows[(group, name)]
    assert (document["no_mount"] is None) == (("small", "mount_warm") in rows), document["no_mount"]
    if document["no_mount"] is None:
        for group, name in [("small", "mount_cold"), ("small", "mount_warm"), ("large", "mount_warm")]:
            assert rows[(group, name)]["times_plain_1"] > 1, rows[(group, name)]
    else:
        assert "fuse" in document["no_mount"].lower(), document["no_mount"]
    assert document["simulated"]["total_bytes_per_s"] == 400_000_000
    await_nothing_left(place)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_cleans_up(place: Path, number: signal.Signals) -> None:
    demo = subprocess.Popen(DEMO, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(place))
    deadline = time.monotonic() + FIRST_STEP_S
    # With the node up there is most to clean.
    while not list(place.glob("penstock-demo-*/home/run/node.json")):
        assert demo.poll() is None, demo.communicate()
        assert time.monotonic() < deadline, "the node of the demo did not start"
        time.sleep(0.02)
    demo.send_signal(number)
    _, said = demo.communicate(timeout=60)
    assert demo.returncode == 130, said
    assert "everything is cleaned up" in said
    await_nothing_left(place)


def test_a_wrong_argument_is_a_misuse() -> None:
    done = subprocess.run([*DEMO, "--yaml"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "--json" in done.stderr
