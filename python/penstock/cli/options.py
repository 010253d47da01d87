"""Arguments and options that several commands take, each said once."""

from typing import Annotated

import typer

TreePath = Annotated[str, typer.Argument(metavar="PATH", help="Absolute path in the tree.")]
Timeout = Annotated[
    str | None, typer.Option(metavar="DURATION", help="Give up after so long, as in 10min; without it, never.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
