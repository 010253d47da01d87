"""Conflicts end to end: made by somebody else at the remote, told of and settled by command line and client."""

from __future__ import annotations

import http.client
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

import penstock
from penstock import _native
from penstock.errors import ConflictError, InvalidInputError, NotFoundError, ReadOnlyError, UnavailableError

if TYPE_CHECKING:
    from penstock.client import Conflict

BEFORE, THEIRS = b"before", b"theirs, written meanwhile"
MINE, LARGE = os.urandom(1000), os.urandom(3_000_000)
PERSIST_S = 120.0


class Shore:
    """A machine with a remote at ``/runs``, and somebody else who changes what is there."""

    def __init__(self, machine: Any) -> None:
        self.machine = machine
        self._remote = machine.remote({})
        self._port = int(self._remote.endpoint.rpartition(":")[2])
        self.attach("/runs", "--writable")
        self.client = penstock.connect(machine.home.name, start=False)

    def attach(self, path: str, *options: str) -> None:
        options = ("--endpoint", self._remote.endpoint, "--credentials", "anonymous", "--freshness", "1h", *options)
        self.machine("attach", "s3://bucket/runs", path, *options)

    def leave(self) -> None:
        self._remote.stop()

    def come_back(self) -> None:
        self._remote = _native.Remote(str(self.machine.directory / "remote"), port=self._port)

    def ask(self, method: str, name: str, body: bytes = b"") -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            connection.request(method, f"/bucket/runs/{name}", body)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def get(self, name: str) -> bytes | None:
        status, content = self.ask("GET", name)
        return content if status == 200 else None

    def write(self, name: str, content: bytes) -> None:
        with self.client.open(f"/runs/{name}", "wb") as file:
            file.write(content)

    def collide(self, name: str, content: bytes | None) -> Conflict:
        """Writes or removes what somebody else has changed since it was looked at."""
        known = len(self.conflicts(name))
        self.write(name, BEFORE)
        # The newest is in the source, and known: whatever is in conflict already makes no difference.
        self.machine.until(lambda: self.get(name) == BEFORE)
        self.machine.until(lambda: not self.client.stat(f"/runs/{name}").version.startswith("staged-"))
        assert self.ask("PUT", name, THEIRS)[0] == 200
        if content is None:
            self.client.remove(f"/runs/{name}")
        else:
            self.write(name, content)
        found = self.machine.until(lambda: self.conflicts(name)[known:])
        assert self.get(name) == THEIRS
        return found[-1]

    def conflicts(self, name: str) -> list[Conflict]:
        return [each for each in self.client.conflicts("/runs") if each.path == f"/runs/{name}"]

    def read(self, name: str) -> bytes:
        with self.client.open(f"/runs/{name}") as file:
            return file.read()

    def kept(self, name: str, operation: str | None = None) -> bytes:
        with self.client.open_conflict(f"/runs/{name}", operation) as content:
            return content.read()

    def is_clean(self) -> None:
        """Nothing anywhere says that there is a conflict."""
        assert self.machine.json("conflicts", "ls") == []
        stage = self.machine.control().status()["stage"]
        assert (stage["conflicts"], stage["conflict_bytes"], stage["conflicted"]) == (0, 0, [])
        assert "in conflict" not in self.machine("status").stdout
        assert "in conflict" not in self.machine("doctor", check=None).stdout
        self.machine("persist", "/runs", "--timeout", "2min")


@pytest.fixture
def shore(machine: Any) -> Iterator[Shore]:
    made = Shore(machine)
    yield made
    made.client.close()


@pytest.mark.parametrize("content", [MINE, LARGE], ids=["small", "large"])
def test_ours_is_kept_and_replaces_what_the_source_has(shore: Shore, content: bytes) -> None:
    conflict = shore.collide("a", content)
    assert "penstock conflicts ls" in shore.machine("doctor", check=None).stdout
    assert "is in conflict" in shore.machine("status").stdout

    (told,) = shore.machine.json("conflicts", "ls", "/runs")
    assert told["path"] == "/runs/a"
    assert told["size"] == len(content)
    assert told["operation"] == conflict.operation
    assert (told["code"], told["source"]["state"], told["source"]["size"]) == ("conflict", "file", len(THEIRS))
    assert "/runs/a" in shore.machine("conflicts", "ls").stdout
    assert conflict.operation in shore.machine("conflicts", "show", "/runs/a").stdout
    shore.machine("conflicts", "show", "/runs/a", "--output", "ours.bin")
    assert (shore.machine.directory / "ours.bin").read_bytes() == content
    assert "[already-exists]" in shore.machine("conflicts", "show", "/runs/a", "--output", "ours.bin", check=1).stderr

    assert "kept ours" in shore.machine("conflicts", "keep-mine", "/runs/a").stdout
    assert shore.read("a") == content
    shore.is_clean()
    assert shore.get("a") == content


def test_theirs_is_kept_and_ours_is_said_to_be_discarded(shore: Shore) -> None:
    shore.collide("a", MINE)
    assert "discarded ours, 1000 B" in shore.machine("conflicts", "keep-theirs", "/runs/a").stdout
    assert shore.read("a") == THEIRS
    shore.is_clean()
    assert shore.get("a") == THEIRS
    shore.machine.until(lambda: shore.machine.control().status()["stage"]["used_bytes"] == 0)


@pytest.mark.parametrize("keep", ["mine", "theirs"])
def test_a_removal_in_conflict_is_settled_too(shore: Shore, keep: str) -> None:
    assert shore.collide("a", None).size is None
    assert "removal" in shore.machine("conflicts", "ls").stdout
    with pytest.raises(InvalidInputError, match="removal"):
        shore.client.open_conflict("/runs/a")
    assert "removal" in shore.machine("conflicts", f"keep-{keep}", "/runs/a").stdout
    shore.is_clean()
    assert shore.get("a") == (None if keep == "mine" else THEIRS)


