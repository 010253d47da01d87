"""``up``, ``down``, ``status``: the node of this machine and home."""

import os
import sys
from typing import Annotated, Any

import typer

from penstock.cli import output
from penstock.cli.examples import examples
from penstock.cli.options import AsJson

STOP_TIMEOUT_S = 60.0

LEAST_BYTES = 64 << 10
"""A page: where not even one fits above the floor, nothing is cached."""


def register(app: typer.Typer) -> None:
    """Adds the commands of this module."""
    app.command(epilog=examples("penstock up", "penstock up --set cache.size=200GiB", "penstock up --foreground"))(up)
    app.command(epilog=examples("penstock down"))(down)
    app.command(epilog=examples("penstock status", "penstock status --json"))(status)


def up(
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Stay here, log to standard error: for containers.")
    ] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a configuration key for this run.")
    ] = None,
) -> None:
    """Start the node of this machine.

    Nothing happens when it runs already.
    A node that was started without --foreground leaves by itself when nobody used it for node.idle_timeout, nothing is
    mounted and every source has what was written. What was mounted is mounted again, and uploads go on.
    """
    from penstock.cli import connection

    if foreground:
        arguments = [sys.executable, "-P", "-m", "penstock.server", "--foreground", "--project", os.getcwd()]  # noqa: PTH109
        for setting in settings or []:
            arguments += ["--set", setting]
        sys.stdout.flush()
        os.execv(sys.executable, arguments)  # noqa: S606 - becomes the node, no shell is involved
    running = connection.running_pid()
    if running is not None:
        _refuse_settings(settings or [])
        output.say(f"node runs already (pid {running})")
        return
    connection.start(settings or [])
    known = connection.control(start=False).status()
    output.say(f"node started (pid {known['pid']}, home {known['home']})")
    for tier in known["cache"].get("tiers", []):
        if reason := not_caching(tier):
            output.warn(f"note: {tier['directory']} takes nothing, reads go uncached: {reason}")


def _refuse_settings(settings: list[str]) -> None:
    """A node that runs takes no settings: says so rather than leaving it at what it has."""
    from pathlib import Path

    from penstock import config
    from penstock.errors import BusyError
    from penstock.home import locate

    if settings:
        config.load(locate(), flags=settings, directory=Path.cwd())
        raise BusyError("set " + ", ".join(settings), "the node runs already", "`penstock down` first")


def down() -> None:
    """Stop the node of this machine.

    Requests under way finish; jobs go on when the next node starts. Attachments, pins and everything cached stay.
    Mounts are taken away, also from who uses them, and come back when the next node starts. What was written and is
    not in its source yet is told, stays on this machine, and is uploaded by the next node.
    """
    from penstock.cli import backlog, connection
    from penstock.errors import PenstockError

    pid = connection.running_pid()
    if pid is None:
        output.say("no node runs")
        return
    control = connection.control(start=False)
    try:
        left = backlog.left_behind(control.status()["stage"])
    except PenstockError as error:
        # A node that cannot tell is stopped all the same.
        left = f"what is not in its source yet could not be told: {error.reason}"
    process = connection.exit_of(pid)
    control.shutdown()
    connection.wait_until_stopped(STOP_TIMEOUT_S)
    connection.wait_for_exit(process)
    output.say(f"node stopped (pid {pid})")
    if left is not None:
        output.warn(left)


def status(as_json: AsJson = False) -> None:
    """Show what the node does.

    Cache, stage, sources, jobs, memory. Fails when no node runs.
    """
    from penstock.cli import backlog, connection

    known = connection.control(start=False).status()
    if as_json:
        output.print_json(known)
        return
    for name, text in _rows(known):
        output.say(f"{output.styled(name.ljust(12), 'bold')} {text}")
    for problem in (*known["problems"], *backlog.warnings(known["stage"]), *backlog.conflicts(known["stage"])):
        output.say(f"{output.styled('problem'.ljust(12), 'red')} {problem}")
    _print_attachments(known["attachments"])


