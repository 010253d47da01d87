"""One home with mounts and a source that can go away, in which stories are told one after another."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec

import penstock
from integration.test_writing import Sea

PATIENCE_S = 120.0


class Place:
    """An attachment and its mount."""

    def __init__(self, world: World, name: str, freshness: str) -> None:
        self.top, self.is_held = f"/{name}", freshness != "0s"
        where = {"endpoint": world.sea.endpoint, "credentials": "anonymous", "freshness": freshness}
        world.client.attach(f"s3://bucket/{name}", self.top, writable=True, **where)
        self.mount: Path = world.machine.target(f"mnt-{name}")
        world.machine("mount", str(self.mount), "--path", self.top)

    def is_served(self) -> bool:
        """Whether the mount answers, also while nobody can say what is in it."""
        try:
            return os.path.ismount(self.mount) and os.statvfs(self.mount).f_bsize > 0
        except OSError:
            return False


class World:
    """One home for one story after another: of a place that asks the source each time, or of one that holds what it
    knows for true.
    """

    def __init__(self, machine: Any, directory: Path) -> None:
        self.machine, self.sea, self.numbers = machine, Sea(directory), itertools.count()
        self.client: Any = penstock.connect(machine.home.name)
        self.places = [Place(self, "runs", "0s"), Place(self, "held", "12h")]
        self.done: dict[str, int] = {}
        self.failure: BaseException | None = None
        self.story: list[str] = []

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        """Keeps the first failure: what depends on time does not come again, and then Hypothesis tells only that."""
        self._note(sys.exception())
        try:
            yield
        except Exception as error:
            self._note(error)
            raise

    def _note(self, error: BaseException | None) -> None:
        # Hypothesis ends an example by what is no ordinary exception.
        if isinstance(error, Exception) and self.failure is None:
            self.failure = error
            error.add_note("\n".join(self.story))

    def crash(self) -> None:
        """The node is killed, and another one runs."""
        self.machine.kill()
        self.come_back()

    def come_back(self) -> None:
        """A node runs again, and serves the mounts."""
        self.client = penstock.connect(self.machine.home.name)
        self.machine.until(lambda: all(place.is_served() for place in self.places), PATIENCE_S)

    @property
    def fs(self) -> Any:
        home = os.fspath(self.machine.home.name)
        return fsspec.filesystem("penstock", home=home, start=False, skip_instance_cache=True)

    @property
    def stage(self) -> dict[str, Any]:
        return dict(self.client.status()["stage"])

    def persist(self, path: str) -> None:
        """The source has everything below a path, and nothing was in the way."""
        self.client.persist(path, timeout=PATIENCE_S)
        stage = self.stage
        assert (stage["files"], stage["conflicts"]) == (0, 0), stage

    def close(self) -> None:
        self.client.close()
        for place in self.places:
            with contextlib.suppress(AssertionError):
                self.machine("umount", str(place.mount), check=None)
        self.sea.fall()
