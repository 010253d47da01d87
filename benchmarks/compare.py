"""The same work in several places: mounts of ours, the local file system, what peers mount."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.measure import GaveUpError, Side, Step, take_turns

if TYPE_CHECKING:
    from benchmarks.peers.mounting import Mount


@dataclass(frozen=True)
class Spot:
    """One place.

    Attributes:
        name: as in the tables.
        path: the directory where the files are.
        processes: whose processor time belongs to it, by what it is called.
        mount: of the peer whose place it is, if it is one's.
    """

    name: str
    path: Path
    processes: Mapping[str, int] = field(default_factory=dict)
    mount: Mount | None = None

    def side(self, how: str) -> Side:
        """What is measured here, to be filled."""
        return Side(self.name, how, failure=self.mount.failure if self.mount else "")

    def step(
        self,
        side: Side,
        work: Callable[[Path], object],
        prepare: Callable[[], object] = lambda: None,
        expected: object = None,
    ) -> Step:
        """One turn here: ``work`` is given the directory and has to return ``expected``, where that says something."""

        def check(result: object) -> None:
            if expected not in (None, result):
                wrong = f"{self.name}: {result} where {expected} was expected"
                raise GaveUpError(wrong) if self.mount else AssertionError(wrong)

        def here() -> object:
            return work(self.path)

        bounded = self.mount.bounded(here) if self.mount else here
        return Step(side, bounded, prepare=prepare, check=check, processes=self.processes)


def peer_spots(mounts: Sequence[Mount]) -> list[Spot]:
    """Places of peers, those that could not mount included: their rows say why."""
    return [Spot(mount.peer.name, mount.path, mount.processes, mount) for mount in mounts]


@dataclass(frozen=True)
class Work:
    """What is done in every place, told in words, too."""

    how: str
    do: Callable[[Path], object]
    expected: object
    prepare: Callable[[], object] = lambda: None


def compare(spots: Sequence[Spot], work: Work, repeats: int) -> list[Side]:
    """Does the same everywhere, in turns; one side a place, in the order of the places."""
    sides = [spot.side(work.how) for spot in spots]
    steps = [spot.step(side, work.do, work.prepare, work.expected) for spot, side in zip(spots, sides, strict=True)]
    take_turns(steps, repeats, {})
    return sides
