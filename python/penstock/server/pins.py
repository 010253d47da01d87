"""What eviction leaves alone: pinned paths, and the newest of patterns. Kept for the next node, which does so too."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from penstock.errors import CorruptError, DiskError, NotFoundError, ResourceLimitError
from penstock.home import write_atomically
from penstock.policies.attachments import check_tree_path
from penstock.policies.newest import Newest, newest_rule

__all__ = ["PINS_MAX", "PinBook", "SetPins"]

FORMAT = 1
PINS_MAX = 1000
"""Pins of one home: each is looked at for every object that eviction considers."""


class SetPins(Protocol):
    """Tells the core what eviction leaves alone."""

    def __call__(
        self, paths: Sequence[str], kept: Sequence[tuple[str, str, bool]] = (), decided: int | None = None, /
    ) -> None:
        """Takes the place of what was told before.

        Args:
            paths: what is pinned.
            kept: (path, reason, whether it was listed since the start).
            decided: before which upload ``kept`` was decided; ``None`` where nobody decides.
        """


class PinBook:
    """The pins of one home, in order of their paths.

    Args:
        file: where they are kept.
        apply: tells the core; called with all pins after every change.
    """

    def __init__(self, file: Path, apply: SetPins) -> None:
        self._file = file
        self._apply = apply
        self._lock = threading.Lock()
        self._paths: list[str] = []
        self._rules: list[Newest] = []
        self._kept: list[tuple[str, Newest]] = []
        self._decided: int | None = None

    def restore(self) -> None:
        """Reads the kept pins and tells the core.

        Raises:
            CorruptError: the file is damaged; nothing is pinned then.
        """
        try:
            document = json.loads(self._file.read_text(encoding="utf-8"))
            self._paths = sorted(check_tree_path(path) for path in document["paths"])
            newest = [(newest_rule(each["pattern"], each["keep"]), each["kept"]) for each in document.get("newest", ())]
            self._rules = [rule for rule, _ in newest]
            self._kept = [(check_tree_path(path), rule) for rule, kept in newest for path in kept]
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
            self._tell()

    def all(self) -> list[str]:
        """All pins."""
        with self._lock:
            return list(self._paths)

    def rules(self) -> tuple[Newest, ...]:
        """Patterns of which the newest stay."""
        with self._lock:
            return tuple(self._rules)

    def kept(self) -> list[dict[str, Any]]:
        """Those patterns, how many of each, and which these are now."""
        with self._lock:
            return [self._document(rule) for rule in self._rules]

    def add(self, path: str) -> list[str]:
        """Pins a path and everything below it; pinning it again changes nothing.

        Raises:
            ResourceLimitError: :data:`PINS_MAX` paths are pinned already.
        """
        path = check_tree_path(path)
        with self._lock:
            if path in self._paths:
                return list(self._paths)
            self._check_room(path)
            return self._replace(sorted([*self._paths, path]), self._rules)

    def add_newest(self, rule: Newest) -> list[str]:
        """Keeps the newest of a pattern; another number for the same pattern takes the place of the first.

        Raises:
            ResourceLimitError: :data:`PINS_MAX` paths are pinned already.
        """
        with self._lock:
            others = [each for each in self._rules if each.pattern != rule.pattern]
            if len(others) == len(self._rules):
                self._check_room(rule.pattern)
            return self._replace(self._paths, sorted([*others, rule], key=lambda each: each.pattern))

    def keep(self, kept: Sequence[tuple[str, Newest]], decided: int) -> None:
        """What the rules mean now.

        Args:
            kept: every path with the rule that keeps it.
            decided: uploads that had become cached before that was looked at.
        """
        with self._lock:
            before, self._kept, self._decided = self._kept, list(kept), decided
            if before != self._kept:
                self._write(self._paths, self._rules)
            self._tell()

    def remove(self, path: str) -> list[str]:
        """Takes exactly that pin or pattern away.

        Raises:
            NotFoundError: that path is not pinned itself.
        """
        path = check_tree_path(path)
        with self._lock:
            rules = [rule for rule in self._rules if rule.pattern != path]
            if path not in self._paths and len(rules) == len(self._rules):
                above = next((pin for pin in self._paths if path.startswith(pin.rstrip("/") + "/")), None)
                reason = f"the pin is on {above}" if above else "it is not pinned"
                advice = f"`penstock unpin {above}`" if above else "`penstock status` shows the pins"
                raise NotFoundError(f"unpin {path}", reason, advice)
            return self._replace([pin for pin in self._paths if pin != path], rules)

    def _check_room(self, path: str) -> None:
        if len(self._paths) + len(self._rules) >= PINS_MAX:
            raise ResourceLimitError(f"pin {path}", f"{PINS_MAX} paths are pinned already", "pin their parents")

    def _replace(self, paths: list[str], rules: list[Newest]) -> list[str]:
        self._write(paths, rules)
        self._paths, self._rules = paths, rules
        self._kept = [(path, rule) for path, rule in self._kept if rule in rules]
        self._tell()
        return list(paths)

    def _write(self, paths: list[str], rules: list[Newest]) -> None:
        newest = [self._document(rule) for rule in rules]
        document = {"format": FORMAT, "paths": paths, **({"newest": newest} if newest else {})}
        try:
            write_atomically(self._file, json.dumps(document))
        except OSError as error:
            raise DiskError(f"save {self._file}", str(error.strerror), "free space, or fix the disk") from None

    def _document(self, rule: Newest) -> dict[str, Any]:
        kept = [path for path, known in self._kept if known == rule]
        return {"pattern": rule.pattern, "keep": rule.keep, "kept": kept}

    def _tell(self) -> None:
        if not self._rules:
            self._apply(list(self._paths))
            return
        listed = self._decided is not None
        kept = [(path, f"it is one of the newest {rule.keep} of {rule.pattern}", listed) for path, rule in self._kept]
        self._apply(list(self._paths), kept, self._decided or 0)
