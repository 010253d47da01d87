"""A mount of a user without privilege: the kernel keeps pages of its own of every file; nothing else is different."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fault import oracle
from integration.conftest import Machine
from mount.lake import KIB, MIB, NOBODYS_PREFIX, MountedLake, digest, digests_below, digests_of, run
from mount.test_race import race

DEVICE = Path("/dev/fuse")
NOBODY = 65534
CHECKED_READS = 6_000
LONGEST_S = 60.0

pytestmark = [
    pytest.mark.skipif(os.getuid() != 0, reason="needs to become another user"),
    pytest.mark.skipif(shutil.which("fusermount3") is None, reason="needs fusermount3"),
]


class NobodysMachine(Machine):
    """A machine whose user may look everywhere, as the interpreter may lie in root's home, and may mount nothing."""

    def __init__(self, directory: Path) -> None:
        os.chown(directory, NOBODY, NOBODY)
        super().__init__(directory)
        self.as_another = [
            *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
            *("--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search", "--bounding-set=+all"),
        ]

    def target(self, name: str = "mnt") -> Path:
        made = super().target(name)
        os.chown(made, NOBODY, NOBODY)
        return made


@pytest.fixture
def nobody() -> Iterator[Machine]:
    """In a directory that nobody reaches, with the device as distributions ship it: open to everybody."""
    before = stat.S_IMODE(DEVICE.stat().st_mode)
    directory = Path(tempfile.mkdtemp(prefix=NOBODYS_PREFIX))
    DEVICE.chmod(0o666)
    made = NobodysMachine(directory)
    try:
        yield made
    finally:
        made.close()
        DEVICE.chmod(before)
        shutil.rmtree(directory)


def test_a_tree_is_copied_and_what_was_read_once_is_not_asked_for_again(nobody: Machine) -> None:
    sizes = [0, 1, 4096, 65_537, 900 * KIB, MIB + 1, 5 * MIB + 17]
    files = {f"{size % 3}/{size}": oracle.content(size, 1, 0, size) for size in sizes}
    with MountedLake(nobody) as lake:
        shown = lake.show(files)
        assert lake.way("/") == "keep-cache"
        copy = nobody.target("copy")
        run(*nobody.as_another, "cp", "-r", shown, copy)
        assert digests_below(copy / shown.name) == digests_of(files)
        before = lake.metrics()
        command = [*nobody.as_another, "sh", "-c", 'cd "$1" && find . -type f -exec sha256sum {} +', "sh", str(shown)]
        told = dict(line.split("  ./")[::-1] for line in run(*command).decode().splitlines())
        assert told == {path: digest(content) for path, content in files.items()}
        after = lake.metrics()
        assert after["kernel_opens"] - before["kernel_opens"] == len(files)
        assert after["kernel_reads"] == before["kernel_reads"]
        assert after["source_read_requests"] == before["source_read_requests"]


@pytest.mark.timeout(240)
def test_readers_see_whole_versions_while_objects_are_overwritten(nobody: Machine) -> None:
    race(nobody, "0", "open", CHECKED_READS, LONGEST_S)
