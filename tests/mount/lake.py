"""A machine whose tree is mounted, with a simulated remote behind it and ways to put things there."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import penstock
from penstock.policies.mounts import lies_in

if TYPE_CHECKING:
    from fault.store import Store
    from integration.conftest import Machine
    from integration.test_writing import Sea

KIB = 1 << 10
MIB = 1 << 20
NO_FLOOR = "cache.free_space_floor=0"
PROGRAM_LIMIT_S = 80.0
NOBODYS_PREFIX = f"penstock-nobody-{os.getpid()}-"
"""Of directories that every user reaches, which those that tests are given are not."""

WAYS = ["open", "no-open"]
"""How an attachment may be read through a mount."""

Files = Mapping[str, bytes]


class MountedLake:
    """The tree of one machine, mounted at ``root``. What is shown comes from a bucket: of a simulated remote, or of a
    store that misbehaves when it is told to.
    """

    def __init__(self, machine: Machine, *settings: str, store: Store | None = None) -> None:
        self.machine = machine
        # Whatever else fills the disk of this machine, the cache may use it.
        machine("up", *(part for setting in (NO_FLOOR, *settings) for part in ("--set", setting)))
        self.client: Any = penstock.connect(machine.home.name, start=False)
        self.root = machine.target()
        machine("mount", str(self.root))
        self.store = store
        self.remote: Any = None if store else machine.remote({})
        self.endpoint: str = (store or self.remote).endpoint
        self._numbers = itertools.count()
        self._shown: dict[str, Path] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def put(self, key: str, content: bytes) -> None:
        """A new version of an object of the bucket."""
        if self.store:
            self.store.put(key, content)
        else:
            self.remote.put_object("bucket", key, content)

    def attach(self, prefix: str, path: str, freshness: str = "1h", way: str = "auto", writable: bool = False) -> Path:
        """Shows what begins with ``prefix/``, read in that way; where in the mount."""
        options = {"endpoint": self.endpoint, "credentials": "anonymous", "probe": False, "writable": writable}
        self.client.attach(f"s3://bucket/{prefix}", path, freshness=freshness, way=way, **options)
        return self.root / path.lstrip("/")

    def show(self, files: Files, way: str = "open") -> Path:
        """A new directory of the mount with these files, which are read in that way.

        Its parent holds nothing else: who lists several directories of one has all of that one listed, and what is put
        there afterwards is not seen for as long as that is believed.
        """
        if way not in self._shown:
            self._shown[way] = self.attach(f"shown-{way}", f"/shown-{way}", way=way)
        shown = self._shown[way] / str(next(self._numbers)) / "it"
        for path, content in files.items():
            self.put(f"{shown.relative_to(self.root)}/{path}", content)
        return shown

    def tree_path(self, path: Path) -> str:
        """Where something of the mount is in the tree."""
        return f"/{path.relative_to(self.root)}"

    def metrics(self) -> dict[str, int]:
        """Counters of the node."""
        found: dict[str, int] = self.machine.control().status()["metrics"]
        return found

    def way(self, path: str) -> str:
        """How the kernel gets at the bytes below a path."""
        [mounted] = self.machine.control().mounts()
        ways = {each["path"]: each["way"] for each in mounted["kernel_mounts"] if lies_in(path, each["path"])}
        return str(ways[max(ways, key=len)])


@contextlib.contextmanager
def mounted_sea(machine: Any, sea: Sea, objects: Files) -> Iterator[Any]:
    """A machine with objects at ``/runs``, which may be written, mounted at ``mount``; its ``client``, too."""
    for name, content in objects.items():
        sea.put(f"runs/{name}", content)
    machine.client = penstock.connect(machine.home.name)
    machine.client.attach("s3://bucket/runs", "/runs", writable=True, endpoint=sea.endpoint, credentials="anonymous")
    machine.mount = machine.target()
    machine("mount", str(machine.mount), "--path", "/runs")
    yield machine
    machine.client.close()


def files_below(directory: Path) -> dict[str, bytes]:
    """Content by relative path."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def digests_below(directory: Path) -> dict[str, str]:
    """Checksum by relative path."""
    return {path: digest(content) for path, content in files_below(directory).items()}


def digests_of(files: Files) -> dict[str, str]:
    """Checksums of what was put."""
    return {path: digest(content) for path, content in files.items()}


def run(*command: str | Path, code: int = 0, cwd: Path | None = None, **environment: str) -> bytes:
    """What a program prints; fails with all that it said unless it ends with ``code``."""
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        timeout=PROGRAM_LIMIT_S,
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C.UTF-8", **environment},
    )
    assert done.returncode == code, f"{command}: {done.returncode}\n{done.stdout!r}\n{done.stderr!r}"
    return done.stdout
