"""The mounts of one node: documents in its home, and the same in the kernel, kept so by a thread of its own.

The node never touches its own mounts: whatever touches a mount point is asked of :mod:`penstock.server.mounter`.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from penstock.errors import BusyError, InvalidInputError, NotFoundError, PenstockError, UnavailableError
from penstock.policies.mounts import FILE_SYSTEM, TargetFacts, check_target, lies_in, mount_at
from penstock.server.mount import Mount, MountCore
from penstock.server.mount_store import MountStore
from penstock.server.mounter import Mounter
from penstock.server.snapshot_mount import SnapshotMount

if TYPE_CHECKING:
    from collections.abc import Mapping

    from penstock.server.mount import Ways
    from penstock.server.snapshots import SnapshotFiles

__all__ = ["MountBook", "Surroundings"]

CHECK_INTERVAL_S = 2.0
"""How often the kernel's table of mounts is compared with what should be there."""

RETRY_INTERVAL_S = 30.0
"""How often a mount that failed is tried again."""

PATIENCE_S = 10.0
"""Longest wait for another change of mounts to be over."""

LAYERS_MAX = 8
"""Dead mounts that may lie on one directory; each crash leaves one at most."""

_log = logging.getLogger(__name__)


class Surroundings(NamedTuple):
    """What the mounts of a node depend on."""

    attached: Callable[[], list[str]]
    """Paths of the attachments that the core has."""
    check_directory: Callable[[str], None]
    """Raises where a path of the tree is no directory."""
    own_directories: Callable[[], Mapping[str, str]]
    """Local directories that the node uses by itself, each with what it is."""
    snapshot: Callable[[str], SnapshotFiles]
    """The files of a snapshot by its name; raises where there is none."""
    run: Path
    """Private directory for what is mounted out of sight."""
    images: Path
    """Directory for images of snapshots."""
    ways: Ways
    """How the kernel is to get at the bytes below each path of the tree; may ask sources."""


