"""``attach``, ``detach``, ``attachments``: which source is where in the tree."""

from typing import Annotated, Any

import typer

from penstock.cli import output
from penstock.cli.examples import examples
from penstock.cli.options import AsJson

_VirtualHost = Annotated[
    bool | None,
    typer.Option("--virtual-host/--path-style", help="Bucket in the host name or in the path; default by endpoint."),
]
_Posix = Annotated[
    bool,
    typer.Option("--posix", help="Listings show every file's mode, owner and time: one request per new version."),
]
_MEANING = {
    "local": "writable: a closed file is safe on this machine's disk at once, and follows to the source by itself",
    "source": "writable: a file is closed once the source has it",
}


def register(app: typer.Typer) -> None:
    """Adds the commands of this module."""
    app.command(
        epilog=examples(
            "penstock attach s3://bucket/prefix /data",
            "penstock attach s3://bucket /data --endpoint http://127.0.0.1:9000 --credentials env",
            "penstock attach s3://open-data /open --region eu-west-1 --credentials anonymous --freshness immutable",
            "penstock attach file:///mnt/nas/set /nas",
            "penstock attach s3://bucket/runs /runs --writable",
            "penstock attach s3://bucket/final /final --writable --durability source",
        )
    )(attach)
    app.command(epilog=examples("penstock detach /data", "penstock detach /data --lazy"))(detach)
    app.command(epilog=examples("penstock attachments", "penstock attachments --json"))(attachments)


def attach(
    url: Annotated[str, typer.Argument(metavar="URL", help="s3://bucket/prefix, file:///directory or memory://name.")],
    path: Annotated[str, typer.Argument(metavar="PATH", help="Where in the tree, as in /data.")],
    endpoint: Annotated[str | None, typer.Option(help="https://host[:port] of an S3 that is not AWS.")] = None,
    region: Annotated[str | None, typer.Option(help="Region of the bucket.")] = None,
    virtual_host: _VirtualHost = None,
    credentials: Annotated[
        str,
        typer.Option(help="A reference, never a secret: chain, env, anonymous, profile:NAME or file:PATH."),
    ] = "chain",
    freshness: Annotated[
        str | None,
        typer.Option(help="How long facts about the source are believed: 60s, 0 (ask at every open) or immutable."),
    ] = None,
    way: Annotated[
        str, typer.Option(help="How mounts read it: open, no-open (best for many small files) or auto.")
    ] = "auto",
    writable: Annotated[bool, typer.Option("--writable", help="Let files be written and removed there.")] = False,
    durability: Annotated[
        str | None,
        typer.Option(help="What a close of a written file means: local (this disk has it; default) or source."),
    ] = None,
    single_writer: Annotated[
        bool,
        typer.Option("--single-writer", help="Nobody else writes there: take a source that cannot tell conflicts."),
    ] = False,
    posix: _Posix = False,
    probe: Annotated[bool, typer.Option(help="Ask the source now whether this works.")] = True,
    as_json: AsJson = False,
) -> None:
    """Put a bucket or directory at a path of the tree.

    It stays until `penstock detach`, also over restarts. Credentials are looked up by the node, in the environment
    it was started with.

    What is --writable is written from Python, by fsspec URLs, by `penstock cp`, `mv`, `mkdir`, `touch` and `rm`, and by
    every program on a mount.

    Modes, owners and times that a mount gave to files are kept with their objects, and this home knows those that it
    gave or met. A listing tells none; with --posix each object is asked for its own, once for each version.
    """
    from penstock.cli import connection
    from penstock.policies.attachments import request

    body = request(
        url,
        path,
        endpoint=endpoint,
        region=region,
        virtual_host=virtual_host,
        credentials=credentials,
        freshness=freshness,
        way=way,
        writable=writable,
        durability=durability,
        single_writer=single_writer,
        posix=posix,
        probe=probe,
    )
    attached = connection.control().attach(body)
    if as_json:
        output.print_json(attached)
        return
    _tell(attached)
    if probe and attached["prefix"] and _is_empty(attached["path"]):
        output.warn(
            f"note: nothing is below {attached['prefix']} yet; if something should be, look for a slip, and if that "
            "is one object, attach what is above it"
        )


def _tell(attached: dict[str, Any]) -> None:
    latency = attached["latency_ms"]
    output.say(f"attached {attached['url']} at {attached['path']}" + (f" ({latency:.0f} ms)" if latency else ""))
    if attached["write"]:
        output.say(_MEANING[attached["write"]["durability"]])
    if attached["weak"]:
        output.warn("note: this source has only size and time to tell versions apart")


def _is_empty(path: str) -> bool:
    from penstock.cli import connection
    from penstock.errors import PenstockError

    try:
        return not connection.client().core.list_page(path, None, 1)[0]
    except PenstockError:
        return False  # whoever lists it is told


def detach(
    path: Annotated[str, typer.Argument(metavar="PATH", help="The path that was given to attach.")],
    lazy: Annotated[
        bool, typer.Option("--lazy", help="Also while a process uses it through a mount: open files go on.")
    ] = False,
) -> None:
    """Take an attachment out of the tree.

    Open files go on; what is cached stays until it is evicted, and what is in conflict until it is attached again and
    settled. Where a process uses it through a mount, this fails and names the process.
    """
    from penstock.cli import backlog, connection
    from penstock.cli.paths import tree_path

    path = tree_path(path)
    control = connection.control()
    left = backlog.unsettled(control.status()["stage"], path)
    control.detach(path, lazy=lazy)
    output.say(f"detached {path}")
    if left is not None:
        output.warn(left)


def attachments(as_json: AsJson = False) -> None:
    """Show what is attached and whether it answered last.

    A node asks a source when somebody needs something of it: until then its health is not known. `penstock doctor`
    asks all of them.
    """
    from penstock.cli import connection

    known = connection.control().attachments()
    if as_json:
        output.print_json(known)
        return
    if not known:
        output.say("nothing is attached; `penstock attach s3://bucket/prefix /data`")
        return
    rows = [
        (each["path"], each["url"], each["freshness_text"], each["write_text"], _versions(each), _health(each))
        for each in known
    ]
    output.table(["PATH", "SOURCE", "FRESHNESS", "WRITING", "VERSIONS", "HEALTH"], rows)


def _versions(attachment: dict[str, Any]) -> str:
    return "weak" if attachment["weak"] else "exact"


def _health(attachment: dict[str, Any]) -> str:
    if not attachment["healthy"]:
        return f"failing: {attachment['reason']}"
    return "ok" if attachment["asked"] else "not asked yet"
