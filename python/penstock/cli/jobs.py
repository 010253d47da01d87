"""``preload``, ``evict``, ``verify`` and ``job …``: long work, watched and steered."""

from typing import Annotated, Any

import typer

from penstock.cli import output
from penstock.cli.examples import examples
from penstock.cli.group import command_group
from penstock.cli.options import AsJson, TreePath

JobId = Annotated[str, typer.Argument(metavar="ID", help="As `penstock job ls` shows it.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Stay until it has ended.")]


def register(app: typer.Typer) -> None:
    """Adds the commands of this module."""
    app.command(
        epilog=examples(
            "penstock preload /data/train --wait",
            "penstock preload /data --max-rate 200MB",
            "penstock preload /data --wait --json | tail -1",
        )
    )(preload)
    app.command(epilog=examples("penstock evict /data/old", "penstock evict /data --no-wait"))(evict)
    app.command(epilog=examples("penstock verify /data", "penstock verify /data --no-wait"))(verify)
    group = command_group(
        "job", "See and steer jobs.", "penstock job ls", "penstock job show 3", "penstock job retry 3 --wait"
    )
    group.command(epilog=examples("penstock job ls", "penstock job ls --json"))(ls)
    group.command(epilog=examples("penstock job show 3", "penstock job show 3 --json"))(show)
    group.command(epilog=examples("penstock job wait 3", "penstock job wait 3 --json"))(wait)
    group.command(epilog=examples("penstock job cancel 3"))(cancel)
    group.command(epilog=examples("penstock job retry 3", "penstock job retry 3 --wait"))(retry)
    app.add_typer(group)


