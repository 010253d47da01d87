"""Telling what was measured: a table for people, a document for programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from penstock.demo import scene as stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from penstock.demo.measurements import Measurement

__all__ = ["document", "show"]

_GROUPS = {
    "small": f"{stage.SMALL_FILES} files of {stage.SMALL_BYTES // 1024} KiB",
    "large": f"one file of {stage.LARGE_BYTES >> 20} MiB",
    "table": "one Parquet file through fsspec",
}
SIMULATED = (
    f"{stage.FIRST_BYTE_MS:.0f} ms to the first byte, {stage.CONNECTION_BYTES_PER_S // 1_000_000} MB/s per connection, "
    f"{stage.TOTAL_BYTES_PER_S // 1_000_000} MB/s in all"
)
_NO_TABLE = "With pyarrow or pandas it also reads a table through fsspec: pip install 'penstock[pandas]'."
_NEXT = """\
[bold]Next[/bold]
  penstock attach s3://BUCKET/PREFIX /data     your own bucket, read-only
  penstock mount /mnt/lake                     every program reads it, as files
  penstock preload /data --wait                fetch it before you need it
  penstock doctor                              what could slow this machine down
  [dim]and in Python:[/dim]
  client = penstock.connect(); client.open("/data/…"); client.read_many(paths)"""


def document(
    rows: Sequence[Measurement], requests: dict[str, int], seconds: float, no_mount: str = ""
) -> dict[str, Any]:
    """The numbers, for programs; ``no_mount`` is why there are none of a mount."""
    return {
        "simulated": {
            "first_byte_ms": stage.FIRST_BYTE_MS,
            "connection_bytes_per_s": stage.CONNECTION_BYTES_PER_S,
            "total_bytes_per_s": stage.TOTAL_BYTES_PER_S,
        },
        "measurements": [asdict(row) | {"bytes_per_s": row.size / row.seconds} | _ratios(row, rows) for row in rows],
        "store_requests": requests,
        "no_mount": no_mount or None,
        "seconds": seconds,
    }


def show(console: Console, rows: Sequence[Measurement], seconds: float, no_mount: str = "") -> None:
    """Prints the table, what it means and what to try next; ``no_mount`` is why it shows no mount."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title="The same bytes, with and without Penstock", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for name in ("time", "files/s", "MB/s", "vs 1", "vs 32"):
        table.add_column(name, justify="right", no_wrap=True)
    for group, title in _GROUPS.items():
        members = [row for row in rows if row.group == group]
        if not members:
            continue
        table.add_row(f"[bold]{title}[/bold]")
        for row in members:
            table.add_row(*_cells(row, rows), style=None if row.ours else "dim", end_section=row is members[-1])
    console.print()
    console.print(table)
    console.print("vs: how many times faster than the same bytes by plain GETs over 1 or 32 connections.")
    console.print(f"The store is simulated: {SIMULATED}.")
    if no_mount:
        console.print(f"Not shown through a mount: {no_mount}.", markup=False)
    if not any(row.group == "table" for row in rows):
        console.print(_NO_TABLE, markup=False)
    console.print(f"Every byte was checked. All of it took {seconds:.0f} s; nothing of it is left on this machine.")
    console.print()
    console.print(_NEXT)


def _cells(row: Measurement, rows: Sequence[Measurement]) -> list[str]:
    ratios = _ratios(row, rows)
    return [
        f"  {'Penstock: ' if row.ours else ''}{row.title}",
        _duration(row.seconds),
        f"{row.files / row.seconds:,.0f}" if row.files > 1 else "",
        f"{row.size / row.seconds / 1e6:,.0f}",
        *(_times(ratios[name]) if name in ratios else "" for name in ("times_plain_1", "times_plain_32")),
    ]


def _ratios(row: Measurement, rows: Sequence[Measurement]) -> dict[str, float]:
    """How many times faster the row is than the baselines of its group."""
    plain = {other.name: other.seconds for other in rows if other.group == row.group and not other.ours}
    return {f"times_{name}": seconds / row.seconds for name, seconds in plain.items()} if row.ours else {}


def _times(ratio: float) -> str:
    return f"{ratio:,.0f}×" if ratio >= 10 else f"{ratio:.2g}×"


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"
