"""A mount of a snapshot: an image that the kernel mounts by itself, whose bytes the node serves.

The bytes come from a FUSE mount of their own, which goes out of sight as soon as the image has it open: who unmounts
the image has then unmounted both, in the right order.
"""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from penstock.errors import DiskError, InternalError, PenstockError
from penstock.policies.mounts import IMAGE, Place, Way, mount_at
from penstock.server.mount import Mount, MountCore, Served

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from penstock.server.mounter import Mounter
    from penstock.server.snapshots import SnapshotFiles

__all__ = ["SnapshotMount"]

_log = logging.getLogger(__name__)

_AS_IMAGE = "the kernel mounts its image by itself"


class SnapshotMount(Mount):
    """A document and the kernel mount that shows it.

    Args:
        document: as of every mount; ``snapshot`` is a name.
        core: serves mounts.
        find: gives the files of a snapshot.
        run: directory for what is mounted out of sight.
        images: directory for the image.
    """

    def __init__(
        self, document: dict[str, Any], core: MountCore, find: Callable[[str], SnapshotFiles], run: Path, images: Path
    ) -> None:
        super().__init__(document, core, lambda paths: dict.fromkeys(paths, Way("no-open", "")))
        self._find = find
        self._devices = run / f"snapshot-{document['id'][:8]}"
        self._image = images / f"{document['id']}.erofs"

    def establish(self, mounter: Mounter, attached: Iterable[str]) -> None:  # noqa: ARG002 - it needs none
        """Mounts the image; where this kernel or user cannot, names and files through FUSE.

        Raises:
            PenstockError: neither can be mounted; nothing is left of it.
        """
        self.problem = None
        try:
            self._mount(mounter)
        except BaseException:
            self.forget()
            raise

    def follow(self, mounter: Mounter, attached: Iterable[str]) -> None:
        """Attachments come and go without it."""

    def release(self, mounter: Mounter, path: str, *, lazy: bool) -> None:
        """Detaching takes nothing away: a snapshot knows its source."""

    def clear(self, mounter: Mounter) -> None:
        """Takes away what an earlier node left: an image whose bytes nobody serves any more."""
        for directory in (self.target, str(self._devices)):
            while (there := mount_at(mounter.table(), directory)) is not None:
                if directory == self.target and (there.kind, there.source) != (IMAGE, str(self._image)):
                    break
                mounter.unmount(directory, lazy=True)
        with suppress(OSError):
            self._devices.rmdir()

    def forget(self) -> None:
        """Removes the image."""
        for file in (self._image, self._image.with_name(self._image.name + ".new")):
            with suppress(OSError):
                file.unlink(missing_ok=True)

    def _mount(self, mounter: Mounter) -> None:
        try:
            self._mount_image(mounter)
        except PenstockError as error:
            if error.code not in ("unsupported", "permission-denied"):
                raise
            _log.info("no image: %s", error, extra={"target": self.target})
            why = f"nothing of it changes; not as an image: {error.reason}"
            self._serve(mounter, Place(self.path, self.target), Way("no-open", why), self._shown("files"))

    def _shown(self, what: str) -> dict[str, Any]:
        files = self._find(self.document["snapshot"])
        return {"snapshot": {"document": str(files.document), "image": str(self._image), "shown": what}}

    def _mount_image(self, mounter: Mounter) -> None:
        devices, image = self._devices, str(self._image)
        mounter.check_image()
        try:
            devices.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise DiskError(f"mount {self.target}", str(error.strerror), f"look at {devices.parent}") from None
        try:
            self._serve(mounter, Place(self.path, str(devices)), Way("open", _AS_IMAGE), self._shown("devices"))
            served = self.served[-1]
            try:
                known = next(each for each in json.loads(self._core.mounts()) if int(each["id"]) == served.id)
                paths = [str(devices / str(number)) for number in range(len(known["data_devices"]))]
                mounter.mount_image(self.target, image, paths)
                shown = mount_at(mounter.table(), self.target)
                if shown is None:
                    raise InternalError(f"mount {self.target}", "the kernel does not show the mount", "report it")
            except BaseException:
                self._end(served.id)
                raise
            finally:
                self.served = ()
                mounter.unmount(str(devices), lazy=True)
        finally:
            with suppress(OSError):
                devices.rmdir()
        self.served = (Served(Place(self.path, self.target), served.id, shown.device, IMAGE, image),)
