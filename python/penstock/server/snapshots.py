"""The snapshots of one home: documents in a directory, made and read by the core."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from penstock.errors import AlreadyExistsError, BusyError, DiskError, NotFoundError, PenstockError
from penstock.policies.attachments import check_tree_path
from penstock.policies.snapshots import SUFFIX, check_name

__all__ = ["FROZEN_NOW", "SnapshotBook", "SnapshotCore", "SnapshotFiles"]

FROZEN_NOW = ".now"
"""Document of the tree as it is now, for the time of a comparison; no snapshot can have that name."""

CHANGES_MAX = 1000
"""So many changes are told by their paths; all are counted."""

_log = logging.getLogger(__name__)


class SnapshotCore(Protocol):
    """The part of the core that makes and reads snapshot documents."""

    def create_snapshot(self, path: str, name: str, file: Path) -> None:
        """Freezes a path into a document."""

    def snapshot_summary(self, file: Path, whole: bool) -> str:
        """What a document says of itself, as JSON; ``whole`` reads and checks all of it."""

    def snapshot_files(self, file: Path, from_row: int) -> str:
        """Some files from a row on, and the row to go on at, as JSON."""

    def snapshot_changes(self, earlier: Path, later: Path, limit: int) -> str:
        """What is different, as JSON."""


class SnapshotFiles(NamedTuple):
    """What a mount of a snapshot needs to know."""

    path: str
    """The path of the tree that was frozen."""
    document: Path


class SnapshotBook:
    """Every snapshot of a home. Methods may be called from any thread.

    Args:
        directory: where the documents are.
        core: makes and reads them.
        mounted: names of those that are mounted, and where.
    """

    def __init__(self, directory: Path, core: SnapshotCore, mounted: Callable[[], dict[str, str]]) -> None:
        self._directory = directory
        self._core = core
        self._mounted = mounted
        self._making = threading.Lock()

    def create(self, path: str, name: str) -> dict[str, Any]:
        """Freezes a path of the tree as it is now.

        Raises:
            AlreadyExistsError: there is a snapshot of that name.
            PenstockError: what the core refuses it for; nothing is left.
        """
        path, file = check_tree_path(path), self._file(check_name(name))
        with self._making:
            if file.exists():
                advice = f"choose another name, or `penstock snapshot rm {name}` first"
                raise AlreadyExistsError(f"snapshot {path}", f"there is a snapshot {name} already", advice)
            self._core.create_snapshot(path, name, file)
        _log.info("made snapshot %s of %s", name, path)
        return self.show(name)

    def all(self) -> list[dict[str, Any]]:
        """Every snapshot, oldest first; one whose document is damaged has a ``problem``."""
        found = []
        for file in self._directory.glob("*" + SUFFIX):
            try:
                found.append(self._summary(file))
            except PenstockError as error:
                found.append({"name": file.name.removesuffix(SUFFIX), "created_ms": 0, "problem": str(error)})
        return sorted(found, key=lambda each: (each["created_ms"], each["name"]))

    def show(self, name: str, *, check: bool = False) -> dict[str, Any]:
        """One snapshot; ``check`` reads all of its document.

        Raises:
            NotFoundError: there is none of that name.
            CorruptError: its document is damaged.
        """
        return self._summary(self._known(name), check=check)

    def files(self, name: str, row: int) -> dict[str, Any]:
        """Some files of a snapshot from a row of its document on; ``next`` is the row to go on at."""
        files, following = json.loads(self._core.snapshot_files(self._known(name), row))
        return {"files": files, "next": following}

    def diff(self, name: str, other: str | None) -> dict[str, Any]:
        """What is different in another snapshot, or in the tree as it is now."""
        earlier = self._known(name)
        if other is not None:
            return dict(json.loads(self._core.snapshot_changes(earlier, self._known(other), CHANGES_MAX)))
        with self._making:
            now = self._directory / f"{FROZEN_NOW}-{os.getpid()}"
            try:
                self._core.create_snapshot(self._summary(earlier)["path"], "now", now)
                return dict(json.loads(self._core.snapshot_changes(earlier, now, CHANGES_MAX)))
            finally:
                now.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Forgets a snapshot; what is cached of it stays.

        Raises:
            NotFoundError: there is none of that name.
            BusyError: it is mounted.
        """
        file = self._known(name)
        if target := self._mounted().get(name):
            raise BusyError(
                f"remove snapshot {name}", f"it is mounted at {target}", f"`penstock umount {target}` first"
            )
        try:
            file.unlink()
        except OSError as error:
            raise DiskError(f"remove snapshot {name}", str(error.strerror), "fix the rights or the disk") from None
        _log.info("removed snapshot %s", name)

    def for_mount(self, name: str) -> SnapshotFiles:
        """What a mount of it needs.

        Raises:
            NotFoundError: there is none of that name.
            CorruptError: its document is damaged.
        """
        file = self._known(name)
        return SnapshotFiles(self._summary(file)["path"], file)

    def clean(self) -> None:
        """Takes away what an earlier node was in the middle of."""
        for file in (*self._directory.glob(FROZEN_NOW + "*"), *self._directory.glob("*.new")):
            with suppress(OSError):
                file.unlink()

    def _summary(self, file: Path, *, check: bool = False) -> dict[str, Any]:
        found = dict(json.loads(self._core.snapshot_summary(file, check)))
        # A document that was copied here is called as its file is.
        return {**found, "name": file.name.removesuffix(SUFFIX), "file": str(file), "problem": None}

    def _known(self, name: str) -> Path:
        file = self._file(check_name(name))
        if not file.exists():
            advice = "`penstock snapshot ls` shows what there is"
            raise NotFoundError(f"find snapshot {name}", "there is none of that name", advice)
        return file

    def _file(self, name: str) -> Path:
        return self._directory / (name + SUFFIX)
