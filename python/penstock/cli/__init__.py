"""The command line: one module per group of commands, each a thin door to client, control API and doctor.

Translates arguments and answers, decides nothing. What is heavy is imported by the command that needs it, so that
``penstock --help`` answers at once. Exit codes: 0 done, 1 failed, 2 misused.
"""

from __future__ import annotations

import sys

from penstock.errors import PenstockError

__all__ = ["main"]


def main() -> None:
    """The ``penstock`` command."""
    from penstock.cli import output

    output.ensure_streams()
    try:
        from penstock.cli.app import app

        app()
    except PenstockError as error:
        sys.stdout.flush()
        output.warn(output.error_line(error))
        sys.exit(output.exit_code_of(error))
    except BrokenPipeError:
        output.broken_pipe()
    except OSError as error:
        # What fails here is the output: everything else raises the errors above.
        output.lost(error)
    except KeyboardInterrupt:
        sys.exit(output.EXIT_INTERRUPTED)
