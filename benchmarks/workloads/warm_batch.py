"""``read_many`` of 1,000 cached files of 112 KiB, every byte touched, against ``open().read()`` of local files."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

from benchmarks.baselines import local_read
from benchmarks.lab import BUCKET, SMALL_BYTES, Lab, attach, node_pid
from benchmarks.measure import Side, Step, Verdict, take_turns
from benchmarks.store import FREE, content

WHAT = "warm-batch"
FILES = 1000


def run(lab: Lab) -> list[Verdict]:
    keys = [f"small/{at:06}.bin" for at in range(FILES)]
    paths = [f"/data/{key}" for key in keys]
    directory = lab.path("local")
    directory.mkdir()
    files = []
    for seed, _ in enumerate(keys):
        files.append(str(directory / f"{seed:06}.bin"))
        (directory / f"{seed:06}.bin").write_bytes(content(SMALL_BYTES, seed))
    touch, how = toucher()
    with lab.store(FREE) as store, lab.node() as client:
        for seed, key in enumerate(keys):
            store.put(BUCKET, key, SMALL_BYTES, seed)
        attach(client, store, "/data")
        views = client.read_many(paths)
        assert [zlib.crc32(view) for view in views] == [zlib.crc32(data) for data in local_read.small(files)]
        del views
        ours = Side("penstock", f"client.read_many(1,000 paths), all cached; {how}")
        disk = Side("local files", f"{local_read.HOW_SMALL}; {how}")
        steps = [
            Step(ours, lambda: touch(client.read_many(paths))),
            Step(disk, lambda: touch(local_read.small(files))),
        ]
        take_turns(steps, lab.repeats * 5, {"node": node_pid(client)})
    for side in (ours, disk):
        side.figures["files/s"] = FILES / side.median_s
    bar = "read_many of 1,000 cached 112 KiB files, every byte touched, time ÷ open().read() of local files"
    return [Verdict(bar, ours.median_s / disk.median_s, "≤", 1.0, sides=[ours, disk])]


def toucher() -> tuple[Callable[[Sequence[object]], int], str]:
    """Something that reads every byte at memory speed, the same for both sides."""
    try:
        import numpy
    except ImportError:
        return lambda contents: sum(zlib.crc32(part) for part in contents), "zlib.crc32 of each"  # type: ignore[arg-type]

    def touch(contents: Sequence[object]) -> int:
        return sum(int(numpy.frombuffer(part, dtype=numpy.uint64).max()) for part in contents)  # type: ignore[call-overload]

    return touch, "numpy maximum over each"
