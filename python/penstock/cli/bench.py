"""``bench``: a short, honest measurement of a path through the node of this machine."""

import itertools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli import output
from penstock.cli.examples import examples
from penstock.cli.options import AsJson

if TYPE_CHECKING:
    from penstock.client import Client

FILES_MAX = 2000
BYTES_MAX = 1 << 30
BUFFER_BYTES = 4 << 20
WARM_REPEATS = 3


def register(app: typer.Typer) -> None:
    """Adds the command of this module."""
    app.command(epilog=examples("penstock bench /data/train", "penstock bench --cold /data/large.bin --json"))(bench)


def bench(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A file or directory of the tree.")],
    cold: Annotated[
        bool, typer.Option("--cold", help="Evict what is measured first, so that it comes from the source.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Read a path again and again, and time it.

    At most 2,000 files and 1 GiB are read, one after another and then in one batch. Without --cold the first read
    is as cold as the cache happens to be; how much came from the source is printed beside it. `penstock demo`
    compares with plain downloads.
    """
    from penstock.cli import connection
    from penstock.cli.paths import tree_path

    path = tree_path(path)
    client, control = connection.client(), connection.control()
    files = _files(client, path)
    if cold:
        for file, _ in files:
            client.core.evict([file])
    measured = [
        _measure(control, "first read", files, lambda: _one_by_one(client, files)),
        _measure(control, "again", files, lambda: _one_by_one(client, files), WARM_REPEATS),
        _measure(control, "again, read_many", files, lambda: _in_batches(client, files), WARM_REPEATS),
    ]
    if as_json:
        output.print_json({"path": path, "files": len(files), "measurements": measured})
        return
    _show(path, len(files), measured)


def _files(client: "Client", path: str) -> list[tuple[str, int]]:
    from penstock.errors import NotFoundError

    entry = client.stat(path)
    if not entry.is_directory:
        return [(path, entry.size)]
    files: list[tuple[str, int]] = []
    total = 0
    for each in itertools.islice(client.walk(path), 10 * FILES_MAX):
        if each.is_directory:
            continue
        if len(files) >= FILES_MAX or (files and total + each.size > BYTES_MAX):
            break
        files.append((f"{path.rstrip('/')}/{each.name}", each.size))
        total += each.size
    if not files:
        raise NotFoundError(f"bench {path}", "there is no file below it", "give a path with files")
    return files


def _measure(
    control: Any, name: str, files: list[tuple[str, int]], work: Callable[[], int], repeats: int = 1
) -> dict[str, Any]:
    """Time and CPU of the fastest of some repeats, and what it took from the source."""
    best: dict[str, Any] = {}
    for _ in range(repeats):
        before = control.status()["bytes_from_source"]
        cpu, begun = time.process_time(), time.perf_counter()
        size = work()
        elapsed = time.perf_counter() - begun
        taken = {
            "name": name,
            "seconds": elapsed,
            "bytes": size,
            "bytes_per_s": size / elapsed,
            "files_per_s": len(files) / elapsed,
            "client_cpu_s": time.process_time() - cpu,
            "bytes_from_source": control.status()["bytes_from_source"] - before,
        }
        if not best or elapsed < best["seconds"]:
            best = taken
    return best


def _one_by_one(client: "Client", files: list[tuple[str, int]]) -> int:
    buffer = memoryview(bytearray(BUFFER_BYTES))
    total = 0
    for path, _ in files:
        with client.open(path) as stream:
            while size := stream.readinto(buffer):
                total += size
    return total


def _in_batches(client: "Client", files: list[tuple[str, int]]) -> int:
    from penstock.policies.preload import batches

    buffer = memoryview(bytearray(BUFFER_BYTES))
    total = 0
    for batch in batches(files):
        for content in client.read_many([path for path, _ in batch]):
            total += _taken(memoryview(content), buffer)
    return total


def _taken(content: memoryview, buffer: memoryview) -> int:
    """Copies a content as a reader into a buffer does: handed over, none of its bytes has been looked at."""
    for start in range(0, len(content), len(buffer)):
        piece = content[start : start + len(buffer)]
        buffer[: len(piece)] = piece
    return len(content)


def _show(path: str, count: int, measured: list[dict[str, Any]]) -> None:
    from penstock.units import format_count, format_duration, format_rate, format_size

    output.say(f"{path}: {format_count(count, 'file')}, {format_size(measured[0]['bytes'])}")
    columns = ["READ", "TIME", "RATE", "FILES/S", "FROM SOURCE", "CLIENT CPU"]
    rows = [
        (
            each["name"],
            format_duration(each["seconds"]),
            format_rate(each["bytes_per_s"]),
            f"{each['files_per_s']:,.0f}",
            format_size(each["bytes_from_source"]),
            format_duration(each["client_cpu_s"]),
        )
        for each in measured
    ]
    output.table(columns, rows, right=columns[1:])