class MountBook:
    """Every mount of a home. Methods may be called from any thread; changes wait for each other."""

    def __init__(
        self,
        directory: Path,
        core: MountCore,
        surroundings: Surroundings,
        mounter: Callable[[], Mounter] = Mounter,
    ) -> None:
        self._store = MountStore(directory)
        self._core = core
        self._surroundings = surroundings
        self._mounter = mounter
        self._changes = threading.RLock()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._mounts: dict[str, Mount] = {}
        self._has_served = False
        self._tried_at: dict[str, float] = {}

    def load(self) -> list[str]:
        """Reads the documents of an earlier node; :meth:`start` mounts them.

        Returns:
            Problems, one sentence each.
        """
        documents, problems = self._store.load()
        self._mounts = {document["target"]: self._mount_of(document) for document in documents}
        return problems

    def start(self) -> None:
        """Mounts what an earlier node had and looks after all mounts from now on, in a thread of its own."""
        self._thread = threading.Thread(target=self._look_after, name="mounts", daemon=True)
        self._thread.start()

    def _mount_of(self, document: dict[str, Any]) -> Mount:
        if document["snapshot"] is not None:
            return SnapshotMount(
                document, self._core, self._surroundings.snapshot, self._surroundings.run, self._surroundings.images
            )
        return Mount(document, self._core, self._surroundings.ways)

    def mount(self, request: dict[str, Any], *, reuse: bool = False) -> dict[str, Any]:
        """Mounts a part of the tree and keeps its document.

        Args:
            request: as made by :func:`penstock.policies.mounts.request`.
            reuse: take a mount that is there already, where it is the same one.

        Raises:
            PenstockError: why not, with what helps; nothing is left of it.
        """
        if request["snapshot"] is None:
            self._surroundings.check_directory(request["path"])
        else:
            request = {**request, "path": self._surroundings.snapshot(request["snapshot"]).path}
        with self._changing(f"mount {request['target']}"), self._mounter() as mounter:
            self._notice(mounter)
            facts, own = self._seen(mounter, request["target"])
            request = {**request, "target": facts.path}
            there = self._mounts.get(facts.path)
            if there is not None and reuse and _is_same(there, request):
                if not there.is_mounted:
                    self._revive(mounter, there)
                return self._view(there, self._served())
            check_target(facts, mounter.table(), own, is_ours=there is not None and there.is_mounted)
            mount = self._mount_of(self._store.new(request))
            self._establish(mounter, mount)
            try:
                self._store.save(mount.document)
            except PenstockError:
                mount.abandon(mounter)
                raise
            if there is not None:
                self._store.remove(there.document)
            self._mounts[facts.path] = mount
            _log.info("mounted %s at %s", mount.path, mount.target)
            return self._view(mount, self._served())

    def umount(self, target: str, *, lazy: bool) -> None:
        """Takes a mount away and forgets its document.

        Raises:
            NotFoundError: this node has no mount there.
            BusyError: somebody uses it, and ``lazy`` was not asked for; nothing has changed.
        """
        with self._changing(f"unmount {target}"), self._mounter() as mounter:
            self._notice(mounter)
            if target not in self._mounts:
                facts, _ = mounter.look(target)
                if facts.path not in self._mounts:
                    return self._umount_unknown(mounter, facts)
                target = facts.path
            mount = self._mounts[target]
            if mount.is_mounted:
                mount.withdraw(mounter, self._surroundings.attached(), lazy=lazy)
            else:
                mount.clear(mounter)
                self._seen(mounter, target)
            self._forget(mount)
            _log.info("unmounted %s", target)
        return None

    def follow(self) -> None:
        """Nests what was attached since; a mount that cannot follow says so in its problem."""
        # Where another change takes long, the next check follows.
        if not self._mounts or not self._changes.acquire(timeout=PATIENCE_S):
            return
        try:
            with self._mounter() as mounter:
                self._follow(mounter)
        finally:
            self._changes.release()

    @contextmanager
    def without(self, path: str, *, lazy: bool) -> Iterator[None]:
        """Takes away what is nested for an attachment while it is detached; mounts it again where that fails.

        Raises:
            BusyError: it is what a mount shows, or somebody uses it.
        """
        if not self._mounts:
            yield
            return
        with self._changing(f"detach {path}"), self._mounter() as mounter:
            others = [each for each in self._surroundings.attached() if each != path]
            for mount in self._mounts.values():
                _refuse_uncovered(mount, path, others)
            try:
                # The core refuses to detach what others lie in: nothing has to be taken away for that.
                if not any(lies_in(each, path) for each in others):
                    for mount in self._mounts.values():
                        mount.release(mounter, path, lazy=lazy)
                yield
            finally:
                self._follow(mounter)

    @contextmanager
    def apart_from(self, directory: str, path: str) -> Iterator[None]:
        """Attaches a local directory while no mount changes.

        Raises:
            InvalidInputError: the directory lies in a mount, or a mount in it: the node would read itself.
        """
        with self._changing(f"attach {path}"):
            if self._mounts:
                with self._mounter() as mounter:
                    facts, _ = mounter.look(directory)
                for target in self._mounts:
                    if lies_in(facts.path, target) or lies_in(target, facts.path):
                        reason = f"{facts.path} and the mount {target} lie in each other: the node would read itself"
                        raise InvalidInputError(f"attach {path}", reason, f"`penstock umount {target}` first")
            yield

    def all(self) -> list[dict[str, Any]]:
        """Every mount with its kernel mounts, sorted by target."""
        served = self._served()
        return [self._view(mount, served) for _, mount in sorted(dict(self._mounts).items())]

    def snapshots(self) -> dict[str, str]:
        """Names of the snapshots that are mounted, each with where."""
        mounts = dict(self._mounts).values()
        return {mount.snapshot: mount.target for mount in mounts if mount.snapshot is not None}

    def problems(self) -> list[str]:
        """What is wrong with mounts now, one sentence each."""
        return [mount.problem for mount in dict(self._mounts).values() if mount.problem]

    def in_use(self) -> bool:
        """Whether there are mounts, be it one out of sight whose files are still open."""
        return bool(self._mounts) or any(each["alive"] for each in self._served().values())

    def check(self) -> None:
        """Compares what should be mounted with the kernel's table, once: notices, heals, tries again."""
        if not self._mounts or not self._changes.acquire(blocking=False):
            return
        try:
            with self._mounter() as mounter:
                self._notice(mounter)
                for mount in list(self._mounts.values()):
                    try:
                        self._check(mounter, mount)
                    except PenstockError as error:
                        mount.problem = str(error)
                        _log.error("%s", error, extra={"code": error.code, "target": mount.target})
        finally:
            self._changes.release()

    def close(self) -> None:
        """Takes every mount away and keeps the documents; who uses one loses it when the node ends."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join(PATIENCE_S)
        # Without the lock where a change does not come to its end: what is left dies with the node.
        patient = self._changes.acquire(timeout=PATIENCE_S)
        try:
            with self._mounter() as mounter:
                for mount in reversed(list(self._mounts.values())):
                    self._abandon(mounter, mount)
        finally:
            if patient:
                self._changes.release()

    def _abandon(self, mounter: Mounter, mount: Mount) -> None:
        try:
            holders = mount.abandon(mounter)
        except PenstockError as error:
            _log.error("left behind: %s", error, extra={"code": error.code, "target": mount.target})
            return
        if holders:
            used = ", ".join(f"{each.name} ({each.pid})" for each in holders)
            _log.warning("%s was in use when the node stopped: %s", mount.target, used)

    def _look_after(self) -> None:
        while True:
            try:
                self.check()
            except Exception:  # noqa: BLE001 - the next check may find things in order
                _log.exception("a defect in looking after mounts")
            if self._closing.wait(CHECK_INTERVAL_S):
                return

    def _check(self, mounter: Mounter, mount: Mount) -> None:
        if self._closing.is_set():
            return
        if not mount.is_mounted:
            if self._is_due(mount):
                self._revive(mounter, mount)
            return
        table = mounter.table()
        alive = {number: bool(each["alive"]) for number, each in self._served().items()}
        if mount.heal(mounter, table, alive):
            self._revive(mounter, mount)
        elif mount.problem is None or self._is_due(mount):
            mount.follow(mounter, self._surroundings.attached())

    def _is_due(self, mount: Mount) -> bool:
        now = time.monotonic()
        if now - self._tried_at.get(mount.document["id"], -RETRY_INTERVAL_S) < RETRY_INTERVAL_S:
            return False
        self._tried_at[mount.document["id"]] = now
        return True

    def _revive(self, mounter: Mounter, mount: Mount) -> None:
        mount.clear(mounter)
        facts, own = self._seen(mounter, mount.target)
        check_target(facts, mounter.table(), own, is_ours=False)
        self._establish(mounter, mount)
        _log.info("mounted %s at %s again", mount.path, mount.target)

    def _establish(self, mounter: Mounter, mount: Mount) -> None:
        self._has_served = True
        mount.establish(mounter, self._surroundings.attached())

    def _follow(self, mounter: Mounter) -> None:
        attached = self._surroundings.attached()
        for mount in self._mounts.values():
            try:
                mount.follow(mounter, attached)
            except PenstockError as error:
                mount.problem = str(error)
                _log.error("%s", error, extra={"code": error.code, "target": mount.target})

    def _notice(self, mounter: Mounter) -> None:
        """Forgets what somebody unmounted without asking the node."""
        table = mounter.table()
        for mount in list(self._mounts.values()):
            if mount.is_gone(table):
                self._forget(mount)
                _log.info("somebody unmounted %s: it is forgotten", mount.target)

    def _seen(self, mounter: Mounter, target: str) -> tuple[TargetFacts, dict[str, str]]:
        """What is at a target once dead mounts of ours are off it, and what it must not lie in or above."""
        own = dict(self._surroundings.own_directories())
        for _ in range(LAYERS_MAX):
            facts, directories = mounter.look(target, list(own))
            there = mount_at(mounter.table(), facts.path)
            if facts.state != "dead" or there is None or there.kind != FILE_SYSTEM:
                mounted = {each: "a mount of this node" for each in self._mounts if each != facts.path}
                return facts, {**dict(zip(directories, own.values(), strict=True)), **mounted}
            _log.info("took the dead mount off %s", facts.path)
            mounter.unmount(facts.path, lazy=True)
        raise UnavailableError(f"mount {target}", "dead mounts lie on it", f"`umount -l {target}` until it is clear")

    def _umount_unknown(self, mounter: Mounter, facts: TargetFacts) -> None:
        action = f"unmount {facts.path}"
        there = mount_at(mounter.table(), facts.path)
        outer = next((each for each in self._mounts if lies_in(facts.path, each)), None)
        if outer is not None:
            raise NotFoundError(action, f"it is a part of the mount {outer}", f"`penstock umount {outer}`")
        if there is None or there.kind != FILE_SYSTEM:
            raise NotFoundError(action, "the tree is not mounted there", "`penstock mounts` shows where it is")
        if facts.state != "dead":
            raise NotFoundError(action, "it is a mount of another node", "unmount it from the home that it belongs to")
        self._seen(mounter, facts.path)

    def _forget(self, mount: Mount) -> None:
        del self._mounts[mount.target]
        self._tried_at.pop(mount.document["id"], None)
        self._store.remove(mount.document)
        mount.forget()

    def _served(self) -> dict[int, dict[str, Any]]:
        """What the core serves, by its number; one out of sight is among them until its last file is closed."""
        if not self._has_served:
            return {}
        return {int(each["id"]): each for each in json.loads(self._core.mounts())}

    @contextmanager
    def _changing(self, action: str) -> Iterator[None]:
        if not self._changes.acquire(timeout=PATIENCE_S):
            raise BusyError(action, "another change of mounts is not over yet", "try again")
        try:
            if self._closing.is_set():
                raise UnavailableError(action, "the node stops", "try again")
            yield
        finally:
            self._changes.release()

    def _view(self, mount: Mount, served: Mapping[int, dict[str, Any]]) -> dict[str, Any]:
        kernel = []
        for each in mount.served:
            known = served.get(each.id, {"alive": False, "way": None, "why": "the core does not serve it"})
            kernel.append(
                {
                    **known,
                    "path": each.place.path,
                    "target": each.place.target,
                    "device": each.device,
                    "writable": each.writable,
                }
            )
        state = "mounted" if kernel else "failed" if mount.problem else "waiting"
        shown = {name: value for name, value in mount.document.items() if name != "format"}
        return {**shown, "state": state, "problem": mount.problem, "kernel_mounts": kernel}


def _is_same(mount: Mount, request: dict[str, Any]) -> bool:
    return all(mount.document[name] == value for name, value in request.items() if name in mount.document)


def _refuse_uncovered(mount: Mount, path: str, others: list[str]) -> None:
    """Refuses to detach what a mount shows: its root would be nowhere."""
    if mount.snapshot is not None:
        return
    shown = lies_in(mount.path, path)
    if not shown and lies_in(path, mount.path) and mount.path != "/":
        shown = not any(lies_in(mount.path, each) or lies_in(each, mount.path) for each in others)
    if shown and not (mount.path == "/" == path):
        reason = f"{mount.path} is mounted at {mount.target}"
        raise BusyError(f"detach {path}", reason, f"`penstock umount {mount.target}` first")
