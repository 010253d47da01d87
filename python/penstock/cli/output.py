"""How the CLI speaks: tables, JSON, one line an error. Everything a command prints for people goes through here."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from penstock.errors import InvalidInputError, PenstockError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "EXIT_FAILED",
    "EXIT_INTERRUPTED",
    "EXIT_MISUSED",
    "broken_pipe",
    "ensure_streams",
    "error_line",
    "exit_code_of",
    "lost",
    "moment",
    "print_json",
    "print_json_array",
    "say",
    "styled",
    "table",
    "warn",
]

EXIT_FAILED = 1
EXIT_MISUSED = 2
EXIT_INTERRUPTED = 130

_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}


def styled(text: str, style: str, *, stream: Any = None) -> str:
    """Text in a style where a terminal shows it; as it is elsewhere, or with ``NO_COLOR`` set."""
    stream = sys.stdout if stream is None else stream
    if not stream.isatty() or "NO_COLOR" in os.environ:
        return text
    return f"\x1b[{_STYLES[style]}m{text}\x1b[0m"


def say(text: str = "") -> None:
    """One line for people, on standard output."""
    print(text)


def warn(text: str) -> None:
    """One line beside the output, on standard error."""
    print(text, file=sys.stderr)


def print_json(value: Any) -> None:
    """One JSON document."""
    import json

    print(json.dumps(value, indent=2))


def print_json_array(rows: Iterable[Any]) -> None:
    """One JSON array, a row a line, written while the rows come: memory stays bounded."""
    import json

    separator = "[\n"
    for row in rows:
        sys.stdout.write(separator + json.dumps(row))
        separator = ",\n"
    sys.stdout.write("[]\n" if separator == "[\n" else "\n]\n")


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[str] = ()) -> None:
    """Aligned columns under a header; the columns in ``right`` are aligned to the right. Never truncated."""
    lines = [[str(cell) for cell in row] for row in rows]
    widths = [max([len(name), *(len(line[index]) for line in lines)]) for index, name in enumerate(columns)]

    def aligned(cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if name in right else cell.ljust(width)
            for cell, width, name in zip(cells, widths, columns, strict=True)
        ]
        return "  ".join(padded).rstrip()

    print(styled(aligned(columns), "bold"))
    for line in lines:
        print(aligned(line))


def moment(seconds: float | None) -> str:
    """A time as people of this machine read it; ``-`` for none."""
    from datetime import datetime

    if not seconds:
        return "-"
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def error_line(error: PenstockError) -> str:
    """What, why, what now, code: one line whatever is in it."""
    text = " ".join(str(error).split())
    return f"{styled('error:', 'red', stream=sys.stderr)} {text} [{error.code}]"


def exit_code_of(error: PenstockError) -> int:
    """2 where the user can only fix the input, else 1."""
    return EXIT_MISUSED if isinstance(error, InvalidInputError) else EXIT_FAILED


def ensure_streams() -> None:
    """Gives output that the shell closed (``>&-``) somewhere to go."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, PTH123 - until the process ends


def lost(error: OSError) -> NoReturn:
    """Tells that what was printed did not arrive, as on a full disk, and ends."""
    warn(f"{styled('error:', 'red', stream=sys.stderr)} write the output: {error.strerror or error}")
    # What is still buffered cannot go anywhere either; the interpreter would complain once more.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(EXIT_FAILED)


def broken_pipe() -> NoReturn:
    """Ends as other programs do when nobody reads their output any more: silently, by SIGPIPE."""
    import signal

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGPIPE)
    sys.exit(EXIT_FAILED)
