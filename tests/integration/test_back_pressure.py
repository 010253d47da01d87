"""A stage that gets full: writers are slowed down, then told; nothing is lost, and what frees space goes on."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import penstock
from integration.test_writing import PERSIST_S, Sea, attach, digest, leave, read, write
from penstock.errors import NoSpaceError

MIB = 1 << 20
STAGE = 8 * MIB


@pytest.fixture
def sea(tmp_path: Path) -> Iterator[Sea]:
    made = Sea(tmp_path)
    yield made
    made.fall()


@pytest.fixture
def runs(machine: Any, sea: Sea) -> Any:
    machine("up", "--set", f"stage.size={STAGE}")
    attach(machine, sea)
    return machine


def fill(client: penstock.Client) -> dict[str, bytes]:
    """Writes files of a mebibyte until there is no room; those that were closed."""
    kept: dict[str, bytes] = {}
    for number in range(2 * STAGE // MIB):
        content = os.urandom(MIB)
        try:
            write(client, f"/runs/f{number}", content)
        except NoSpaceError:
            return kept
        kept[f"f{number}"] = content
    raise AssertionError("it was never full")


def metrics(machine: Any) -> dict[str, int]:
    return dict(machine.control().status()["metrics"])


def test_a_full_stage_takes_renames_and_removals_and_brings_everything_when_the_source_is_back(
    runs: Any, sea: Sea
) -> None:
    with penstock.connect(runs.home.name, start=False) as client:
        leave(client, sea)
        kept = fill(client)
        assert len(kept) == STAGE // MIB
        known = runs.json("status")
        assert (known["stage"]["pressure"], known["metrics"]["stage_pressure"]) == ("full", 2)
        assert known["metrics"]["stage_wait_ms"] > 0
        assert known["metrics"]["stage_waits"] > 1, "it was slowed down before it was full"
        assert known["stage"]["files"] == len(kept)
        assert known["metrics"]["stage_bytes"] == sum(map(len, kept.values()))
        runs.until(lambda: metrics(runs)["stage_oldest_s"] > 0)
        assert "it is FULL" in runs("status").stdout
        runs("mv", "/runs/f0", "/runs/moved")
        runs("mkdir", "/runs/made")
        runs("rm", "/runs/f1")
        kept["moved"] = kept.pop("f0")
        removed = kept.pop("f1")
        assert removed
        assert {name: read(client, f"/runs/{name}") for name in kept} == kept
        sea.rise()
        client.persist("/runs", timeout=PERSIST_S)
        write(client, "/runs/after", b"after")
        client.persist("/runs", timeout=PERSIST_S)
    assert {name: digest(sea.get(f"runs/{name}") or b"") for name in kept} == {
        name: digest(content) for name, content in kept.items()
    }
    assert (sea.get("runs/f0"), sea.get("runs/f1"), sea.get("runs/after")) == (None, None, b"after")
    runs.until(lambda: runs.control().status()["stage"]["pressure"] == "none")
    assert "slowed" not in runs("status").stdout


def test_a_stage_that_fills_up_says_that_writers_are_slowed(runs: Any, sea: Sea) -> None:
    with penstock.connect(runs.home.name, start=False) as client:
        leave(client, sea)
        for number in range(7):
            write(client, f"/runs/f{number}", os.urandom(MIB))
    assert runs.control().status()["stage"]["pressure"] == "slowed"
    assert "writers are slowed to the pace of the uploads" in runs("status").stdout
    assert metrics(runs)["stage_wait_ms"] > 0


def test_checkpoints_that_wait_are_watched_with_the_room_that_is_left(runs: Any, sea: Sea) -> None:
    with penstock.connect(runs.home.name, start=False) as client:
        leave(client, sea)
        with client.commit("/runs/step-1") as files:
            files.write("model", os.urandom(7 * MIB))
    watching = runs.spawn(sys.executable, "-m", "penstock.cli", "ckpt", "watch", "/runs")
    line = watching.stdout.readline() or watching.stderr.read()
    assert "/runs/step-1 staged here" in line
    assert "writers are slowed" in line
    assert "not in the source yet, the oldest for" in line
    watching.kill()


@pytest.mark.usefixtures("can_mount")
def test_through_a_mount_a_full_stage_is_no_space_at_the_write_and_the_rest_goes_on(runs: Any, sea: Sea) -> None:
    root = runs.target()
    runs("mount", str(root))
    with penstock.connect(runs.home.name, start=False) as client:
        leave(client, sea)
        kept = fill(client)
        path = root / "runs" / "late"
        file = os.open(path, os.O_CREAT | os.O_WRONLY)
        with pytest.raises(OSError, match="No space") as refused:
            os.write(file, bytes(MIB))
        assert refused.value.errno == errno.ENOSPC
        os.close(file)
        assert path.stat().st_size == 0
        (root / "runs" / "f0").rename(root / "runs" / "moved")
        (root / "runs" / "f1").unlink()
        (root / "runs" / "made").mkdir()
        (root / "runs" / "made").rmdir()
        path.unlink()
        kept["moved"] = kept.pop("f0")
        kept.pop("f1")
        sea.rise()
        client.persist("/runs", timeout=PERSIST_S)
        path.write_bytes(b"late")
        client.persist("/runs", timeout=PERSIST_S)
    assert {name: digest(sea.get(f"runs/{name}") or b"") for name in kept} == {
        name: digest(content) for name, content in kept.items()
    }
    assert (sea.get("runs/late"), sea.get("runs/f1")) == (b"late", None)