def _rows(known: dict[str, Any]) -> list[tuple[str, str]]:
    from penstock.cli import backlog
    from penstock.units import format_duration, format_size

    memory, jobs = known["memory"], known["jobs"]
    ratio = "-" if known["hit_ratio"] is None else f"{known['hit_ratio']:.0%}"
    cached, fetched = format_size(known["bytes_from_cache"]), format_size(known["bytes_from_source"])
    used, budget = format_size(memory["used_bytes"]), format_size(memory["budget_bytes"])
    rows = [
        ("node", f"pid {known['pid']}, version {known['version']}, up {format_duration(known['uptime_s'])}"),
        ("home", _home(known)),
        ("reads", f"{cached} from cache, {fetched} from sources, hit ratio {ratio}"),
        ("requests", f"{known['in_flight']} under way at sources, {known['clients']} clients connected"),
        ("memory", f"{format_size(memory['resident_bytes'])} resident, {used} of {budget} budget in use"),
    ]
    rows += [("cache", _tier(tier)) for tier in known["cache"].get("tiers", [])]
    stage = known["stage"]
    used, size = format_size(stage["used_bytes"]), format_size(stage["size_bytes"])
    pressure = backlog.pressure(stage)
    rows.append(("stage", f"{backlog.summary(stage)}; {pressure}{used} of {size} in {stage['directory']}"))
    rows.append(("mounts", _mounts(known["mounts"])))
    rows.append(("jobs", f"{jobs['running']} running, {jobs['queued']} waiting"))
    newest = [f"newest {each['keep']} of {each['pattern']}" for each in known["kept_newest"]]
    rows.append(("pins", ", ".join([*known["pins"], *newest]) or "none"))
    if known["metrics_port"]:
        rows.append(("metrics", f"http://127.0.0.1:{known['metrics_port']}/metrics"))
    idle = known["idle_timeout_s"]
    stays = not idle or known["mounts"] or known["stage"]["files"]
    rows.append(("leaves", "when told to" if stays else f"after {format_duration(idle)} without use"))
    return rows


def _home(known: dict[str, Any]) -> str:
    from pathlib import Path

    run = Path(known["control_socket"]).parent
    return known["home"] if run.is_relative_to(known["home"]) else f"{known['home']} (sockets in {run})"


def _tier(tier: dict[str, Any]) -> str:
    from penstock.units import format_size

    text = f"{format_size(tier['used_bytes'])} of {format_size(tier['size_bytes'])} in {tier['directory']}"
    if reason := not_caching(tier):
        text += output.styled(f"  NOT CACHING: {reason}", "red")
    return text


def not_caching(tier: dict[str, Any]) -> str | None:
    """Why nothing new gets into a tier, where that is so."""
    from penstock.units import format_size

    if not tier.get("healthy", True):
        return str(tier.get("reason"))
    free, floor = tier["free_bytes"], tier["floor_bytes"]
    # What is cached there makes room before the floor stops anything.
    if floor and free + tier["used_bytes"] < floor + LEAST_BYTES:
        return f"{format_size(free)} free, cache.free_space_floor leaves {format_size(floor)} to others"
    return None


def _mounts(mounts: list[dict[str, Any]]) -> str:
    if not mounts:
        return "none"
    missing = sum(each["state"] != "mounted" for each in mounts)
    targets = ", ".join(each["target"] for each in mounts)
    return f"{len(mounts)} ({targets})" + (f", {missing} of them not mounted now" if missing else "")


def _print_attachments(attachments: list[dict[str, Any]]) -> None:
    if not attachments:
        output.say(f"{output.styled('attached'.ljust(12), 'bold')} nothing yet; `penstock attach s3://bucket /data`")
    for each in attachments:
        health = "" if each["healthy"] else output.styled(f"  UNHEALTHY: {each['reason']}", "red")
        output.say(f"{output.styled('attached'.ljust(12), 'bold')} {each['path']} ← {each['url']}{health}")