@pytest.mark.parametrize("keep", ["mine", "theirs"])
def test_what_was_settled_survives_a_node_that_is_killed_at_once(shore: Shore, keep: str) -> None:
    shore.collide("a", LARGE)
    shore.machine("conflicts", f"keep-{keep}", "/runs/a")
    shore.machine.kill()
    expected = LARGE if keep == "mine" else THEIRS
    shore.machine("up")
    assert shore.read("a") == expected
    shore.is_clean()
    assert shore.get("a") == expected
    assert shore.machine.control().status()["stage"]["recovered"] == []


def test_a_conflict_that_nobody_settled_is_there_after_a_restart(shore: Shore) -> None:
    shore.collide("a", MINE)
    shore.machine("down")
    shore.machine("up")
    assert shore.kept("a") == MINE
    with pytest.raises(ConflictError):
        shore.client.persist("/runs", timeout=PERSIST_S)
    (settled,) = shore.client.resolve_conflict("/runs/a", "mine")
    assert settled.size == len(MINE)
    shore.is_clean()
    assert shore.get("a") == MINE


def test_of_several_conflicts_of_a_path_one_or_all_are_settled(shore: Shore) -> None:
    contents = [b"first", b"second", b"third"]
    made = [shore.collide("a", content) for content in contents]
    assert [shore.kept("a", each.operation) for each in made] == contents
    assert shore.kept("a") == b"third"
    done = shore.machine("conflicts", "keep-mine", "/runs/a", "--operation", made[0].operation)
    assert "2 more of /runs/a in conflict" in done.stderr
    assert shore.read("a") == b"first"
    settled = shore.client.resolve_conflict("/runs/a", "mine", every=True)
    assert [each.size for each in settled] == [len(b"third"), len(b"second")]
    assert shore.read("a") == b"third"
    shore.is_clean()
    assert shore.get("a") == b"third"

    for content in contents:
        shore.collide("a", content)
    told = shore.machine("conflicts", "keep-theirs", "/runs/a", "--all").stdout
    assert told.count("discarded ours") == 3
    shore.is_clean()
    assert shore.get("a") == THEIRS


def test_what_is_kept_can_be_read_anywhere_and_after_it_was_settled(shore: Shore) -> None:
    shore.collide("a", LARGE)
    with shore.client.open_conflict("/runs/a") as first, shore.client.open_conflict("/runs/a") as second:
        first.seek(-1000, os.SEEK_END)
        assert (first.read(), second.read(10)) == (LARGE[-1000:], LARGE[:10])
        shore.client.resolve_conflict("/runs/a", "theirs")
        assert second.read() == LARGE[10:]


def test_who_detaches_what_is_in_conflict_is_told_and_settles_it_when_it_is_attached_again(shore: Shore) -> None:
    shore.collide("deep/a", MINE)
    assert "is kept on this machine: attach it again" in shore.machine("detach", "/runs").stderr
    shore.attach("/runs", "--writable")
    assert shore.kept("deep/a") == MINE
    shore.client.resolve_conflict("/runs/deep/a", "theirs")
    shore.is_clean()
    assert shore.machine("detach", "/runs").stderr == ""


def test_what_cannot_be_settled_says_why(shore: Shore) -> None:
    shore.collide("deep/a", MINE)
    machine = shore.machine
    assert "penstock conflicts ls" in machine("conflicts", "keep-mine", "/runs/other", check=1).stderr
    directory = machine("conflicts", "keep-theirs", "/runs/deep", check=1).stderr
    assert "penstock conflicts ls /runs/deep" in directory
    assert "nothing is attached" in machine("conflicts", "keep-mine", "/other/a", check=1).stderr
    assert "[not-found]" in machine("conflicts", "show", "/runs/deep", check=1).stderr
    machine("conflicts", "keep-mine", "/runs/deep/a", "--all", "--operation", "x", check=2)
    machine("conflicts", "keep-mine", "/runs/deep/a", "--operation", "x", check=2)
    with pytest.raises(ValueError, match="'mine' or 'theirs'"):
        shore.client.resolve_conflict("/runs/deep/a", "ours")  # type: ignore[arg-type]
    with pytest.raises(NotFoundError):
        shore.client.resolve_conflict("/runs/other", "theirs")

    shore.attach("/reading")
    with pytest.raises(ReadOnlyError, match="--writable"):
        shore.client.resolve_conflict("/reading/deep/a", "mine")
    shore.leave()
    (told,) = machine.json("conflicts", "ls", "/runs")
    assert told["source"]["state"] == "unknown"
    with pytest.raises(UnavailableError, match="both contents are kept"):
        shore.client.resolve_conflict("/runs/deep/a", "mine")
    assert shore.kept("deep/a") == MINE
    shore.come_back()
    # To give ours up, nobody needs to be asked, and nothing is written there.
    shore.client.resolve_conflict("/reading/deep/a", "theirs")
    shore.is_clean()


def test_listings_say_what_the_source_has_after_a_conflict_also_when_the_node_is_killed_at_once(shore: Shore) -> None:
    # Believed for an hour, and from before the file was there.
    assert list(shore.client.list("/runs")) == []
    shore.collide("deep/a", MINE)
    shore.machine.kill()
    shore.machine("up")
    assert [(entry.name, entry.size) for entry in shore.client.walk("/runs") if entry.is_file] == [
        ("deep/a", len(THEIRS))
    ]
    assert [entry.name for entry in shore.client.list("/runs")] == ["deep"]
    assert shore.read("deep/a") == THEIRS
