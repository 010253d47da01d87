"""Writing through the client at ``local``: a large file, many small ones, and how soon the source has them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.baselines import local_read, local_write, raw_upload
from benchmarks.lab import BUCKET, SMALL_BYTES, Lab, attach, node_pid, source_bytes
from benchmarks.measure import Side, Step, Verdict, back_memory, take_turns
from benchmarks.store import SLOW, Store, content

if TYPE_CHECKING:
    from penstock.client import Client

WHAT = "write"
LARGE = 512 << 20
PIECE = 1 << 20
SMALL_FILES = 1000
THREADS = 16
HOW = "client.open(path, 'wb').write, close at local"


def run(lab: Lab) -> list[Verdict]:
    verdicts = []
    with lab.store(SLOW) as store, lab.node(cache__size="16GiB") as client:
        store.put(BUCKET, "there", 1, seed=1)
        attach(client, store, "/runs", writable=True)
        verdicts += _large(lab, client)
        verdicts += _until_stored(lab, client, store)
        for threads, bar in ((1, 1.3), (THREADS, 0.7)):
            verdicts.append(_small(lab, client, threads, bar))
    return verdicts


def pieces_of(body: bytes) -> list[memoryview]:
    view = memoryview(body)
    return [view[at : at + PIECE] for at in range(0, len(body), PIECE)]


def _write(client: Client, path: str, pieces: list[memoryview]) -> None:
    with client.open(path, "wb") as file:
        for piece in pieces:
            file.write(piece)


def _large(lab: Lab, client: Client) -> list[Verdict]:
    pieces, names = pieces_of(content(LARGE, 2)), numbered("large")
    ours = Side("penstock", f"{HOW}, 1 MiB at a time; uploaded to the slow store afterwards")
    disk = Side("local file system", f"{local_write.HOW}, 1 MiB at a time")

    def settle() -> None:
        client.persist("/runs")
        back_memory(lab.directory, 2 * LARGE)

    steps = [
        Step(ours, lambda: _write(client, f"/runs/{next(names)}", pieces), prepare=settle),
        # What was written before stays on both sides: memory that was just freed is much cheaper to write to.
        Step(disk, lambda: local_write.one(lab.path("large.bin"), pieces), prepare=settle),
    ]
    take_turns(steps, lab.repeats, {"node": node_pid(client)})
    for side in (ours, disk):
        side.figures["MB/s"] = LARGE / side.median_s / 1e6
    client.persist("/runs")
    bar = "512 MiB written and closed at local through the client ÷ local file system"
    return [Verdict(bar, disk.median_s / ours.median_s, "≥", 0.8, sides=[ours, disk])]


def _until_stored(lab: Lab, client: Client, store: Store) -> list[Verdict]:
    body, names = content(LARGE, 3), numbered("stored")
    pieces, buffer = pieces_of(body), memoryview(bytearray(PIECE))
    ours = Side("penstock", f"{HOW}, then client.persist: until the source has it")
    raw = Side("raw upload", raw_upload.HOW)
    back = Side("penstock, read back", "client.open().readinto of what was just written")
    local = Side("local file", local_read.HOW_LARGE)
    file = lab.path("back.bin")
    file.write_bytes(body)

    def until_stored() -> str:
        path = f"/runs/{next(names)}"
        _write(client, path, pieces)
        client.persist(path)
        return path

    def read_back(path: str) -> int:
        total = 0
        with client.open(path) as opened:
            while count := opened.readinto(buffer):
                total += count
        return total

    last: list[str] = []

    def settle() -> None:
        # Of what is written, and of what the store has of it.
        back_memory(lab.directory, 3 * LARGE)

    def check(total: object) -> None:
        assert total == LARGE, total

    steps = [
        Step(ours, until_stored, prepare=settle, check=lambda path: last.append(str(path))),
        Step(raw, lambda: raw_upload.run(store.endpoint, BUCKET, next(names), memoryview(body)), prepare=settle),
        Step(back, lambda: read_back(last[-1]), prepare=lambda: read_back(last[-1]), check=check),
        Step(local, lambda: local_read.large(file, buffer), check=check),
    ]
    before = source_bytes(client)
    take_turns(steps, lab.repeats, {"node": node_pid(client), "remote": store.pid})
    fetched = source_bytes(client) - before
    for side in (ours, raw, back, local):
        side.figures["MB/s"] = LARGE / side.median_s / 1e6
    bar = "512 MiB: from the first write until the source has it, time ÷ raw upload over 32 connections"
    return [
        Verdict(bar, ours.median_s / raw.median_s, "≤", 1.15, sides=[ours, raw]),
        Verdict(
            "reading back what was just written ÷ local file",
            local.median_s / back.median_s,
            "≥",
            0.95,
            "",
            [back, local],
        ),
        Verdict("bytes taken from the source to read back what was written", fetched, "≤", 0, " bytes"),
    ]


def _small(lab: Lab, client: Client, threads: int, bar: float) -> Verdict:
    body, names = content(SMALL_BYTES, 4), numbered(f"small-{threads}")
    pieces = [memoryview(body)]

    def everywhere(write: Any) -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(write, range(SMALL_FILES)))

    def through_client() -> None:
        directory = f"/runs/{next(names)}"
        everywhere(lambda number: _write(client, f"{directory}/{number}", pieces))

    def locally(directory: Path) -> None:
        everywhere(lambda number: local_write.one(directory / str(number), pieces))

    def new_directory() -> None:
        made.append(lab.path(f"small-{threads}"))
        made[-1].mkdir()

    made: list[Path] = []
    ours, disk = Side("penstock", HOW), Side("local file system", local_write.HOW)
    steps = [
        Step(ours, through_client, prepare=lambda: client.persist("/runs")),
        Step(disk, lambda: locally(made[-1]), prepare=new_directory),
    ]
    take_turns(steps, lab.repeats, {"node": node_pid(client)})
    for side in (ours, disk):
        side.figures["ms per file"] = side.median_s / SMALL_FILES * 1e3
    client.persist("/runs")
    how = "one thread" if threads == 1 else f"{threads} threads"
    what = (
        f"1,000 × 112 KiB created and closed at local, {how}, time ÷ local file system with fsync of file and directory"
    )
    return Verdict(what, ours.median_s / disk.median_s, "≤", bar, sides=[ours, disk])


def numbered(stem: str) -> Any:
    """Names that nobody had before."""
    return (f"{stem}-{number}" for number in range(1 << 30))
