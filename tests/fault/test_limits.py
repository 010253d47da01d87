"""Few descriptors, little memory: back-pressure and clear errors, everything right, no crash."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fault import oracle
from fault.lake import MIB, attached
from penstock.errors import PenstockError, ResourceLimitError

if TYPE_CHECKING:
    from fault.store import Store

NOFILE = 256
FILES = 400


def descriptors(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def test_a_node_with_256_descriptors_serves_hundreds_of_files_and_says_when_it_cannot_lend_more(
    machine: Any, store: Store
) -> None:
    for number in range(FILES):
        store.put(f"{number}", oracle.content(number, 1, 0, 5000))
    store.put("large", oracle.content(FILES, 1, 0, 30 * MIB))
    limited = f'ulimit -n {NOFILE}; exec "$@"'
    command = ["sh", "-c", limited, "sh", sys.executable, "-m", "penstock.cli", "up"]
    subprocess.run(command, check=True, env=machine.environment, timeout=60, capture_output=True)
    with attached(machine, store) as lake:
        pid = machine.pid()
        assert f"{NOFILE}" in Path(f"/proc/{pid}/limits").read_text().split("Max open files")[1].splitlines()[0]
        paths = [f"/data/{number}" for number in range(FILES)]
        for number, view in enumerate(lake.client.read_many(paths)):
            oracle.check(number, 1, 0, bytes(view))

        def read(number: int) -> bytes:
            with lake.client.open(paths[number]) as file:
                return bytes(file.read())

        with ThreadPoolExecutor(16) as pool:
            for number, found in enumerate(pool.map(read, range(FILES))):
                assert len(found) == 5000
                oracle.check(number, 1, 0, found)
        held, refusals = [], []
        for path in paths:
            try:
                held.append(lake.client.open(path))
            except PenstockError as error:
                refusals.append(error)
        for number, file in enumerate(held[:50]):
            oracle.check(number, 1, 0, file.read())
        assert len(held) + len(refusals) == FILES
        for refusal in refusals:
            assert isinstance(refusal, ResourceLimitError), repr(refusal)
            assert refusal.advice, str(refusal)
        with contextlib.suppress(ResourceLimitError):
            assert machine.control().status()["pid"] == pid
        print(f"{len(held)} files held, {len(refusals)} refused, {descriptors(pid)} descriptors")
        for file in held:
            file.close()
        with lake.client.open("/data/large") as file:
            oracle.check(FILES, 1, 0, file.read())
        for number, view in enumerate(lake.client.read_many(paths)):
            oracle.check(number, 1, 0, bytes(view))
        assert machine.pid() == pid
        machine.until(lambda: lake.metric("leases") == 0)
        assert machine.json("status")["pid"] == pid
        assert descriptors(pid) < NOFILE


READ_LARGE = """
import sys
sys.path[:0] = sys.argv[3:]
import penstock
from fault import oracle
client = penstock.connect(sys.argv[1], start=False)
number, size = int(sys.argv[2].rsplit("/", 1)[1]), 24 << 20
with client.open(sys.argv[2]) as file:
    buffer = bytearray(1 << 20)
    for start in range(0, size, len(buffer)):
        assert file.readinto(buffer) == len(buffer)
        oracle.check(number, 1, start, buffer)
for start in range(0, size, 6 << 20):
    [view] = client.read_ranges(sys.argv[2], [(start, start + (6 << 20))])
    oracle.check(number, 1, start, bytes(view))
"""


def test_with_the_least_memory_many_readers_wait_for_each_other_and_all_is_right(machine: Any, store: Store) -> None:
    for number in range(12):
        store.put(f"{number}", oracle.content(number, 1, 0, 24 * MIB))
    for number in range(200):
        store.put(f"small/{number}", oracle.content(number, 1, 0, 400_000))
    # A cache that holds next to nothing: whatever is read stays in memory until it is delivered.
    with attached(machine, store, "memory.budget=16MiB", "cache.size=8MiB", "deadlines.foreground=100s") as lake:
        roots = [each for each in sys.path if each.endswith("tests")] or ["tests"]
        readers = [
            machine.spawn(sys.executable, "-c", READ_LARGE, str(machine.home.name), f"/data/{number}", *roots)
            for number in range(12)
        ]
        most = 0
        paths = [f"/data/small/{number}" for number in range(200)]
        while any(reader.poll() is None for reader in readers):
            for number, view in enumerate(lake.client.read_many(paths[:20])):
                oracle.check(number, 1, 0, bytes(view))
            status = machine.control().status()
            most = max(most, status["memory"]["used_bytes"])
            assert status["cache"]["tiers"][0]["used_bytes"] <= 8 * MIB
        for reader in readers:
            _, said = reader.communicate()
            assert reader.returncode == 0, said
        # 200 × 400 kB at once are more than five budgets.
        for number, view in enumerate(lake.client.read_many(paths)):
            oracle.check(number, 1, 0, bytes(view))
        assert 0 < most <= 16 * MIB, "the budget was used and kept"
        machine.until(lambda: lake.metric("leases") == 0)
