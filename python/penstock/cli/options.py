"""Arguments and options that several commands take, each said once."""

from typing import Annotated

import typer

TreePath = Annotated[str, typer.Argument(metavar="PATH", help="Absolute path in the tree.")]
Timeout = Annotated[
    str | None, typer.Option(metavar="DURATION", help="Give up after so long, as in 10min; without it, never.")
]
Wait = Annotated[
    bool, typer.Option("--wait/--no-wait", help="Stay until it is so; otherwise say what is missing, and leave.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
