"""The simulated remote in a process of its own, so that its processor time is told apart.

``python -m benchmarks.store ROOT FIRST_BYTE_MS CONNECTION_BYTES_PER_S TOTAL_BYTES_PER_S`` serves until its standard
input ends; each line there is a request in JSON, answered by a line.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SLOW = (30.0, 60_000_000, 400_000_000)
"""The *slow store*: 30 ms to the first byte, 60 MB/s per connection, 400 MB/s in all."""
FREE = (0.0, 0, 0)
"""No delay and no limit."""
LINK_BYTES_PER_S = SLOW[2]
REPOSITORY = Path(__file__).parent.parent


class Store:
    """A running remote."""

    def __init__(self, root: Path, shape: tuple[float, int, int]) -> None:
        command = [sys.executable, "-m", "benchmarks.store", str(root), *map(str, shape)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=REPOSITORY)
        self.pid = self._process.pid
        self.endpoint: str = self._read()["endpoint"]

    def counters(self) -> dict[str, int]:
        """What was asked of it and what it moved since its start."""
        return self._call({"call": "counters"})

    def put(self, bucket: str, key: str, size: int, seed: int) -> None:
        """Stores ``size`` bytes that depend on ``seed``."""
        self._call({"call": "put", "bucket": bucket, "key": key, "size": size, "seed": seed})

    def put_many(self, bucket: str, pattern: str, count: int, per_directory: int) -> None:
        """Stores ``count`` tiny objects that share their content, named by ``pattern``."""
        call = {"call": "put_many", "bucket": bucket, "pattern": pattern}
        self._call(call | {"count": count, "per_directory": per_directory})

    def stop(self) -> None:
        """Ends the process."""
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait(timeout=30)

    def _call(self, request: dict[str, Any]) -> Any:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()["answer"]

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the store ended with exit code {self._process.wait()}")
        return json.loads(line)


def content(size: int, seed: int) -> bytes:
    """Bytes that differ from seed to seed and cannot be compressed; made at memory speed."""
    import random

    block = random.Random(seed).randbytes(min(size, 1 << 20))
    return (block * (size // max(1, len(block)) + 1))[:size]


def serve(arguments: list[str]) -> None:
    from penstock._native import Remote

    root, first_byte_ms, connection_rate, total_rate = arguments
    remote = Remote(root, float(first_byte_ms), int(connection_rate), int(total_rate))
    print(json.dumps({"endpoint": remote.endpoint}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer: object = None
        if request["call"] == "counters":
            answer = remote.counters()
        elif request["call"] == "put":
            remote.put_object(request["bucket"], request["key"], content(request["size"], request["seed"]))
        elif request["call"] == "put_many":
            per_directory, pattern = request["per_directory"], request["pattern"]
            keys = [pattern.format(at // per_directory, at % per_directory) for at in range(request["count"])]
            remote.put_synthetic(request["bucket"], keys, b"tiny")
        print(json.dumps({"answer": answer}), flush=True)
    remote.stop()


if __name__ == "__main__":
    serve(sys.argv[1:])
