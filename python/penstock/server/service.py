"""What the control API does, without HTTP: attachments, pins, jobs, status and pruning of one node."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from penstock.errors import BusyError, ConflictError, NotDirectoryError, NotFoundError, TimedOutError
from penstock.policies.attachments import check_tree_path, parse_freshness
from penstock.policies.mounts import Sample, Way, check_local_path
from penstock.policies.newest import newest_rule
from penstock.server.attachments import Attacher, AttachmentBook
from penstock.server.keeping import Keeper, Walker
from penstock.server.mount import MountCore
from penstock.server.mounts import MountBook, Surroundings
from penstock.server.pins import PinBook
from penstock.server.snapshots import SnapshotBook, SnapshotCore
from penstock.server.ways import choose_ways

if TYPE_CHECKING:
    from penstock.config import Settings
    from penstock.home import Home
    from penstock.jobs import JobKind, JobRunner

__all__ = ["WAIT_MAX_S", "CoreNode", "NodeService"]

WAIT_MAX_S = 60.0
"""Longest a request may wait for a job to change; who wants to wait longer asks again."""

WAIT_STEP_S = 0.1
"""How often a waiting request looks; also the most often that progress is told."""


class CoreNode(Attacher, MountCore, SnapshotCore, Protocol):
    """The part of ``_core.Node`` that the service needs."""

    def status(self) -> str:
        """Everything the core shows of itself, as JSON."""

    def metrics_port(self) -> int | None:
        """Loopback port of Prometheus text."""

    def set_pins(
        self, paths: Sequence[str], kept: Sequence[tuple[str, str, bool]] = (), decided: int | None = None, /
    ) -> None:
        """What eviction leaves alone."""

    def written(self) -> tuple[int, int]:
        """Changes that were acknowledged, and files cached from uploads, since the node started."""

    def sample(self, path: str) -> str:
        """Number and bytes of the first files below a path, as JSON."""

    def prune(self, target_bytes: int) -> str:
        """Evicts, least recently used first, until at most so many bytes are cached."""


class NodeService:
    """One node as its control API sees it. Every method may be called from any thread."""

    version = "unknown"

    def __init__(self, home: Home, settings: Settings, core: CoreNode, jobs: JobRunner) -> None:
        self.home = home
        self.settings = settings
        self.core = core
        self.jobs = jobs
        self.attachments = AttachmentBook(home.attachments, core)
        self.pins = PinBook(home.pins, core.set_pins)
        self.keeper = Keeper(self.pins, core.written, self._tree)
        self.snapshots = SnapshotBook(home.snapshots, core, self._mounted_snapshots)
        surroundings = Surroundings(
            attached=self.attachments.attached,
            check_directory=self._check_directory,
            own_directories=self._own_directories,
            snapshot=self.snapshots.for_mount,
            run=home.run,
            images=home.images,
            ways=self._ways,
        )
        self.mounts = MountBook(home.mounts, core, surroundings)
        self.problems: list[str] = []
        self.foreground = False
        self.stopping = False
        self.stop: Callable[[], None] = lambda: None
        self._started = time.time()
        self._active_at = time.monotonic()

    def restore(self) -> None:
        """Brings back what an earlier node had: attachments, pins, jobs. Waits for no source and for no mount."""
        self.problems += self.attachments.restore()
        self.pins.restore()
        self.keeper.start()
        self.snapshots.clean()
        self.problems += self.mounts.load()
        self.jobs.start()

    def attach(self, request: dict[str, Any]) -> dict[str, Any]:
        """Attaches a source; see :meth:`AttachmentBook.attach`. Where the tree is mounted, it appears there."""
        freshness = parse_freshness(self.settings.source.freshness)
        if request["source"]["kind"] == "file":
            with self.mounts.apart_from(request["source"]["directory"], request["path"]):
                attached = self.attachments.attach(request, freshness)
        else:
            attached = self.attachments.attach(request, freshness)
        self.pins.refresh()
        self.keeper.changed()
        self.mounts.follow()
        return attached

    def detach(self, path: str, *, lazy: bool = False) -> None:
        """Takes an attachment out of the tree; what is cached of it stays until it is evicted.

        Raises:
            NotFoundError: nothing is attached at exactly that path.
            BusyError: others lie in it; a mount shows it; somebody uses it through one and ``lazy`` is not set; or
                what was written there is not in its source yet.
        """
        path = check_tree_path(path)
        self._check_persisted(path)
        with self.mounts.without(path, lazy=lazy):
            self.attachments.detach(path)
        self.pins.refresh()

    def mount(self, request: dict[str, Any], *, reuse: bool) -> dict[str, Any]:
        """Mounts a part of the tree; see :meth:`MountBook.mount`."""
        checked = {"target": check_local_path(request["target"]), "path": check_tree_path(request["path"])}
        return self.mounts.mount({**request, **checked}, reuse=reuse)

    def umount(self, target: str, *, lazy: bool) -> None:
        """Takes a mount away; see :meth:`MountBook.umount`."""
        self.mounts.umount(check_local_path(target), lazy=lazy)

    def pin(self, path: str, newest: int | None = None) -> list[str]:
        """Pins a path of the tree, or the newest so many of a pattern.

        Raises:
            NotFoundError: no attachment covers it.
            InvalidInputError: a pattern or number that cannot be.
        """
        rule = None if newest is None else newest_rule(path, newest)
        path = check_tree_path(path)
        if not self.attachments.covers(path if rule is None else rule.base):
            raise NotFoundError(f"pin {path}", "nothing is attached there", "`penstock attachments` shows what is")
        if rule is None:
            return self.pins.add(path)
        pinned = self.pins.add_newest(rule)
        self.keeper.changed()
        return pinned

    def unpin(self, path: str) -> list[str]:
        """Takes a pin or a pattern away; see :meth:`PinBook.remove`."""
        left = self.pins.remove(path)
        self.keeper.changed()
        return left

    def submit(self, kind: JobKind, path: str, max_bytes_per_s: int | None) -> dict[str, Any]:
        """Queues a job for a path of the tree.

        Raises:
            NotFoundError: no attachment covers it; said now rather than by the job.
        """
        path = check_tree_path(path)
        if not self.attachments.covers(path):
            advice = "`penstock attachments` shows what is attached"
            raise NotFoundError(f"{kind} {path}", "nothing is attached there", advice)
        return self.jobs.submit(kind, path, max_bytes_per_s)

    async def wait_for_job(self, job_id: str, wait_s: float, revision: int | None) -> dict[str, Any]:
        """How a job looks once it differs from ``revision``, has ended, or the time is over. Holds no thread."""
        deadline = time.monotonic() + min(wait_s, WAIT_MAX_S)
        while True:
            now, ended = self.jobs.revision(job_id)
            changed = revision is not None and now != revision
            if ended or changed or self.stopping or time.monotonic() >= deadline:
                return await asyncio.to_thread(self.jobs.get, job_id)
            self.touch()
            await asyncio.sleep(WAIT_STEP_S)

    def prune(self, target_bytes: int) -> dict[str, Any]:
        """Shrinks the cache; see :meth:`CoreNode.prune`."""
        return dict(json.loads(self.core.prune(target_bytes)))

    def status(self) -> dict[str, Any]:
        """Everything ``penstock status --json`` shows."""
        core = json.loads(self.core.status())
        metrics = core.get("metrics", {})
        return {
            "version": self.version,
            "pid": os.getpid(),
            "started": self._started,
            "uptime_s": time.time() - self._started,
            "home": str(self.home.name),
            "control_socket": str(self.home.control_socket),
            "data_socket": str(self.home.data_socket),
            "foreground": self.foreground,
            "idle_timeout_s": None if self.foreground else self.settings.node.idle_timeout or None,
            "metrics_port": self.core.metrics_port(),
            "hit_ratio": core.get("hit_ratio"),
            "bytes_from_source": metrics.get("source_bytes", 0),
            "bytes_from_cache": metrics.get("cache_hit_bytes", 0),
            "in_flight": metrics.get("source_in_flight", 0),
            "backlog_bytes": core["stage"]["bytes"],
            "clients": metrics.get("clients", 0),
            "memory": {
                "budget_bytes": core.get("memory_budget_bytes"),
                "used_bytes": metrics.get("memory_used_bytes", 0),
                "resident_bytes": resident_bytes(),
            },
            "cache": core.get("cache", {}),
            "stage": self._stage(core["stage"]),
            "attachments": self.attachments.all(),
            "mounts": self.mounts.all(),
            "jobs": self.jobs.counts(),
            "pins": self.pins.all(),
            "kept_newest": self.pins.kept(),
            "problems": self.problems + self.mounts.problems() + ([self.keeper.problem] if self.keeper.problem else []),
            "metrics": metrics,
        }

    def _stage(self, known: dict[str, Any]) -> dict[str, Any]:
        """What the core says of the stage, with its directory, and with paths for those who know no keys."""
        for each in (*known["failures"], *known["conflicted"]):
            each["path"] = self.attachments.path_of(each["attachment"], each["key"])
        return {**known, "directory": str(self.settings.stage_directory(self.home))}

    def touch(self) -> None:
        """Notes that somebody used the node."""
        self._active_at = time.monotonic()

    def idle_s(self) -> float:
        """Seconds since the node was last used; a client, a job, a mount or a backlog counts as use."""
        counts = self.jobs.counts()
        core = json.loads(self.core.status())
        needed = core.get("metrics", {}).get("clients", 0) or core["stage"]["files"]
        if needed or counts["running"] or counts["queued"] or self.mounts.in_use():
            self.touch()
        return time.monotonic() - self._active_at

    def _check_persisted(self, path: str) -> None:
        """Refuses to take away what the source has not got: nobody could bring it there any more."""
        from penstock._native import Core

        if not json.loads(self.core.status())["stage"]["files"]:
            return
        core = Core(str(self.home.data_socket), "control")
        try:
            core.persist(path, 0.0)
        except TimedOutError as error:
            advice = f"`penstock persist {path}` first"
            raise BusyError(
                f"detach {path}", f"its source has not got all that was written: {error.reason}", advice
            ) from None
        except (NotFoundError, ConflictError):
            return  # nothing is attached there, as will be said; or it waits no more
        finally:
            core.close()

    def _tree(self) -> Walker:
        from penstock._native import Core

        return Core(str(self.home.data_socket), "jobs")

    def _mounted_snapshots(self) -> dict[str, str]:
        return self.mounts.snapshots()

    def _check_directory(self, path: str) -> None:
        """Raises where a path of the tree is no directory; may ask its source."""
        from penstock.jobs.core_tree import CoreTree

        tree = CoreTree(self.home.data_socket)
        try:
            is_directory = tree.stat(path).is_directory
        except NotFoundError:
            advice = "`penstock attachments` shows what is attached"
            raise NotFoundError(f"mount {path}", "the tree has nothing at that path", advice) from None
        finally:
            tree.close()
        if not is_directory:
            raise NotDirectoryError(f"mount {path}", "it is a file", "mount the directory that it is in")

    def _ways(self, paths: Sequence[str]) -> dict[str, Way]:
        return choose_ways(paths, self.attachments.covering, lambda path: Sample(**json.loads(self.core.sample(path))))

    def _own_directories(self) -> dict[str, str]:
        """Directories that the node reads and writes by itself, each with what it is."""
        sources = {directory: f"the source of {path}" for directory, path in self.attachments.directories().items()}
        tiers = {str(tier.directory): "a directory of the cache" for tier in self.settings.tiers(self.home, 0)}
        stage = {str(self.settings.stage_directory(self.home)): "the directory of the stage"}
        home = (self.home.name, self.home.cache, self.home.run, self.home.logs, self.home.config.parent)
        return {**sources, **tiers, **stage, **{str(directory): "a directory of the node" for directory in home}}


def resident_bytes() -> int:
    """Memory of this process without pages of files: what the machine cannot take back. Bytes."""
    with open("/proc/self/status", encoding="ascii") as stream:  # noqa: PTH123 - not a path of ours
        return sum(int(line.split()[1]) * 1024 for line in stream if line.startswith(("RssAnon:", "RssShmem:")))
