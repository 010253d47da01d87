"""A machine whose tree is mounted, with a simulated remote behind it and ways to put things there."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import penstock

if TYPE_CHECKING:
    from integration.conftest import Machine

KIB = 1 << 10
MIB = 1 << 20
PROGRAM_LIMIT_S = 80.0

Files = Mapping[str, bytes]


class MountedLake:
    """The tree of one machine, mounted at ``root``. What is shown comes from the bucket of a simulated remote."""

    def __init__(self, machine: Machine, *settings: str, options: tuple[str, ...] = ()) -> None:
        self.machine = machine
        self.remote: Any = machine.remote({})
        machine("up", *(part for setting in settings for part in ("--set", setting)))
        self.client: Any = penstock.connect(machine.home.name, start=False)
        self.root = machine.target()
        machine("mount", str(self.root), *options)
        self._numbers = itertools.count()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def put(self, key: str, content: bytes) -> None:
        """A new version of an object of the bucket."""
        self.remote.put_object("bucket", key, content)

    def attach(self, prefix: str, path: str, freshness: str = "1h") -> Path:
        """Shows what begins with ``prefix/``; where in the mount."""
        url = f"s3://bucket/{prefix}"
        self.client.attach(
            url, path, endpoint=self.remote.endpoint, credentials="anonymous", freshness=freshness, probe=False
        )
        return self.root / path.lstrip("/")

    def show(self, files: Files) -> Path:
        """A new directory of the mount with these files."""
        name = str(next(self._numbers))
        for path, content in files.items():
            self.put(f"shown/{name}/{path}", content)
        if name == "0":
            self.attach("shown", "/shown")
        return self.root / "shown" / name

    def metrics(self) -> dict[str, int]:
        """Counters of the node."""
        found: dict[str, int] = self.machine.control().status()["metrics"]
        return found

    def ways(self) -> set[str]:
        """How the kernel gets at cached bytes."""
        return {each["way"] for mount in self.machine.control().mounts() for each in mount["kernel_mounts"]}


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
