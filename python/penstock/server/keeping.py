"""Keeping the newest of what is written cached: looks, after each change, which those are, and tells the core."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from penstock.errors import NotDirectoryError, NotFoundError, PenstockError
from penstock.policies.newest import File, Newest, newest

if TYPE_CHECKING:
    from penstock.server.pins import PinBook

__all__ = ["Keeper", "Walker"]

LOOK_EVERY_S = 1.0
"""How often it is looked whether anything was written. What was uploaded meanwhile stays cached until then."""

AGAIN_AFTER_S = 5.0
"""How long after a look that failed the next one is."""

PAGE_FILES = 8192

FILES_MAX = 200_000
"""Files that one rule looks at, at most."""

_log = logging.getLogger(__name__)


class Walker(Protocol):
    """A connection to the tree, used by one thread."""

    def walk_page(self, path: str, after: str | None, limit: int) -> tuple[Sequence[_Entry], str | None]:
        """Some entries below a path and where to go on."""

    def close(self) -> None:
        """Ends the connection."""


class _Entry(Protocol):
    @property
    def name(self) -> str:
        """Path below the walked directory."""

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""

    @property
    def modified_ms(self) -> int:
        """When it was changed last, milliseconds since the Unix epoch."""


class Keeper:
    """Decides again what the newest are, whenever something was written or a rule was changed.

    Args:
        pins: has the rules, and hears what they mean.
        written: changes acknowledged and files cached from uploads, since the node started.
        tree: makes a connection for one decision.
    """

    def __init__(
        self,
        pins: PinBook,
        written: Callable[[], tuple[int, int]],
        tree: Callable[[], Walker],
        every_s: float = LOOK_EVERY_S,
    ) -> None:
        self._pins, self._written, self._tree, self._every_s = pins, written, tree, every_s
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._decided: object = None
        self.problem: str | None = None

    def start(self) -> None:
        """Begins to look, where there are rules."""
        if self._thread is None and self._pins.rules():
            self._thread = threading.Thread(target=self._run, name="keep-newest", daemon=True)
            self._thread.start()

    def changed(self) -> None:
        """A rule was changed, or what is attached."""
        self._decided = None
        self.start()
        self._wake.set()

    def stop(self, timeout_s: float) -> None:
        """Looks no more."""
        self._stopped.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def decide(self) -> None:
        """Looks once, if anything has changed since the last time.

        Raises:
            PenstockError: the tree cannot be listed now; what was decided before stays.
        """
        rules, written = self._pins.rules(), self._written()
        state = (rules, written)
        if state == self._decided:
            return
        kept: list[tuple[str, Newest]] = []
        tree = self._tree()
        try:
            for rule in rules:
                kept += [(path, rule) for path in newest(rule, _files(tree, rule.base))]
        finally:
            tree.close()
        if self._pins.rules() == rules:
            self._pins.keep(kept, written[1])
            self._decided = state

    def _run(self) -> None:
        while not self._stopped.is_set():
            pause_s = self._every_s
            try:
                self.decide()
                self.problem = None
            except PenstockError as error:
                if self._stopped.is_set():
                    return
                self.problem, pause_s = f"what the newest are is not known: {error}", AGAIN_AFTER_S
                _log.warning("%s", error, extra={"code": error.code})
            self._wake.wait(pause_s)
            self._wake.clear()


def _files(tree: Walker, base: str) -> Iterator[File]:
    after: str | None = None
    above = "" if base == "/" else base
    looked = 0
    while True:
        try:
            entries, after = tree.walk_page(base, after, PAGE_FILES)
        except (NotFoundError, NotDirectoryError):
            return
        for entry in entries:
            if not entry.is_directory:
                yield File(f"{above}/{entry.name}", entry.modified_ms)
        looked += len(entries)
        if looked >= FILES_MAX:
            _log.warning("only the first %d files below %s are looked at for the newest", FILES_MAX, base)
            return
        if after is None:
            return
