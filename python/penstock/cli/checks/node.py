"""The node: whether one runs, its version, what it complains about."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from penstock.cli import backlog
from penstock.cli.checks.finding import Finding, Level
from penstock.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["check", "not_running"]


def not_running() -> Finding:
    """No node is no fault: the first use starts one."""
    return Finding("node", Level.OK, "none runs; the first use starts one", "penstock up")


def check(status: dict[str, Any], client_version: str) -> Iterator[Finding]:
    """Everything about a running node."""
    yield Finding("node", Level.OK, f"pid {status['pid']}, up {format_duration(status['uptime_s'])}")
    yield version(status["version"], client_version)
    for problem in status["problems"]:
        yield Finding("node", Level.WARNING, problem, "penstock status")
    yield from mounts(status["mounts"])
    for tier in status["cache"].get("tiers", []):
        if not tier.get("healthy", True):
            text = f"{tier['directory']} takes nothing new: {tier.get('reason')}; reads go on uncached"
            full = "space" in str(tier.get("reason")).lower()
            yield Finding("cache", Level.FAILURE, text, f"df -h {tier['directory']}" if full else "sudo dmesg | tail")
    for text in backlog.warnings(status["stage"]):
        yield Finding("stage", Level.WARNING, text, "penstock status")
    for text in backlog.conflicts(status["stage"]):
        yield Finding("stage", Level.WARNING, text, "penstock conflicts ls")
    corrupt = status["metrics"].get("cache_corrupt_pages", 0)
    if corrupt:
        text = f"{corrupt} pages were damaged or could not be read, and were dropped: the disk may be failing"
        yield Finding("cache", Level.WARNING, text, "penstock verify /")


def mounts(known: list[dict[str, Any]]) -> Iterator[Finding]:
    """Whether every mount is there and answers; what failed is among the problems of the node."""
    for each in known:
        ways = sorted({kernel["way"] for kernel in each["kernel_mounts"] if kernel["way"]})
        if each["state"] == "mounted" and all(kernel["alive"] for kernel in each["kernel_mounts"]):
            yield Finding("mount", Level.OK, f"{each['path']} at {each['target']}, by {', '.join(ways)}")
        else:
            yield Finding("mount", Level.WARNING, f"{each['target']} shows nothing now", "penstock mounts")


def version(node: str, client: str) -> Finding:
    """Whether client and node are the same release."""
    if node == client:
        return Finding("version", Level.OK, f"client and node are {client}")
    text = f"the node is {node}, this client is {client}"
    return Finding("version", Level.WARNING, text, "penstock down && penstock up")
