"""Pinned paths: what eviction leaves alone, kept so that the next node leaves it alone too."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

from penstock.errors import CorruptError, DiskError, NotFoundError, ResourceLimitError
from penstock.home import write_atomically
from penstock.policies.attachments import check_tree_path

__all__ = ["PINS_MAX", "PinBook"]

FORMAT = 1
PINS_MAX = 1000
"""Pins of one home: each is looked at for every object that eviction considers."""


class PinBook:
    """The pins of one home, in order of their paths.

    Args:
        file: where they are kept.
        apply: tells the core; called with all pins after every change.
    """

    def __init__(self, file: Path, apply: Callable[[list[str]], None]) -> None:
        self._file = file
        self._apply = apply
        self._lock = threading.Lock()
        self._paths: list[str] = []

    def restore(self) -> None:
        """Reads the kept pins and tells the core.

        Raises:
            CorruptError: the file is damaged; nothing is pinned then.
        """
        try:
            document = json.loads(self._file.read_text(encoding="utf-8"))
            self._paths = sorted(check_tree_path(path) for path in document["paths"])
        except FileNotFoundError:
            self._paths = []
        except (ValueError, KeyError, TypeError):
            raise CorruptError(
                f"read {self._file}", "it is damaged; nothing is pinned", "remove it, pin again"
            ) from None
        self.refresh()

    def refresh(self) -> None:
        """Tells the core again: a pin means objects, and what objects it means changes with the attachments."""
        with self._lock:
            self._apply(list(self._paths))

    def all(self) -> list[str]:
        """All pins."""
        with self._lock:
            return list(self._paths)

    def add(self, path: str) -> list[str]:
        """Pins a path and everything below it; pinning it again changes nothing.

        Raises:
            ResourceLimitError: :data:`PINS_MAX` paths are pinned already.
        """
        path = check_tree_path(path)
        with self._lock:
            if path in self._paths:
                return list(self._paths)
            if len(self._paths) >= PINS_MAX:
                raise ResourceLimitError(f"pin {path}", f"{PINS_MAX} paths are pinned already", "pin their parents")
            return self._replace(sorted([*self._paths, path]))

    def remove(self, path: str) -> list[str]:
        """Takes exactly that pin away.

        Raises:
            NotFoundError: that path is not pinned itself.
        """
        path = check_tree_path(path)
        with self._lock:
            if path not in self._paths:
                above = next((pin for pin in self._paths if path.startswith(pin.rstrip("/") + "/")), None)
                reason = f"the pin is on {above}" if above else "it is not pinned"
                advice = f"`penstock unpin {above}`" if above else "`penstock status` shows the pins"
                raise NotFoundError(f"unpin {path}", reason, advice)
            return self._replace([pin for pin in self._paths if pin != path])

    def _replace(self, paths: list[str]) -> list[str]:
        try:
            write_atomically(self._file, json.dumps({"format": FORMAT, "paths": paths}))
        except OSError as error:
            raise DiskError(f"save {self._file}", str(error.strerror), "free space, or fix the disk") from None
        self._paths = paths
        self._apply(list(paths))
        return list(paths)
