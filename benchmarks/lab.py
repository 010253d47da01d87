"""What every workload needs: a throw-away home with its node, simulated remotes, files on the local disk."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from benchmarks.baselines import processes
from benchmarks.peers.mounting import Mount, Peer, Place, mounted
from benchmarks.store import Store
from penstock.client.control import Control
from penstock.demo.node import stop_node
from penstock.home import locate
from penstock.policies.attachments import request

if TYPE_CHECKING:
    from penstock.client import Client

_controls: WeakKeyDictionary[Client, Control] = WeakKeyDictionary()
_homes: WeakKeyDictionary[Client, Path] = WeakKeyDictionary()

SMALL_BYTES = 112 * 1024
BUCKET = "bench"


class Lab:
    """A scratch directory on the local disk, cleaned up at the end.

    Args:
        scratch: where to make it; a file system of the kind that caches live on.
        repeats: how often each side is measured.
        peers: who else is measured where the work is theirs, too.
    """

    def __init__(self, scratch: Path | None, repeats: int, peers: Sequence[Peer] = ()) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="penstock-bench-", dir=scratch))
        self.repeats = repeats
        self._peers = peers
        self._names = 0

    def path(self, name: str) -> Path:
        """A path in the scratch directory that nobody had before."""
        self._names += 1
        return self.directory / f"{self._names}-{name}"

    @contextmanager
    def store(self, shape: tuple[float, int, int]) -> Iterator[Store]:
        """A remote of its own, stopped at the end."""
        store = Store(self.path("store"), shape)
        try:
            yield store
        finally:
            store.stop()

    @contextmanager
    def node(self, **settings: str) -> Iterator[Client]:
        """A node with an empty home, stopped at the end. ``settings`` are ``PENSTOCK_*`` variables without prefix."""
        home = self.path("home")
        with node_at(home, **settings) as client:
            yield client
        shutil.rmtree(home, ignore_errors=True)

    @contextmanager
    def mount(self, client: Client, path: str, *, lazily: bool = False) -> Iterator[Path]:
        """A path of the tree as a mount, unmounted at the end; ``lazily`` also when something still uses it."""
        with self._mounted(client, "mount", "--path", path, lazily=lazily) as target:
            yield target

    @contextmanager
    def mount_snapshot(self, client: Client, name: str) -> Iterator[Path]:
        """A snapshot as a mount, unmounted at the end."""
        with self._mounted(client, "snapshot", "mount", name, lazily=False) as target:
            yield target

    @contextmanager
    def _mounted(self, client: Client, *command: str, lazily: bool) -> Iterator[Path]:
        target = self.path("mount")
        target.mkdir()
        penstock(client, *command, str(target))
        try:
            yield target
        finally:
            penstock(client, "umount", str(target), *(["--lazy"] if lazily else []))

    @contextmanager
    def peers(self, store: Store, bucket: str = BUCKET) -> Iterator[list[Mount]]:
        """A bucket mounted by every peer, each with an empty cache; unmounted at the end."""
        with ExitStack() as stack:
            mounts = []
            for peer in self._peers:
                place = Place(store.endpoint, bucket, self.path(f"{peer.program}-own"), self.path(peer.program))
                mounts.append(stack.enter_context(mounted(peer, place)))
            yield mounts

    def close(self) -> None:
        """Removes everything."""
        shutil.rmtree(self.directory, ignore_errors=True)


@contextmanager
def node_at(home: Path, **settings: str) -> Iterator[Client]:
    """A node of ``home``, started if it does not run, stopped at the end."""
    from penstock.client import connect

    variables = {f"PENSTOCK_{name.upper()}": value for name, value in settings.items()}
    with _environment(variables):
        client = connect(home)
    _controls[client] = Control(locate(home).control_socket)
    _homes[client] = home
    try:
        yield client
    finally:
        client.close()
        stop_node(home)


def running_at(home: Path) -> Client:
    """A client of the node that runs at ``home``."""
    from penstock.client import connect

    client = connect(home, start=False)
    _controls[client] = Control(locate(home).control_socket)
    return client


def up(home: Path) -> float:
    """Has ``penstock up`` start the node of ``home``; seconds until it is ready."""
    start = time.perf_counter()
    subprocess.run(
        [processes.PENSTOCK, "up"], check=True, stdout=subprocess.DEVNULL, env=os.environ | {"PENSTOCK_HOME": str(home)}
    )
    return time.perf_counter() - start


def kill(home: Path) -> None:
    """Ends the node that runs at ``home`` by SIGKILL."""
    client = running_at(home)
    pid = node_pid(client)
    client.close()
    os.kill(pid, signal.SIGKILL)
    while Path(f"/proc/{pid}").exists():
        time.sleep(0.01)


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def attach(client: Client, store: Store, path: str, bucket: str = BUCKET, **options: Any) -> None:
    """Attaches a bucket of a remote, without keys; facts are believed for the whole run."""
    reaching = {"endpoint": store.endpoint, "credentials": "anonymous", "freshness": "1h"}
    _controls[client].attach(request(f"s3://{bucket}/", path, **reaching, **options))


def penstock(client: Client, *arguments: str) -> None:
    """Runs a command for the node behind a client.

    Raises:
        RuntimeError: it failed; what it printed.
    """
    environment = os.environ | {"PENSTOCK_HOME": str(_homes[client])}
    command = [sys.executable, "-m", "penstock.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    if done.returncode:
        raise RuntimeError(f"penstock {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")


def home_of(client: Client) -> Path:
    """The home of the node behind a client."""
    return _homes[client]


def node_pid(client: Client) -> int:
    """Process of the node behind a client."""
    return int(_controls[client].status()["pid"])


def source_bytes(client: Client) -> int:
    """Bytes of content that the node has taken from sources so far."""
    return metric(client, "source_bytes")


def metric(client: Client, name: str) -> int:
    """One metric of the node."""
    return int(_controls[client].status()["metrics"][name])
