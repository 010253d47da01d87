"""Logs of the node: JSON lines in a file and in containers, text on a terminal. The same fields as the core's.

Never a secret, never a credential: messages come from errors and events, which hold none. Standard library only.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

__all__ = ["JsonLines", "Text", "rotate", "start"]

_PLAIN = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """What was given as ``extra``: code, job, path and the like."""
    return {name: value for name, value in vars(record).items() if name not in _PLAIN}


class JsonLines(logging.Formatter):
    """One JSON object a line: timestamp, level, target, message, then the record's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of one record; an exception becomes one field."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds")
        line: dict[str, object] = {
            "timestamp": moment.replace("+00:00", "Z"),
            "level": record.levelname,
            "target": record.name,
            "message": record.getMessage(),
            **fields_of(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class Text(logging.Formatter):
    """Time, level, message and fields, for people."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of one record; an exception follows on lines of its own."""
        moment = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        facts = " ".join(f"{name}={value}" for name, value in fields_of(record).items())
        line = f"{moment} {record.levelname.lower():7} {record.getMessage()}" + (f" ({facts})" if facts else "")
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def start(level: str, file: Path, foreground: TextIO | None = None) -> None:
    """Sends the log of this process to a file and, in the foreground, to a stream too.

    Args:
        level: ``debug``, ``info``, ``warning`` or ``error``.
        file: where JSON lines are appended; the core appends to it as well.
        foreground: standard error of a node in the foreground.
    """
    root = logging.getLogger()
    root.setLevel(level.upper())
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    kept = logging.FileHandler(file, encoding="utf-8")
    file.chmod(0o600)
    kept.setFormatter(JsonLines())
    root.addHandler(kept)
    if foreground is not None:
        shown = logging.StreamHandler(foreground)
        shown.setFormatter(Text() if foreground.isatty() else JsonLines())
        root.addHandler(shown)
    logging.captureWarnings(capture=True)


def rotate(file: Path, max_bytes: int) -> bool:
    """Moves the content of a log that has grown past its bound into ``<file>.1`` and empties it in place.

    In place, because two writers append to it, the core being one. A line written between copy and truncation is
    lost; that is the price of needing no agreement between them.
    """
    try:
        if file.stat().st_size <= max_bytes:
            return False
        shutil.copyfile(file, file.with_name(file.name + ".1"))
        file.with_name(file.name + ".1").chmod(0o600)
        with file.open("r+b") as stream:
            stream.truncate(0)
    except OSError as error:
        print(f"rotate {file}: {error}", file=sys.stderr)  # noqa: T201 - the log itself cannot take it
        return False
    return True
