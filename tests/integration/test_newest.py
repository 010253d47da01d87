"""The newest of what is written stays cached, whatever else is read: by counters of what the source was asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import penstock
from integration.test_writing import PERSIST_S, Sea, attach, read, write

MIB = 1 << 20
CACHE = 16 * MIB


@pytest.fixture
def sea(tmp_path: Path) -> Iterator[Sea]:
    made = Sea(tmp_path)
    for number in range(12):
        made.put(f"runs/data/{number}", os.urandom(2 * MIB))
    yield made
    made.fall()


@pytest.fixture
def runs(machine: Any, sea: Sea) -> Any:
    up(machine)
    attach(machine, sea)
    return machine


def up(machine: Any) -> None:
    machine("up", "--set", f"cache.size={CACHE}", "--set", "stage.size=64MiB")


def from_source(machine: Any) -> int:
    return int(machine.control().status()["metrics"]["source_bytes"])


def press(client: penstock.Client) -> None:
    """Reads more than the cache holds, twice, so that what is not kept is evicted."""
    for _ in range(2):
        for number in range(12):
            read(client, f"/runs/data/{number}")


def kept(machine: Any) -> list[str]:
    return [path for each in machine.control().status()["kept_newest"] for path in each["kept"]]


def read_again(machine: Any, client: penstock.Client, contents: dict[str, bytes]) -> int:
    """Bytes that the source was asked for to read files again."""
    before = from_source(machine)
    assert {path: read(client, path) for path in contents} == contents
    return from_source(machine) - before


def test_the_newest_files_survive_pressure_and_a_restart_and_older_ones_do_not(runs: Any) -> None:
    runs("pin", "/runs/*.pt", "--newest", "2")
    contents = {f"/runs/{step}.pt": os.urandom(2 * MIB) for step in (1, 2, 3)}
    with penstock.connect(runs.home.name, start=False) as client:
        for path, content in contents.items():
            write(client, path, content)
        client.persist("/runs", timeout=PERSIST_S)
        newest = ["/runs/2.pt", "/runs/3.pt"]
        runs.until(lambda: kept(runs) == newest)
        press(client)
        assert runs.control().status()["metrics"]["cache_evicted_bytes"] > 0
        assert read_again(runs, client, {path: contents[path] for path in newest}) == 0
        assert read_again(runs, client, {"/runs/1.pt": contents["/runs/1.pt"]}) > 0
        why = client.why("/runs/3.pt")
        assert (why["pinned"], "one of the newest 2 of /runs/*.pt" in why["reason"]) == (True, True)
        assert not client.why("/runs/1.pt")["pinned"]
    assert "newest 2 of /runs/*.pt" in runs("status").stdout
    runs("down")
    up(runs)
    with penstock.connect(runs.home.name, start=False) as client:
        assert kept(runs) == newest
        press(client)
        assert read_again(runs, client, {path: contents[path] for path in newest}) == 0
        write(client, "/runs/4.pt", os.urandom(MIB))
        runs.until(lambda: kept(runs) == ["/runs/3.pt", "/runs/4.pt"])


def test_the_newest_checkpoint_survives_pressure_whether_a_set_or_a_directory(runs: Any) -> None:
    with penstock.connect(runs.home.name, start=False) as client:
        client.pin("/runs/exp*/step-*", newest=1)
        contents: dict[str, bytes] = {}
        for step in (1, 2):
            files = {"model": os.urandom(MIB), "deep/part": os.urandom(300_000), "meta": b"{}"}
            with client.commit(f"/runs/exp1/step-{step}") as made:
                for name, content in files.items():
                    made.write(name, content)
            for name, content in files.items():
                write(client, f"/runs/exp2/step-{step}/{name}", content)
            both = ("exp1", "exp2")
            contents = {f"/runs/{exp}/step-{step}/{name}": files[name] for exp in both for name in files}
        client.persist("/runs", timeout=PERSIST_S)
        runs.until(lambda: kept(runs) == ["/runs/exp1/step-2", "/runs/exp2/step-2"])
        press(client)
        assert read_again(runs, client, contents) == 0
        shown = {each["path"]: each["kept"] for each in runs.json("ckpt", "ls", "/runs")}
        assert shown == {"/runs/exp1/step-1": False, "/runs/exp1/step-2": True}
        assert runs("ckpt", "ls", "/runs").stdout.splitlines()[0].split()[-2:] == ["PROMISED", "KEPT"]
        client.unpin("/runs/exp*/step-*")
        assert kept(runs) == []
        assert not client.why("/runs/exp1/step-2/model")["pinned"]


def test_the_newest_checkpoint_is_kept_by_the_next_node_while_the_source_is_away(runs: Any, sea: Sea) -> None:
    content = os.urandom(MIB)
    with penstock.connect(runs.home.name, start=False) as client:
        client.pin("/runs/step-*", newest=1)
        with client.commit("/runs/step-1") as made:
            made.write("model", content)
        client.persist("/runs", timeout=PERSIST_S)
        runs.until(lambda: kept(runs) == ["/runs/step-1"])
    runs.kill()
    sea.fall()
    up(runs)
    with penstock.connect(runs.home.name, start=False) as client:
        runs("cache", "prune", "--to", "0")
        sea.rise()
        # What the set is has to be asked for after a start; its bytes are here.
        assert read_again(runs, client, {"/runs/step-1/model": content}) < 1024
        assert client.why("/runs/step-1/model")["pinned"]


def test_what_cannot_be_a_pattern_is_refused(runs: Any) -> None:
    assert "it names one path" in runs("pin", "/runs/step-1", "--newest", "2", check=2).stderr
    assert "nothing is attached there" in runs("pin", "/other/*", "--newest", "2", check=1).stderr
