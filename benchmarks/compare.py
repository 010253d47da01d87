"""The same work in several places: mounts of ours, the local file system, what peers mount."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.measure import GaveUpError, Side, Step, take_turns

if TYPE_CHECKING:
    from benchmarks.peers.mounting import Mount

READS = "reads answered by the node"
"""As in the tables: of all repeats together."""


@dataclass(frozen=True)
class Work:
    """What is done in every place.

    Attributes:
        how: the same in words.
        do: is timed; given the directory of the place.
        expected: what that has to return, where it says something.
        prepare: is done just before, and not timed.
    """

    how: str
    do: Callable[[Path], object]
    expected: object = None
    prepare: Callable[[Path], object] = lambda _: None

    def hot(self) -> Work:
        """The same on what was read just before: a kernel may let go of pages that nobody needs for a while."""
        return replace(self, prepare=self.do, how=f"{self.how}; done once just before")


@dataclass(frozen=True)
class Spot:
    """One place.

    Attributes:
        name: as in the tables.
        path: the directory where the files are.
        processes: whose processor time belongs to it, by what it is called.
        mount: of the peer whose place it is, if it is one's.
        reads: how often the kernel has asked for content there so far, where that is counted.
    """

    name: str
    path: Path
    processes: Mapping[str, int] = field(default_factory=dict)
    mount: Mount | None = None
    reads: Callable[[], int] | None = None

    def side(self, how: str) -> Side:
        """What is measured here, to be filled."""
        return Side(self.name, how, failure=self.mount.failure if self.mount else "")

    def step(self, side: Side, work: Work) -> Step:
        """One turn here."""
        counted = 0

        def prepare() -> None:
            nonlocal counted
            self._bounded(work.prepare)()
            counted = self.reads() if self.reads else 0

        def check(result: object) -> None:
            if self.reads:
                asked = side.figures.get(READS, 0) + self.reads() - counted
                side.figures[READS] = asked
            if work.expected not in (None, result):
                wrong = f"{self.name}: {result} where {work.expected} was expected"
                raise GaveUpError(wrong) if self.mount else AssertionError(wrong)

        return Step(side, self._bounded(work.do), prepare=prepare, check=check, processes=self.processes)

    def _bounded(self, work: Callable[[Path], object]) -> Callable[[], object]:
        def here() -> object:
            return work(self.path)

        return self.mount.bounded(here) if self.mount else here


def peer_spots(mounts: Sequence[Mount]) -> list[Spot]:
    """Places of peers, those that could not mount included: their rows say why."""
    return [Spot(mount.peer.name, mount.path, mount.processes, mount) for mount in mounts]


def compare(spots: Sequence[Spot], work: Work, repeats: int) -> list[Side]:
    """Does the same everywhere, in turns; one side a place, in the order of the places."""
    sides = [spot.side(work.how) for spot in spots]
    steps = [spot.step(side, work) for spot, side in zip(spots, sides, strict=True)]
    take_turns(steps, repeats, {})
    return sides
