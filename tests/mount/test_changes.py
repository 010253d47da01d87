"""What the kernel was told of a tree that is believed for an hour is taken back once the node learns otherwise."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fault.conftest import store
from mount.lake import WAYS, MountedLake, run

if TYPE_CHECKING:
    from fault.store import Store

__all__ = ["store"]

DIRECTORIES = 40
FILES = 50


class Tree:
    """Files that are believed for an hour, and the same without any belief, for who wants to know what there is now."""

    def __init__(self, lake: MountedLake, store: Store, way: str) -> None:
        self.lake, self.store, self.name = lake, store, f"changes-{way}"
        self.directory = lake.attach(self.name, f"/{self.name}", "1h", way)
        lake.attach(self.name, f"/live-{way}", "0")
        self.live = f"/live-{way}"

    def put(self, name: str, content: bytes) -> Path:
        self.lake.put(f"{self.name}/{name}", content)
        return self.directory / name

    def delete(self, name: str) -> None:
        self.store.delete(f"{self.name}/{name}")

    def learn(self, directory: str) -> None:
        """Has the node learn what there is in a directory now."""
        list(self.lake.client.list(f"{self.live}/{directory}"))

    def expirations(self) -> int:
        return self.lake.metrics()["kernel_expirations"]


@pytest.fixture(scope="module")
def shared(guard: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[MountedLake, Store]]:
    """One mount for all, and a store that can be changed behind it."""
    from fault.store import Store
    from integration.conftest import Machine

    machine = Machine(tmp_path_factory.mktemp("changes"))
    try:
        with Store() as store, MountedLake(machine, store=store) as lake:
            yield lake, store
    finally:
        machine.close()


@pytest.fixture(params=WAYS)
def tree(shared: tuple[MountedLake, Store], request: pytest.FixtureRequest) -> Iterator[Tree]:
    """A tree that is read in that way."""
    lake, store = shared
    made = Tree(lake, store, request.param)
    yield made
    store.objects.clear()
    for path in (f"/{made.name}", made.live):
        lake.machine.control().detach(path, lazy=True)


def unless_stale(look: Callable[[], Any]) -> Any:
    """What there is to see; nothing where a version was met that is gone."""
    try:
        return look()
    except OSError as failure:
        assert failure.errno == errno.ESTALE  # noqa: PT017
        return None


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_what_the_node_learns_is_seen_by_programs_long_before_their_hour_is_over(tree: Tree) -> None:
    changed, removed = tree.put("d/changed", b"first"), tree.put("d/removed", b"removed")
    tree.put("d/kept", b"kept")
    new = changed.with_name("new")
    with changed.open("rb", buffering=0) as file:
        assert contents(changed.parent) == {"changed": b"first", "removed": b"removed", "kept": b"kept"}
        assert not new.exists()
        tree.put("d/changed", b"second one")
        tree.put("d/new", b"new")
        tree.delete("d/removed")
        tree.learn("d")

        expected = {"changed": b"second one", "new": b"new", "kept": b"kept"}
        tree.lake.machine.until(lambda: unless_stale(changed.read_bytes) == expected["changed"])
        tree.lake.machine.until(lambda: new.exists() and not removed.exists())
        tree.lake.machine.until(lambda: unless_stale(lambda: contents(changed.parent)) == expected)
        assert file.read() == b"first", "who has it open keeps it"


def test_what_the_node_learns_again_is_not_taken_back(tree: Tree) -> None:
    same = [tree.put(f"same/{number}", b"content") for number in range(20)]
    last = tree.put("z/last", b"first")
    for directory in (same[0].parent, last.parent):
        assert contents(directory)
    before = tree.expirations()
    for _ in range(3):
        tree.learn("same")
    tree.put("z/last", b"second one")
    tree.learn("z")
    # Directories are compared in their order, so the others were before.
    tree.lake.machine.until(lambda: unless_stale(last.read_bytes) == b"second one")
    assert tree.expirations() == before + 2, "the name that changed, and the list of names that it is in"


def test_a_second_walk_looks_nothing_up_though_the_first_was_overtaken(tree: Tree) -> None:
    for number in range(DIRECTORIES * FILES):
        tree.put(f"walk/{number % DIRECTORIES:03}/{number:05}", b"content")
    top = tree.directory / "walk"

    def walk() -> dict[str, int]:
        before = tree.lake.metrics()
        found = run("find", top, "-type", "f", "-size", "+0").splitlines()
        assert len(found) == DIRECTORIES * FILES
        return {name: value - before[name] for name, value in tree.lake.metrics().items()}

    assert walk()["source_requests"] > 0
    again = walk()
    assert again["source_requests"] == 0
    assert again["kernel_lookups"] == 0, "every name is still believed"
    # Each directory is opened and closed; what is in it is not read again.
    assert again["kernel_requests"] <= 2 * (DIRECTORIES + 1) + 5


def test_contract_2_what_a_client_changes_is_what_a_program_finds_next(lake: MountedLake) -> None:
    client, top = lake.client, lake.attach("written", "/written", "1h", writable=True)
    lake.put("written/d/it", b"from outside")
    it, new, deep = top / "d/it", top / "d/new", top / "deep/er/new"

    def write(path: Path, content: bytes) -> None:
        with client.open(lake.tree_path(path), "wb") as file:
            file.write(content)

    assert contents(it.parent) == {"it": b"from outside"}
    assert not new.exists()
    assert not (top / "deep").exists()
    with it.open("rb") as opened:
        for version in range(30):
            content = f"version {version}".encode() * version
            write(it, content)
            assert it.read_bytes() == content
            assert it.stat().st_size == len(content)
        assert opened.read() == b"from outside", "who has it open keeps it"
    write(new, b"new")
    assert contents(it.parent) == {"it": content, "new": b"new"}
    write(deep, b"deep")
    assert deep.read_bytes() == b"deep"
    assert {path.name for path in top.iterdir()} == {"d", "deep"}
    client.remove(lake.tree_path(it))
    assert not it.exists()
    assert contents(it.parent) == {"new": b"new"}
    before = lake.metrics()["kernel_expirations"]
    write(top / "nobody/looked/here", b"x")
    write(top / "nobody/looked/there", b"x")
    assert lake.metrics()["kernel_expirations"] - before <= 4, "a program was told what is at the top, and no more"
