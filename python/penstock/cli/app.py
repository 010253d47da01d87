"""The commands put together, in the order that help shows them."""

from typing import Annotated

import typer

from penstock.cli import (
    attach,
    bench,
    cache,
    ckpt,
    configuration,
    conflicts,
    demo,
    doctor,
    files,
    jobs,
    mount,
    names,
    node,
    persist,
    snapshot,
)
from penstock.cli.examples import examples

__all__ = ["app"]


def _version(wanted: bool) -> None:
    if wanted:
        from penstock._native import VERSION

        print(f"penstock {VERSION}")
        raise typer.Exit


app = typer.Typer(
    name="penstock",
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,  # plain help: rich would double the time it takes
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="""Read a data lake at local-disk speed.

    First steps: `penstock demo`, then `penstock attach s3://bucket/prefix /data` and `penstock ls /data`.
    """,
    epilog=examples(
        "penstock demo",
        "penstock attach s3://bucket/prefix /data --region eu-west-1",
        "penstock ls /data",
        "penstock doctor",
    )
    + "\n\nExit codes: 0 done, 1 failed, 2 misused. PENSTOCK_HOME puts everything under one directory.",
)


@app.callback()
def penstock(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Read a data lake at local-disk speed."""


for _module in (
    node,
    attach,
    mount,
    snapshot,
    files,
    names,
    persist,
    ckpt,
    conflicts,
    jobs,
    cache,
    configuration,
    doctor,
    bench,
    demo,
):
    _module.register(app)
