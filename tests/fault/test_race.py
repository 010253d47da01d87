"""The byte oracle: processes check every byte they read while a writer overwrites the objects in the source."""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import penstock
from fault import oracle
from fault.race import LARGE, OBJECTS, SMALL, key_of, size_of

if TYPE_CHECKING:
    from collections.abc import Callable

    Put = Callable[[str, bytes], None]

READERS = 3
CHECKED_READS = 100_000
CHECKED_READS_IN_SOAK = 1_000_000
LONGEST_S = 500.0
LONGEST_IN_SOAK_S = 6000.0
WRITES_BETWEEN_LOOKS = 5
CACHE_BYTES = 40 << 20
TESTS = Path(__file__).parents[1]


class Source:
    """A source of the race: what is attached, and how objects get into it."""

    def __init__(self, url: str, options: dict[str, Any], put: Put) -> None:
        self.url = url
        self.options = options
        self.put = put


def directory(machine: Any) -> Source:
    """A directory whose files are replaced by renaming."""
    root = machine.directory / "lake"

    def put(key: str, content: bytes) -> None:
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        written = root / f"{key}.new"
        written.write_bytes(content)
        written.rename(root / key)

    return Source(f"file://{root}", {}, put)


def bucket(machine: Any) -> Source:
    """A bucket of the simulated remote."""
    remote = machine.remote({})
    options = {"endpoint": remote.endpoint, "credentials": "anonymous"}
    return Source("s3://bucket", options, lambda key, content: remote.put_object("bucket", key, content))


class Writer:
    """Overwrites objects at random."""

    def __init__(self, source: Source, seed: int) -> None:
        self.source = source
        self.chance = random.Random(seed)
        self.versions = [0] * OBJECTS
        for number in range(OBJECTS):
            self.write(number)

    def write(self, number: int) -> None:
        self.versions[number] += 1
        version = self.versions[number]
        self.source.put(key_of(number), oracle.content(number, version, 0, size_of(number, version)))

    def step(self) -> None:
        """Mostly small objects; a large one is still being read when it changes."""
        large = self.chance.random() < 0.2
        self.write(self.chance.randrange(SMALL, SMALL + LARGE) if large else self.chance.randrange(SMALL))


def race(machine: Any, source: Source, wanted: int, longest_s: float) -> None:
    seed = int(os.environ.get("TEST_SEED", time.time_ns() % 1_000_000))
    print(f"seed {seed}: set TEST_SEED to see it again")
    writer = Writer(source, seed)
    machine("up", "--set", f"cache.size={CACHE_BYTES}")
    with penstock.connect(machine.home.name) as client:
        client.attach(source.url, "/data", freshness="0.2s", **source.options)
    command = [sys.executable, str(TESTS / "fault" / "race.py"), str(machine.home.name)]
    readers = [
        machine.spawn(*command, f"{seed}/{number}", stdin=True, PYTHONPATH=f"{TESTS}") for number in range(READERS)
    ]
    deadline = time.monotonic() + longest_s
    while not done(machine, writer, wanted) and time.monotonic() < deadline:
        for _ in range(WRITES_BETWEEN_LOOKS):
            writer.step()
        assert all(reader.poll() is None for reader in readers), failures(readers)
    reports = [reader.communicate("stop\n", timeout=60) for reader in readers]
    assert all(reader.returncode == 0 for reader in readers), reports
    judge(machine, writer, [json.loads(said) for said, _ in reports], wanted)


def done(machine: Any, writer: Writer, wanted: int) -> bool:
    """Whether enough was read, written, evicted and met too late; a batch of files counts as many opens."""
    metrics = machine.control().status()["metrics"]
    written = sum(writer.versions) - OBJECTS
    happened = metrics["cache_evicted_extents"] > 0 and metrics["stale_versions"] > 0
    return metrics["opens"] > wanted * 1.1 and happened and written > wanted // 300


def failures(readers: list[Any]) -> list[str]:
    return [reader.communicate()[1] for reader in readers if reader.poll() is not None]


def judge(machine: Any, writer: Writer, reports: list[dict[str, Any]], wanted: int) -> None:
    checked = sum(report["checked"] for report in reports)
    seen: Counter[str] = sum((Counter(report["versions"]) for report in reports), Counter())
    versions_of = Counter(name.split("/")[0] for name in seen)
    metrics = machine.control().status()["metrics"]
    print(f"{checked} checked, {sum(report['stale'] for report in reports)} stale, {sum(writer.versions)} written")
    print(
        {
            name: metrics[name]
            for name in ("opens", "open_hits", "source_read_requests", "stale_versions", "cache_evicted_extents")
        }
    )
    assert checked >= wanted
    assert max(writer.versions) > 1
    for name in seen:
        number, version = map(int, name.split("/"))
        assert 1 <= version <= writer.versions[number], f"object {number} never had version {version}"
    assert sum(count > 1 for count in versions_of.values()) > SMALL // 2, "few objects were seen in two versions"
    assert any(count > 1 for number, count in versions_of.items() if int(number) >= SMALL)
    assert metrics["open_hits"] > 1000
    assert metrics["source_read_requests"] > OBJECTS
    assert metrics["cache_evicted_extents"] > 0
    assert metrics["stale_versions"] > 0
    tokens: dict[str, int] = {}
    for report in reports:
        for token, version in report["tokens"].items():
            assert tokens.setdefault(token, version) == version, f"{token} names two versions"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", [directory, bucket])
def test_readers_see_whole_versions_while_objects_are_overwritten(machine: Any, kind: Callable[[Any], Source]) -> None:
    race(machine, kind(machine), CHECKED_READS, LONGEST_S)


@pytest.mark.soak
@pytest.mark.parametrize("kind", [directory, bucket])
def test_readers_see_whole_versions_a_million_times(machine: Any, kind: Callable[[Any], Source]) -> None:
    race(machine, kind(machine), CHECKED_READS_IN_SOAK, LONGEST_IN_SOAK_S)
