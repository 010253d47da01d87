"""``penstock mv``, ``mkdir`` and ``touch``: names of the tree."""

from __future__ import annotations

from contextlib import suppress
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli.examples import examples

if TYPE_CHECKING:
    from penstock.client import Client

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Adds the commands of this module."""
    app.command(epilog=examples("penstock mv /runs/a.pt /runs/best.pt", "penstock mv /runs/a.pt /runs/b.pt /runs/old"))(
        mv
    )
    app.command(epilog=examples("penstock mkdir /runs/exp2", "penstock mkdir -p /runs/2026/november"))(mkdir)
    app.command(epilog=examples("penstock touch /runs/exp1/DONE"))(touch)


def mv(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE...", help="Absolute paths in the tree.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="The new name, or the directory to move into.")],
    keep: Annotated[bool, typer.Option("--no-replace", help="Fail where something has the new name.")] = False,
) -> None:
    """Rename files and directories.

    At once for every reader of this machine; the source follows. A store cannot rename: everything is uploaded under
    its new name. What is too much for one step, or goes into another attachment, has to be copied: `penstock cp -r`,
    then `penstock rm -r`.
    """
    from penstock.cli import connection
    from penstock.cli.paths import tree_path
    from penstock.errors import NotDirectoryError

    named = [tree_path(source) for source in sources]
    client, into = connection.client(), tree_path(target)
    is_directory = _is_directory(client, into)
    if len(named) > 1 and not is_directory:
        raise NotDirectoryError(f"move into {into}", "it is not a directory", f"penstock mkdir {into}")
    for source in named:
        client.rename(
            source, f"{into.rstrip('/')}/{PurePosixPath(source).name}" if is_directory else into, replace=not keep
        )


def mkdir(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Absolute paths in the tree.")],
    parents: Annotated[
        bool, typer.Option("-p", "--parents", help="Those above too; no error where it is there.")
    ] = False,
) -> None:
    """Make directories that stay while they are empty.

    Files need none: they make theirs.
    """
    from penstock.cli import connection
    from penstock.cli.paths import tree_path
    from penstock.errors import AlreadyExistsError

    client = connection.client()
    for path in [tree_path(path) for path in paths]:
        if not parents:
            client.mkdir(path)
        elif not _is_directory(client, path):
            # Those above come with it. Where somebody made it meanwhile, that will do.
            with suppress(AlreadyExistsError):
                client.mkdir(path)


def touch(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Absolute paths in the tree.")],
) -> None:
    """Make empty files where nothing has the name.

    What is there stays as it is, its time too: that is its source's.
    """
    from penstock.cli import connection
    from penstock.cli.paths import tree_path
    from penstock.errors import AlreadyExistsError

    client = connection.client()
    for path in [tree_path(path) for path in paths]:
        with suppress(AlreadyExistsError), client.open(path, "xb"):
            pass


def _is_directory(client: Client, path: str) -> bool:
    from penstock.errors import NotFoundError

    try:
        return client.stat(path).is_directory
    except NotFoundError:
        return False
