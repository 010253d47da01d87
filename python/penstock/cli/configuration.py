"""``config show``: what is configured, and which layer said so."""

from pathlib import Path
from typing import Annotated, Any

import typer

from penstock.cli import output
from penstock.cli.examples import examples
from penstock.cli.group import command_group
from penstock.cli.options import AsJson


def register(app: typer.Typer) -> None:
    """Adds the commands of this module."""
    group = command_group("config", "See the configuration.", "penstock config show --origin")
    group.command(
        epilog=examples("penstock config show", "penstock config show --origin", "penstock config show --json")
    )(show)
    group.callback()(_group)
    app.add_typer(group)


def _group() -> None:
    """See the configuration."""


def show(
    origin: Annotated[bool, typer.Option("--origin", help="Say which layer each value comes from.")] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="As if given to `penstock up`.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show every key with its value.

    The value is what a node started here would get.

    Layers, later ones win: defaults, /etc/penstock/config.toml, the user's config.toml, penstock.toml of the nearest
    parent directory, PENSTOCK_* variables, --set. A running node keeps what it was started with.
    """
    from penstock import config
    from penstock.home import locate

    home = locate()
    loaded = config.load(home, flags=settings or [], directory=Path.cwd())
    if as_json:
        output.print_json([{"key": key, "value": value, "origin": place} for key, value, place in loaded.origins])
        return
    rows = [(key, _text(key, value), place) for key, value, place in loaded.origins]
    if origin:
        output.table(["KEY", "VALUE", "ORIGIN"], rows)
        output.say()
        output.say(f"user's file: {home.config}")
    else:
        output.table(["KEY", "VALUE"], [row[:2] for row in rows])


def _text(key: str, value: Any) -> str:
    from penstock.units import format_duration, format_size

    if value is None:
        return "(chosen by the node)" if key.startswith(("cache.", "stage.")) else "off"
    if key in ("cache.size", "stage.size", "memory.budget", "log.max_size"):
        return format_size(value)
    if key.endswith(("max_rate", "max_upload_rate")):
        return f"{format_size(value)}/s"
    if key.startswith("deadlines.") or key.endswith("_timeout"):
        return format_duration(value) if value else "off"
    if isinstance(value, list):
        return ", ".join(f"{tier['directory']} ({format_size(tier['size'])})" for tier in value) or "(one)"
    return str(value).lower() if isinstance(value, bool) else str(value)
