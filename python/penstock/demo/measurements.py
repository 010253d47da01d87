"""What the demo measures, in the order in which it does: the same bytes with and without Penstock."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from penstock.demo import scene as stage
from penstock.demo.plain_gets import PART_BYTES
from penstock.errors import CorruptError

if TYPE_CHECKING:
    from penstock.demo.scene import Scene

__all__ = ["Measurement", "Plan", "plan"]

MANY_CONNECTIONS = 32
_BUFFER_BYTES = 1 << 20
_TABLE_ROWS = 1_000_000


@dataclass(frozen=True)
class Measurement:
    """One row: who read what, how, and how long it took.

    Attributes:
        group: ``small``, ``large`` or ``table``: rows of one group read the same bytes.
        name: stable, for programs.
        title: for people.
        how: what exactly was done.
        seconds: how long it took.
        files: how many files were read.
        size: how many bytes.
        ours: whether Penstock read them.
    """

    group: str
    name: str
    title: str
    how: str
    seconds: float
    files: int
    size: int
    ours: bool


@dataclass(frozen=True)
class Plan:
    """One measurement that can be made: ``work`` is timed, ``check`` of its result is not."""

    group: str
    name: str
    title: str
    how: str
    size: int
    work: Callable[[], Any]
    check: Callable[[Any], None]
    files: int = 1
    ours: bool = True

    def measure(self) -> Measurement:
        """Does it, checks what it read, and says how long it took."""
        start = time.perf_counter()
        result = self.work()
        seconds = time.perf_counter() - start
        self.check(result)
        return Measurement(self.group, self.name, self.title, self.how, seconds, self.files, self.size, self.ours)


def plan(scene: Scene) -> Iterator[Plan]:
    """Everything to measure, each made when its turn comes."""
    yield from _small(scene)
    yield from _small_mounted(scene)
    yield from _large(scene)
    yield from _table(scene)


def _small(scene: Scene) -> Iterator[Plan]:
    keys, client, plain = scene.keys, scene.client, scene.plain
    paths = [f"{stage.MOUNT}/{key}" for key in keys]
    facts: dict[str, Any] = {"group": "small", "files": len(keys), "size": len(keys) * stage.SMALL_BYTES}

    def check(contents: list[Any]) -> None:
        for key, content in zip(keys, contents, strict=True):
            scene.check(key, content)

    def epoch() -> list[bytes]:
        contents = []
        for path in paths:
            with client.open(path) as file:
                contents.append(file.read())
        return contents

    one, many = "plain GETs, 1 connection", f"plain GETs, {MANY_CONNECTIONS} connections"
    how = "http.client, kept alive, unsigned, into memory"
    work: Callable[[], Any] = lambda: plain.fetch_files(keys, 1)  # noqa: E731
    yield Plan(name="plain_1", title=one, how=how, work=work, check=check, ours=False, **facts)
    work = lambda: plain.fetch_files(keys, MANY_CONNECTIONS)  # noqa: E731
    yield Plan(name="plain_32", title=many, how=how, work=work, check=check, ours=False, **facts)
    how = "open, read, close: one after another, one thread"
    yield Plan(name="first_epoch", title="first epoch", how=how, work=epoch, check=check, **facts)
    yield Plan(name="second_epoch", title="second epoch", how=how, work=epoch, check=check, **facts)
    work = lambda: client.read_many(paths)  # noqa: E731
    how = f"one call for all {len(paths)} files"
    yield Plan(name="read_many", title="read_many, cached", how=how, work=work, check=check, **facts)
    client.evict(f"{stage.MOUNT}/train").wait()
    yield Plan(name="read_many_cold", title="read_many, cold", how=how, work=work, check=check, **facts)


def _small_mounted(scene: Scene) -> Iterator[Plan]:
    """The small files through the mount, as programs read them that know nothing of Penstock."""
    if scene.mounted is None:
        return
    directory, keys = scene.mounted, scene.keys
    facts: dict[str, Any] = {"group": "small", "files": len(keys), "size": len(keys) * stage.SMALL_BYTES}

    def check(contents: list[bytes]) -> None:
        for key, content in zip(keys, contents, strict=True):
            scene.check(key, content)

    def epoch() -> list[bytes]:
        return [(directory / key).read_bytes() for key in keys]

    scene.client.evict(f"{stage.MOUNT}/train").wait()
    how = "open, read, close through the mount: one after another, one thread"
    yield Plan(name="mount_cold", title="mount, first epoch", how=how, work=epoch, check=check, **facts)
    yield Plan(name="mount_warm", title="mount, second epoch", how=how, work=epoch, check=check, **facts)


def _large(scene: Scene) -> Iterator[Plan]:
    client, plain, size = scene.client, scene.plain, stage.LARGE_BYTES
    facts: dict[str, Any] = {"group": "large", "size": size}
    buffer = memoryview(bytearray(size))
    # Touched before the first measurement, so that none of them pays for the memory.
    for position in range(0, size, 4096):
        buffer[position] = 1

    def check(_: object) -> None:
        scene.check(stage.LARGE_KEY, buffer)
        buffer[:8] = bytes(8)

    def read() -> None:
        filled = 0
        with client.open(f"{stage.MOUNT}/{stage.LARGE_KEY}") as file:
            while count := file.readinto(buffer[filled : filled + _BUFFER_BYTES]):
                filled += count

    for connections in (1, MANY_CONNECTIONS):
        plural = "" if connections == 1 else "s"
        how = "one GET" if connections == 1 else f"ranges of {PART_BYTES >> 20} MiB"
        yield Plan(
            name=f"plain_{connections}",
            title=f"plain GET{plural}, {connections} connection{plural}",
            how=f"http.client, {how}, unsigned, into memory",
            work=partial(plain.fetch_ranges, stage.LARGE_KEY, size, buffer, connections),
            check=check,
            ours=False,
            **facts,
        )
    how = "one readinto loop, one thread"
    yield Plan(name="cold", title="cold", how=how, work=read, check=check, **facts)
    yield Plan(name="warm", title="warm", how=how, work=read, check=check, **facts)
    if scene.mounted is None:
        return
    path = scene.mounted / stage.LARGE_KEY

    def read_mounted() -> None:
        filled = 0
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer[filled : filled + _BUFFER_BYTES]):
                filled += count

    client.evict(f"{stage.MOUNT}/{stage.LARGE_KEY}").wait()
    how = "one readinto loop through the mount, one thread"
    yield Plan(name="mount_cold", title="mount, cold", how=how, work=read_mounted, check=check, **facts)
    yield Plan(name="mount_warm", title="mount, warm", how=how, work=read_mounted, check=check, **facts)


def _table(scene: Scene) -> Iterator[Plan]:
    """A Parquet file through fsspec, where pyarrow is installed; by pandas where that is too."""
    try:
        import pyarrow
        from pyarrow import compute, parquet
    except ImportError:
        return
    url = f"penstock://{stage.MOUNT}/{stage.TABLE_KEY}"
    try:
        import pandas
    except ImportError:
        import fsspec

        library, from_buffer = "pyarrow", parquet.read_table

        def from_url() -> Any:
            with fsspec.open(url) as file:
                return parquet.read_table(file)
    else:
        library, from_buffer = "pandas", pandas.read_parquet

        def from_url() -> Any:
            return pandas.read_parquet(url)

    fare, tip = (compute.random(_TABLE_ROWS, initializer=seed) for seed in (1, 2))
    columns = {"trip": pyarrow.array(range(_TABLE_ROWS)), "fare": fare, "tip": tip}
    content = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), content)
    scene.put(stage.TABLE_KEY, content.getvalue())
    facts: dict[str, Any] = {"group": "table", "size": len(content.getvalue())}

    def check(table: Any) -> None:
        if table.shape != (_TABLE_ROWS, len(columns)):
            raise CorruptError(f"read {url}", f"the table has the shape {table.shape}", "report this")

    def plain_read() -> Any:
        return from_buffer(io.BytesIO(scene.plain.fetch_files([stage.TABLE_KEY], 1)[0]))

    check(from_buffer(content))  # what the libraries load when first used is not for the first row to pay
    how = f"http.client into memory, then {library}"
    yield Plan(
        name="plain_1", title="plain GET, 1 connection", how=how, work=plain_read, check=check, ours=False, **facts
    )
    how = f"{library} opens {url}"
    yield Plan(name="cold", title=f"{library}, cold", how=how, work=from_url, check=check, **facts)
    yield Plan(name="warm", title=f"{library}, warm", how=how, work=from_url, check=check, **facts)
