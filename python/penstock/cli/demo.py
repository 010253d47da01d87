"""``demo``: cold and warm on this machine, measured, with a throw-away node and a simulated remote."""

import os
import sys
from typing import Annotated

import typer

from penstock.cli.examples import examples


def register(app: typer.Typer) -> None:
    """Adds the command of this module."""
    app.command(epilog=examples("penstock demo", "penstock demo --json"))(demo)


def demo(as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False) -> None:
    """See cold and warm reads, measured here.

    Plain downloads against Penstock, in under a minute. Needs no account, no root and no network: the remote is
    simulated, and everything is removed at the end.
    """
    sys.stdout.flush()
    arguments = [sys.executable, "-P", "-m", "penstock.demo", *(["--json"] if as_json else [])]
    os.execv(sys.executable, arguments)  # noqa: S606 - becomes the demo, no shell is involved
