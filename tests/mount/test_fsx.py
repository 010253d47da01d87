"""Very many operations on one file, at random, each checked against what it should hold: with mappings, holes
and cuts, and with what the client and the source have in the end.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from mount.test_writing import runs as runs

OPERATIONS, OPERATIONS_IN_SOAK = 100_000, 300_000
LIMIT_S = 360
CONFIGURATION = """
flen = 262144
nomsyncafterwrite = true

[opsize]
max = 65536

[weights]
close_open = 0.02
mapread = 1
mapwrite = 1
read = 1
write = 1
truncate = 0.5
fsync = 0.01
fdatasync = 0.01
posix_fallocate = 0.2
punch_hole = 0.3
sendfile = 0.3
posix_fadvise = 0.2
copy_file_range = 0.2
"""


pytestmark = pytest.mark.skipif(shutil.which("fsx") is None, reason="needs fsx")


def exercise(runs: Any, directory: Path, operations: int, limit_s: float | None) -> None:
    seed = os.environ.get("TEST_SEED", str(time.time_ns() % 1_000_000))
    print(f"seed {seed}: set TEST_SEED to see it again")
    configuration, file = directory / "fsx.toml", runs.mount / "file"
    configuration.write_text(CONFIGURATION)
    command = ["fsx", "-N", str(operations), "-S", seed, "-f", str(configuration), "-P", str(directory), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    content = file.read_bytes()
    with runs.client.open("/runs/file") as stream:
        assert stream.read() == content
    runs.client.persist("/runs/file", timeout=60)
    assert (runs.root / "file").read_bytes() == content


@pytest.mark.timeout(LIMIT_S + 40)
def test_a_file_holds_what_was_written_after_any_operations(runs: Any, tmp_path: Path) -> None:
    exercise(runs, tmp_path, OPERATIONS, LIMIT_S)


@pytest.mark.soak
def test_a_file_holds_what_was_written_after_very_many_operations(runs: Any, tmp_path: Path) -> None:
    exercise(runs, tmp_path, OPERATIONS_IN_SOAK, None)
