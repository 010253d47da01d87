"""What a node is in the middle of, and where it is to kill itself: the other side of ``crates/types/src/faults.rs``."""

from __future__ import annotations

from pathlib import Path

LINE_BYTES = 64


class Steps:
    """The files by which one home's node tells its steps and is given orders."""

    def __init__(self, directory: Path) -> None:
        self._steps, self._orders = directory / "steps", directory / "orders"
        self._orders.write_bytes(b"")
        self.environment = {"FAULTS_ON_PURPOSE": f"steps={self._steps} orders={self._orders}"}

    def counts(self) -> dict[str, tuple[int, int]]:
        """How often each step was begun and ended in this life of the node."""
        found = {}
        for line in self._steps.read_text().splitlines():
            name, begun, ended = line.split()
            found[name] = (int(begun), int(ended))
        return found

    def under_way(self) -> set[str]:
        """What was under way when the node went."""
        return {name for name, (begun, ended) in self.counts().items() if begun > ended}

    def kill_at(self, step: str, times: int, at_end: bool) -> None:
        """Has the node kill itself when it begins or ends a step so many times from now on."""
        begun, ended = self.counts()[step]
        self.order(f"{step} {ended + times} end" if at_end else f"{step} {begun + times} begin")

    def order(self, text: str) -> None:
        # In place and at once: the node reads it at every step.
        with self._orders.open("r+b", buffering=0) as file:
            file.write(text.ljust(LINE_BYTES - 1).encode() + b"\n")

    def go_on(self) -> None:
        """No order any more."""
        self.order("")
