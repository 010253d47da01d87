"""Arguments and options that several commands take, each said once."""

from typing import Annotated

import typer

TreePath = Annotated[str, typer.Argument(metavar="PATH", help="Absolute path in the tree.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
