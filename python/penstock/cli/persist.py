"""``persist``: wait until the source has what was written."""

import sys
import threading
from typing import TYPE_CHECKING

import typer

from penstock.cli import output
from penstock.cli.examples import examples
from penstock.cli.options import Timeout, TreePath, Wait

if TYPE_CHECKING:
    from penstock.client import Client

LOOK_EVERY_S = 0.5
"""How often the count on a terminal is renewed."""


def register(app: typer.Typer) -> None:
    """Adds the command of this module."""
    app.command(epilog=examples("penstock persist /runs --wait", "penstock persist /runs/exp1 --timeout 10min"))(
        persist
    )


def persist(path: TreePath, timeout: Timeout = None, wait: Wait = True) -> None:
    """Wait until the source has what was written.

    Everything at and below the path that was written before. Fails with what is not there when the time is over, or
    when something cannot get there because somebody else changed it in the source. What is not there stays on this
    machine and goes on being uploaded, also without this command.
    """
    from penstock.cli import connection
    from penstock.cli.paths import tree_path
    from penstock.errors import TimedOutError
    from penstock.units import parse_duration

    path = tree_path(path)
    limit_s = None if timeout is None else parse_duration(timeout)
    client = connection.client()
    if not wait:
        try:
            client.persist(path, timeout=0)
        except TimedOutError as error:
            output.say(error.reason.removeprefix("the time is over and "))
            return
    waiting = _Waiting(client, path, limit_s)
    waiting.start()
    try:
        while not waiting.ended.wait(LOOK_EVERY_S):
            _show(client)
    finally:
        _clear()
    if waiting.error is not None:
        raise waiting.error
    output.say(f"the source has everything below {path}")


class _Waiting(threading.Thread):
    """Waits in the core, so that Ctrl-C and the count go on meanwhile."""

    def __init__(self, client: "Client", path: str, limit_s: float | None) -> None:
        super().__init__(name="persist", daemon=True)
        self._client, self._path, self._limit_s = client, path, limit_s
        self.ended = threading.Event()
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self._client.persist(self._path, timeout=self._limit_s)
        except Exception as error:  # noqa: BLE001 - raised again where somebody sees it
            self.error = error
        self.ended.set()


def _show(client: "Client") -> None:
    if sys.stderr.isatty():
        from penstock.cli.backlog import summary

        sys.stderr.write(f"\r{summary(client.status()['stage'])}\x1b[K")
        sys.stderr.flush()


def _clear() -> None:
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()