def preload(
    path: TreePath,
    wait: Wait = False,
    max_rate: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Bytes per second on average, as in 200MB.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Bring a path into the cache, as a job.

    The job survives restarts. Foreground reads go first. Files that are cached already cost next to nothing.
    """
    _submit("preload", path, wait=wait, as_json=as_json, max_rate=max_rate)


def evict(path: TreePath, wait: Wait = True, as_json: AsJson = False) -> None:
    """Drop what is cached of a path.

    Open files go on; nothing in the source changes.
    """
    _submit("evict", path, wait=wait, as_json=as_json)


def verify(path: TreePath, wait: Wait = True, as_json: AsJson = False) -> None:
    """Check what is cached of a path.

    Every cached page is compared with its checksum; bad ones are fetched again.
    """
    _submit("verify", path, wait=wait, as_json=as_json)


def ls(as_json: AsJson = False) -> None:
    """List jobs, oldest first."""
    from penstock.cli import connection
    from penstock.units import format_size

    known = connection.control().jobs()
    if as_json:
        output.print_json(known)
        return
    rows = [
        (
            job["id"],
            job["kind"],
            job["path"],
            job["state"],
            _percent(job),
            f"{job['done_files']:,}",
            format_size(job["done_bytes"]),
            f"{job['failed_files']:,}",
            output.moment(job["created"]),
        )
        for job in known
    ]
    columns = ["ID", "KIND", "PATH", "STATE", "DONE", "FILES", "SIZE", "FAILED", "CREATED"]
    output.table(columns, rows, right=["ID", "DONE", "FILES", "SIZE", "FAILED"])


def show(job_id: JobId, as_json: AsJson = False) -> None:
    """Show one job.

    Totals, rate, time left, failures with their reasons.
    """
    from penstock.cli import connection

    job = connection.control().job(job_id)
    if as_json:
        output.print_json(job)
        return
    for name, text in _rows(job):
        output.say(f"{output.styled(name.ljust(10), 'bold')} {text}")
    for failure in job["failures"]:
        output.say(f"{output.styled('failed'.ljust(10), 'red')} {failure['reason']} [{failure['code']}]")


def wait(job_id: JobId, as_json: AsJson = False) -> None:
    """Stay until a job has ended.

    Shows a progress bar on a terminal, JSON lines elsewhere. Fails when the job did.
    """
    from penstock.cli.progress import follow

    follow(job_id, as_json=as_json)


def cancel(job_id: JobId) -> None:
    """End a job.

    Batches under way are finished first; what is done stays done.
    """
    from penstock.cli import connection

    control = connection.control()
    before = control.job(job_id)
    if before["finished"] is not None:
        output.say(f"job {job_id} had ended before: {before['state']}")
        return
    job = control.cancel_job(job_id)
    output.say(f"job {job_id} {'is being cancelled' if job['finished'] is None else job['state']}")


def retry(job_id: JobId, wait: Wait = False, as_json: AsJson = False) -> None:
    """Do what failed again.

    The failed files of an ended job, and what it did not reach.
    """
    from penstock.cli import connection

    job = connection.control().retry_job(job_id)
    _submitted(job, wait=wait, as_json=as_json)


def _submit(kind: str, path: str, *, wait: bool, as_json: bool, max_rate: str | None = None) -> None:
    from penstock.cli import connection
    from penstock.cli.paths import tree_path
    from penstock.errors import InvalidInputError
    from penstock.units import parse_size

    max_bytes_per_s = None if max_rate is None else parse_size(max_rate)
    if max_bytes_per_s == 0:
        raise InvalidInputError(
            f"read --max-rate {max_rate!r}", "at that rate it never ends", "leave it out for no limit"
        )
    options = {"max_bytes_per_s": max_bytes_per_s}
    path = tree_path(path)
    job = connection.control().submit_job(kind, path, options)
    _submitted(job, wait=wait, as_json=as_json)


def _submitted(job: dict[str, Any], *, wait: bool, as_json: bool) -> None:
    if wait:
        from penstock.cli.progress import follow

        follow(job["id"], as_json=as_json)
    elif as_json:
        output.print_json(job)
    else:
        output.say(f"job {job['id']}: {job['kind']} {job['path']} ({job['state']}); `penstock job wait {job['id']}`")


def _percent(job: dict[str, Any]) -> str:
    if job["state"] == "finished":
        return "100 %"
    if not job["total_known"]:
        return "-"
    whole = job["total_bytes"] or job["total_files"]
    done = job["done_bytes"] if job["total_bytes"] else job["done_files"]
    return f"{min(100, 100 * done // whole) if whole else 0} %"


def _result(name: str, amount: int) -> tuple[str, str]:
    """One line for what a job counts, such as ``fetched_bytes`` or ``bad_pages``."""
    from penstock.units import format_size

    what, _, unit = name.rpartition("_")
    return (what, format_size(amount)) if unit == "bytes" else (what or name, f"{amount:,}" + f" {unit}" * bool(what))


def _rows(job: dict[str, Any]) -> list[tuple[str, str]]:
    from penstock.units import format_duration, format_rate, format_size

    known = "" if job["total_known"] else " so far"
    rows = [
        ("job", f"{job['id']}: {job['kind']} {job['path']}"),
        ("state", job["state"] + (" (cancel requested)" if job["cancel_requested"] and not job["finished"] else "")),
        ("files", f"{job['done_files']:,} of {job['total_files']:,}{known}"),
        ("size", f"{format_size(job['done_bytes'])} of {format_size(job['total_bytes'])}{known}"),
        ("failures", f"{job['failed_files']:,}"),
        ("created", output.moment(job["created"])),
    ]
    rows += [_result(name, amount) for name, amount in job["results"].items()]
    if job["state"] == "running":
        rows.append(("rate", f"{format_rate(job['rate_bytes_per_s'])}, {job['rate_files_per_s']:.0f} files/s"))
        rows.append(("left", "-" if job["eta_s"] is None else format_duration(job["eta_s"])))
    if job["finished"]:
        rows.append(("ended", f"{output.moment(job['finished'])}, after {format_duration(job['busy_s'])} of work"))
    if job["error"]:
        rows.append(("error", f"{job['error']['message']} [{job['error']['code']}]"))
    return rows
