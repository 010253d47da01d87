"""Mounting a peer: started in the foreground, waited for, bounded in time, and taken away whatever happens."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from benchmarks.measure import GaveUpError

CREDIBLE_S = 3600
"""How long a peer believes names and sizes: as long as the attachments that it is compared with."""
READY_LIMIT_S = 120.0
"""For copying data in and for mounting."""
WORK_LIMIT_S = 60.0
"""For one piece of work: some would take minutes. Whoever takes longer is ended, and the results say so."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Place:
    """What a peer is given.

    Attributes:
        endpoint: of the remote, ``http://host:port``; it takes requests without a signature.
        bucket: what to show.
        directory: an empty one of its own, for cache, database and log.
        target: the empty directory to mount on.
    """

    endpoint: str
    bucket: str
    directory: Path
    target: Path


def _nothing(_: Place) -> dict[str, str]:
    return {}


def _no_commands(_: Place) -> list[list[str]]:
    return []


@dataclass(frozen=True)
class Peer:
    """A program that mounts a bucket.

    Attributes:
        name: as in the tables.
        program: what is looked for on PATH.
        version: arguments that make it say its version first.
        options: its settings, for people.
        command: mounts in the foreground until it is ended.
        environment: beside PATH and HOME, which is all it has.
        prepare: commands that run to their end before.
    """

    name: str
    program: str
    version: Sequence[str]
    options: str
    command: Callable[[Place], list[str]]
    environment: Callable[[Place], Mapping[str, str]] = _nothing
    prepare: Callable[[Place], list[list[str]]] = _no_commands

    @property
    def found(self) -> bool:
        """Whether its program is on this machine."""
        return shutil.which(self.program) is not None

    def version_text(self) -> str:
        """What it says of its version, in one line."""
        command = [self.program, *self.version]
        said = subprocess.run(command, capture_output=True, text=True, timeout=30)
        return next(iter((said.stdout or said.stderr).splitlines()), "unknown")


class Mount:
    """A mounted peer, or why there is none.

    Attributes:
        peer: which.
        path: where its files are.
        processes: whose processor time is its own.
        failure: why it is not mounted; nothing when it is.
    """

    def __init__(self, peer: Peer, place: Place, limits_s: tuple[float, float] = (READY_LIMIT_S, WORK_LIMIT_S)) -> None:
        self.peer = peer
        self.path = place.target
        self.processes: dict[str, int] = {}
        self.failure = ""
        self._place = place
        self._ready_limit_s, self._work_limit_s = limits_s
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Mounts; a peer that cannot says why in ``failure``, in every row."""
        place, deadline = self._place, time.monotonic() + self._ready_limit_s
        environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(place.directory)}
        environment |= self.peer.environment(place)
        log = place.directory / "log"
        try:
            with log.open("ab") as output:
                for command in self.peer.prepare(place):
                    left_s = deadline - time.monotonic()
                    subprocess.run(command, env=environment, stdout=output, stderr=output, timeout=left_s, check=True)
                self._process = subprocess.Popen(
                    self.peer.command(place), env=environment, stdout=output, stderr=output, start_new_session=True
                )
            while not is_mounted(self.path):
                if self._process.poll() is not None:
                    raise GaveUpError(f"it ended with exit code {self._process.returncode} instead of mounting")
                if time.monotonic() > deadline:
                    raise GaveUpError(f"it has not mounted in {self._ready_limit_s:g} s")
                time.sleep(0.02)
            self.processes = {"peer": self._process.pid}
        except subprocess.TimeoutExpired:
            self.failure = f"it was not ready in {self._ready_limit_s:g} s"
        except (OSError, subprocess.CalledProcessError, GaveUpError) as error:
            said = log.read_text(errors="replace").splitlines()[-1:] if log.exists() else []
            self.failure = ": ".join([str(error), *said])

    def bounded(self, work: Callable[[], Result]) -> Callable[[], Result]:
        """Work on its files that ends in time: the peer is killed when it does not.

        Raises:
            GaveUpError: by the work, when it took too long or an operation failed.
        """

        late = f"it took longer than {self._work_limit_s:g} s"

        def end() -> None:
            self.failure = late
            self._kill()

        def run() -> Result:
            if self.failure:
                raise GaveUpError(self.failure)
            timer = threading.Timer(self._work_limit_s, end)
            timer.start()
            try:
                return work()
            except OSError as error:
                # Killed: its files are errors.
                raise GaveUpError(late if self.failure == late else str(error)) from error
            finally:
                timer.cancel()

        return run

    def stop(self) -> None:
        """Takes the mount away and ends its processes, in order if they can, else by force."""
        if is_mounted(self.path):
            subprocess.run(["fusermount3", "-u", str(self.path)], capture_output=True, timeout=30)
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                self._process.terminate()
                self._process.wait(timeout=10)
            self._kill()
            self._process.wait(timeout=30)
        if is_mounted(self.path):
            subprocess.run(["umount", "-l", str(self.path)], capture_output=True, timeout=30)
        shutil.rmtree(self._place.directory, ignore_errors=True)

    def _kill(self) -> None:
        # The group: some peers serve from a process that the first one watches.
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)


@contextmanager
def mounted(peer: Peer, place: Place) -> Iterator[Mount]:
    """A peer over a bucket, taken away at the end."""
    place.directory.mkdir()
    place.target.mkdir()
    mount = Mount(peer, place)
    try:
        mount.start()
        yield mount
    finally:
        mount.stop()


def is_mounted(target: Path) -> bool:
    """Whether something is mounted there; asks the kernel's table, for a dead mount answers nobody."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return any(line.split(" ")[1] == str(target).replace(" ", "\\040") for line in lines)
