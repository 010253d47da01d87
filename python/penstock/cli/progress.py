"""Follows a job: a live bar on a terminal, JSON lines elsewhere; then one line about how it ended."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

import typer

from penstock.cli import connection, output
from penstock.units import format_count, format_duration, format_rate, format_size

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["follow", "summary"]

WAIT_S = 20.0
LINE_INTERVAL_S = 1.0
FAILURES_SHOWN = 5
ENDED = ("finished", "failed", "cancelled")

_LINE_KEYS = (
    *("id", "kind", "path", "state", "done_files", "done_bytes", "failed_files"),
    *("total_files", "total_bytes", "total_known", "results"),
    *("rate_bytes_per_s", "rate_files_per_s", "eta_s", "error"),
)
_PAST = {"preload": "preloaded", "evict": "evicted", "verify": "verified"}


def follow(job_id: str, *, as_json: bool) -> None:
    """Shows a job until it has ended.

    Raises:
        typer.Exit: with 1, when the job failed or was cancelled.
    """
    lines = as_json or not sys.stdout.isatty()
    try:
        job = _lines(job_id) if lines else _bar(job_id)
    except KeyboardInterrupt:
        output.warn(f"the job goes on; `penstock job wait {job_id}` or `penstock job cancel {job_id}`")
        raise typer.Exit(output.EXIT_INTERRUPTED) from None
    if not lines:
        output.say(summary(job))
    if job["error"]:
        output.warn(
            f"{output.styled('error:', 'red', stream=sys.stderr)} {job['error']['message']} [{job['error']['code']}]"
        )
    for failure in job["failures"][:FAILURES_SHOWN]:
        output.warn(f"{output.styled('failed:', 'red', stream=sys.stderr)} {failure['reason']} [{failure['code']}]")
    if job["failed_files"] > FAILURES_SHOWN:
        output.warn(
            f"{format_count(job['failed_files'], 'file')} failed; `penstock job show {job_id}` has the reasons, "
            f"`penstock job retry {job_id}` does them again"
        )
    if job["kind"] == "preload":
        _warn_of_small_cache(job)
    if job["state"] != "finished":
        raise typer.Exit(output.EXIT_FAILED)


def _warn_of_small_cache(job: dict[str, Any]) -> None:
    """A preload of more than the cache holds ends well, and yet not all of it is there afterwards."""
    room = sum(tier["size_bytes"] for tier in connection.control().status()["cache"].get("tiers", []))
    if job["done_bytes"] > room:
        output.warn(
            f"note: {job['path']} holds {format_size(job['total_bytes'])} and the cache {format_size(room)}: not all "
            "of it can stay; `penstock down`, then `penstock up --set cache.size=…`"
        )


def summary(job: dict[str, Any]) -> str:
    """One line about an ended job."""
    elapsed = job["busy_s"]
    verb = _PAST[job["kind"]] if job["state"] == "finished" else f"{job['kind']} {job['state']}:"
    done = f"{format_count(job['done_files'], 'file')}, {format_size(job['done_bytes'])}"
    text = f"{verb} {done} in {format_duration(elapsed)}"
    results = job["results"]
    if "fetched_bytes" in results:
        fetched = results["fetched_bytes"]
        rate = f" at {format_rate(fetched / elapsed)}" if elapsed > 0 and fetched else ""
        text += f"; {format_size(fetched)} fetched{rate}"
    if "freed_bytes" in results:
        text += f"; {format_size(results['freed_bytes'])} freed"
    if "pages" in results:
        text += f"; {results['pages']:,} pages checked, {results['bad_pages']:,} bad, "
        text += f"{results['repaired_pages']:,} repaired"
    return text + (f"; {job['failed_files']:,} failed" if job["failed_files"] else "")


def _updates(job_id: str) -> Iterator[dict[str, Any]]:
    """The job as it is, then every time it changes, until it has ended."""
    control = connection.control()
    job = control.job(job_id)
    while True:
        yield job
        if job["state"] in ENDED:
            return
        job = control.job(job_id, wait_s=WAIT_S, revision=job["revision"])


def _lines(job_id: str) -> dict[str, Any]:
    job: dict[str, Any] = {}
    told_at = 0.0
    for job in _updates(job_id):
        now = time.monotonic()
        if job["state"] in ENDED or now - told_at >= LINE_INTERVAL_S:
            told_at = now
            _line(job)
    return job


def _line(job: dict[str, Any]) -> None:
    print(json.dumps({key: job[key] for key in _LINE_KEYS}), flush=True)


def _bar(job_id: str) -> dict[str, Any]:
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[facts]}"),
    )
    job: dict[str, Any] = {}
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task("", total=None, facts="")
        for job in _updates(job_id):
            by_bytes = job["kind"] == "preload" and job["total_bytes"]
            done = job["done_bytes"] if by_bytes else job["done_files"] + job["failed_files"]
            total = job["total_bytes"] if by_bytes else job["total_files"]
            progress.update(
                task,
                description=f"{job['kind']} {job['path']}",
                completed=done,
                total=total if job["total_known"] else None,
                facts=_facts(job),
            )
    return job


def _facts(job: dict[str, Any]) -> str:
    more = "" if job["total_known"] else "+"
    text = f"{job['done_files']:,}/{job['total_files']:,}{more} files  {format_size(job['done_bytes'])}"
    if job["rate_bytes_per_s"]:
        text += f"  {format_rate(job['rate_bytes_per_s'])}"
    if job["eta_s"] is not None and job["state"] == "running":
        text += f"  {format_duration(job['eta_s'])} left"
    return text + (f"  {job['failed_files']:,} failed" if job["failed_files"] else "")
