"""Commands that belong together under one word."""

from __future__ import annotations

import typer

from penstock.cli.examples import examples

__all__ = ["command_group"]


def command_group(name: str, sentence: str, *lines: str) -> typer.Typer:
    """An empty group; alone it prints its help, which ends with ``lines`` as examples."""
    return typer.Typer(name=name, no_args_is_help=True, rich_markup_mode=None, help=sentence, epilog=examples(*lines))
