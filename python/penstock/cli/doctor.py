"""``doctor``: what a new user trips over, each with the next command."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from penstock.cli import output
from penstock.cli.examples import examples
from penstock.cli.options import AsJson

if TYPE_CHECKING:
    from penstock.cli.checks import Finding

_MARKS = {"ok": ("ok", "green"), "warning": ("warning", "yellow"), "failure": ("FAILURE", "red")}


def register(app: typer.Typer) -> None:
    """Adds the command of this module."""
    app.command(epilog=examples("penstock doctor", "penstock doctor --json"))(doctor)


def doctor(as_json: AsJson = False) -> None:
    """Look for what is wrong, and say what to do.

    Looks at kernel, FUSE, file limits, home, configuration, cache disk, node, version, and at every attached source:
    answer, credentials, clock, throughput. Only looks, but for a test file on the cache disk.

    Fails when a finding is a failure; warnings are only told.
    """
    from penstock.cli.checks import worst

    findings = []
    for finding in _findings():
        findings.append(finding)
        if not as_json:
            _show(finding)
    if as_json:
        output.print_json([finding._asdict() for finding in findings])
    if worst(findings) == "failure":
        raise typer.Exit(output.EXIT_FAILED)


def _findings() -> Iterator["Finding"]:
    from penstock.cli import connection
    from penstock.cli.checks import Finding, Level, disk, machine, node, sources
    from penstock.errors import PenstockError
    from penstock.home import locate

    try:
        home = locate()
    except PenstockError as error:
        yield from machine.check(None)
        yield Finding("home", Level.FAILURE, str(error), "unset PENSTOCK_HOME")
        return
    pid = connection.running_pid()
    yield from machine.check(pid)
    try:
        control = connection.control(start=False)
        status = None if pid is None else control.status()
        tiers = status["cache"].get("tiers", []) if status else []
        stage = Path(status["stage"]["directory"]) if status else None
        floors = {Path(tier["directory"]): int(tier["floor_bytes"]) for tier in tiers}
        yield from disk.check(home, Path.cwd(), floors, stage)
        if status is None:
            yield node.not_running()
            return
        yield from node.check(status, connection.version())
        yield from sources.check(connection.client(start=False), control.attachments(), control.probe)
    except PenstockError as error:
        yield Finding("node", Level.FAILURE, str(error), "penstock down && penstock up")


def _show(finding: "Finding") -> None:
    mark, style = _MARKS[finding.level]
    output.say(f"{output.styled(mark.ljust(8), style)} {finding.subject}: {finding.text}")
    if finding.next and finding.level != "ok":
        output.say(f"{'':8} → {finding.next}")
