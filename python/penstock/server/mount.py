"""One mount of the tree: the kernel mounts that it is made of, kept in step with the attachments."""

from __future__ import annotations

import json
import logging
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from penstock.errors import BusyError, InternalError, PenstockError
from penstock.policies.mounts import (
    FILE_SYSTEM,
    SOURCE,
    KernelMount,
    Place,
    lies_in,
    modes,
    mount_at,
    mounts_below,
    plan,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from penstock.policies.mounts import Way
    from penstock.server.mounter import Holder, Mounter

    Ways = Callable[[Sequence[str]], Mapping[str, Way]]
    """Tells how the kernel is to get at the bytes below paths of the tree."""

__all__ = ["Mount", "MountCore", "busy"]

_log = logging.getLogger(__name__)


class MountCore(Protocol):
    """The part of the core that serves mounts."""

    def serve_mount(self, fd: int, options_json: str) -> str:
        """Serves a mount from now on and owns its descriptor; its status as JSON."""

    def mounts(self) -> str:
        """Every mount that is served, as a JSON list."""

    def end_mount(self, mount_id: int) -> None:
        """Serves a mount no longer."""


class Served(NamedTuple):
    """A kernel mount that the core serves."""

    place: Place
    id: int
    device: str
    kind: str = FILE_SYSTEM
    source: str = SOURCE
    writable: bool = False


class Mount:
    """A document and the kernel mounts that show it. One thread at a time changes it; reading is free."""

    def __init__(self, document: dict[str, Any], core: MountCore, ways: Ways) -> None:
        self.document = document
        self._ways = ways
        self.problem: str | None = None
        self.served: tuple[Served, ...] = ()
        self._core = core
        self._nests = False
        self._unwritten: list[str] = []
        self._attached: list[str] = []

    @property
    def target(self) -> str:
        """Directory that shows the tree, without links."""
        return str(self.document["target"])

    @property
    def path(self) -> str:
        """Path of the tree that is shown."""
        return str(self.document["path"])

    @property
    def is_mounted(self) -> bool:
        """Whether it was mounted and nobody has taken it away, as far as is known."""
        return bool(self.served)

    @property
    def snapshot(self) -> str | None:
        """Name of the snapshot that is shown instead of the tree."""
        name: str | None = self.document["snapshot"]
        return name

    def clear(self, mounter: Mounter) -> None:
        """Takes away what an earlier node left, where that does not look dead by itself."""

    def forget(self) -> None:
        """Removes what was kept for it, once it is away for good."""

    def establish(self, mounter: Mounter, attached: Iterable[str]) -> None:
        """Mounts and serves the root and what is nested in it.

        A nested mount that fails is a problem of the mount, not its end: the root shows those files too.

        Raises:
            PenstockError: the root cannot be mounted; nothing is left of it.
        """
        self._attached = sorted(attached)
        places = plan(self.target, self.path, self._attached)
        ways = self._ways([place.path for place in places])
        self._nests = self._serve(mounter, places[0], ways[self.path])
        alone = not self._nests and not ways[self.path].writable
        self._unwritten = [place.path for place in places[1:] if ways[place.path].writable] if alone else []
        self.problem = _unwritten(self._unwritten)
        self._nest(mounter, places, ways)

    def follow(self, mounter: Mounter, attached: Iterable[str]) -> None:
        """Nests a mount for each attachment that has none, and takes away those whose attachment is gone.

        An attachment that appears above nested mounts would hide them: they go out of sight first, where open files
        live on, and are mounted again in the new one. The same is done with the root, where it is written from then on.
        """
        attached = sorted(attached)
        if self.served and attached != self._attached:
            self._attached = attached
            if self._ways([self.path])[self.path].writable and not self.served[0].writable:
                mounter.unmount(self.target, lazy=True)
                self.served = ()
                self.establish(mounter, attached)
                return
        if self.served and self._unwritten:
            self._unwritten = [path for path in self._unwritten if path in attached]
            self.problem = _unwritten(self._unwritten)
        if not self.served or not self._nests:
            return
        wanted = plan(self.target, self.path, attached)
        missing = [place for place in wanted if not self._serves(place)]
        moved = [each for each in self.served[1:] if any(lies_in(each.place.path, place.path) for place in missing)]
        # Asked before anything is taken away, because it takes time.
        ways = self._ways([place.path for place in (*missing, *(each.place for each in moved))])
        for each in reversed(self.served[1:]):
            if each in moved or each.place not in wanted:
                self._take(mounter, each, lazy=True)
        self._nest(mounter, wanted, ways)

    def _serves(self, place: Place) -> bool:
        return any(each.place == place for each in self.served)

    def _nest(self, mounter: Mounter, wanted: Sequence[Place], ways: Mapping[str, Way]) -> None:
        if not self._nests:
            return
        problem = None
        for place in wanted:
            if self._serves(place):
                continue
            try:
                self._serve(mounter, place, ways[place.path])
            except PenstockError as error:
                problem = str(error)
                _log.error("not nested: %s", error, extra={"code": error.code, "path": place.path})
        self.problem = problem

    def release(self, mounter: Mounter, path: str, *, lazy: bool) -> None:
        """Takes away what is nested for an attachment, where something is.

        Raises:
            BusyError: somebody uses it, and ``lazy`` was not asked for.
        """
        for each in self.served[1:]:
            if each.place.path == path:
                if not lazy:
                    _refuse_busy(mounter, each.place.target, f"detach {path}", f"penstock detach {path} --lazy")
                if not self._take(mounter, each, lazy=lazy):
                    raise busy(mounter, each.place.target, f"detach {path}", f"penstock detach {path} --lazy")

    def withdraw(self, mounter: Mounter, attached: Iterable[str], *, lazy: bool) -> None:
        """Takes all of it away, the innermost first; where that fails in the middle, what was taken is mounted again.

        Args:
            mounter: touches the mount points.
            attached: paths of all attachments.
            lazy: out of sight at once; who has files open reads on until they are closed.

        Raises:
            BusyError: somebody uses it, and ``lazy`` was not asked for. The error names them.
        """
        if lazy and self.served:
            mounter.unmount(self.target, lazy=True)
            self.served = ()
        if not self.served:
            return
        action, instead = f"unmount {self.target}", f"penstock umount {self.target} --lazy"
        _refuse_busy(mounter, self.target, action, instead)
        for each in reversed(self.served):
            if not self._take(mounter, each, lazy=False):
                refusal = busy(mounter, each.place.target, action, instead)
                self.follow(mounter, attached)
                raise refusal

    def abandon(self, mounter: Mounter) -> list[Holder]:
        """Takes all of it away, whoever uses it; who did."""
        for each in reversed(self.served):
            if not self._take(mounter, each, lazy=False):
                holders, _ = mounter.holders(self.target)
                mounter.unmount(self.target, lazy=True)
                self.served = ()
                return holders
        return []

    def is_gone(self, table: Sequence[KernelMount]) -> bool:
        """Whether somebody else took the root away."""
        return bool(self.served) and not _shows(table, self.served[0])

    def heal(self, mounter: Mounter, table: Sequence[KernelMount], alive: Mapping[int, bool]) -> bool:
        """Takes away what is no longer served though it is mounted, and forgets what is no longer mounted.

        Returns:
            Whether the root is among them; all of it is away then.
        """
        for each in reversed(self.served):
            shown = _shows(table, each)
            if shown and alive.get(each.id, False):
                continue
            _log.warning("a mount has to be made again", extra={"target": each.place.target, "shown": shown})
            if each is self.served[0]:
                mounter.unmount(self.target, lazy=True)
                self.served = ()
                return True
            if shown:
                mounter.unmount(each.place.target, lazy=True)
            self.served = tuple(other for other in self.served if other is not each)
        return False

    def _serve(self, mounter: Mounter, place: Place, way: Way, instead: Mapping[str, Any] | None = None) -> bool:
        """Mounts and serves one kernel mount, of the tree or of ``instead``; whether others can be nested in it."""
        document = self.document
        around = [each.device for each in self.served if lies_in(place.target, each.place.target)]
        inside = around[-1] if around else None
        allow_other, writable = document["allow_other"], way.writable
        mounted = mounter.mount(place.target, allow_other=allow_other, writable=writable, inside=inside)
        file_mode, directory_mode = modes(document, writable=writable)
        options = {
            "path": place.path,
            "target": place.target,
            "uid": os.getuid() if document["uid"] is None else document["uid"],
            "gid": os.getgid() if document["gid"] is None else document["gid"],
            "file_mode": file_mode,
            "directory_mode": directory_mode,
            "allow_other": allow_other,
            "way": way.name,
            "why": way.why,
            **(instead or {}),
        }
        number: int | None = None
        try:
            number = int(json.loads(self._core.serve_mount(mounted.descriptor, json.dumps(options)))["id"])
            shown = mount_at(mounter.table(), place.target)
            if shown is None:
                raise InternalError(f"mount {place.target}", "the kernel does not show the mount", "report it")
            mounter.settle(place.target, shown.device)
        except BaseException:
            # First its server, so that nobody waits for it any more, then the mount.
            if number is not None:
                self._end(number)
            with suppress(PenstockError):
                mounter.unmount(place.target, lazy=True)
            raise
        self.served += (Served(place, number, shown.device, writable=writable),)
        return mounted.privileged

    def _take(self, mounter: Mounter, served: Served, *, lazy: bool) -> bool:
        if not mounter.unmount(served.place.target, lazy=lazy):
            return False
        self.served = tuple(each for each in self.served if each is not served)
        if not lazy:
            # Out of sight is not out of use: that one ends when the last file is closed.
            self._end(served.id)
        return True

    def _end(self, number: int) -> None:
        with suppress(PenstockError):  # it ended by itself
            self._core.end_mount(number)


def busy(mounter: Mounter, target: str, action: str, instead: str) -> BusyError:
    """The refusal to take away what somebody uses, with who it is.

    Args:
        mounter: looks for them.
        target: the mount.
        action: what is refused.
        instead: the command that does it all the same.
    """
    holders, hidden = mounter.holders(target)
    on_top = [each.point for each in mounts_below(mounter.table(), target) if each.kind != FILE_SYSTEM]
    if holders:
        used = ", ".join(f"{each.name} (pid {each.pid}, {each.path})" for each in holders)
    elif on_top:
        used = f"what is mounted on {on_top[0]}"
    else:
        used = "a process that cannot be looked into" if hidden else "a process that could not be found"
    return BusyError(action, f"it is in use by {used}", f"stop that, or `{instead}`")


def _unwritten(paths: Sequence[str]) -> str | None:
    """What is attached to be written and shown by a root that is not, in a sentence."""
    if not paths:
        return None
    command = f"penstock mount DIRECTORY --path {paths[0]}"
    return f"this user cannot nest mounts, so that {', '.join(paths)} can only be read here; `{command}`"


def _refuse_busy(mounter: Mounter, target: str, action: str, instead: str) -> None:
    if mounter.holders(target)[0]:
        raise busy(mounter, target, action, instead)


def _shows(table: Sequence[KernelMount], served: Served) -> bool:
    # Device numbers are used again: whatever else is mounted there could have this one.
    wanted = KernelMount(served.device, served.place.target, served.kind, served.source)
    return wanted in table
