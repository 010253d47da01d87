"""Runs the code blocks of one page in order, as a reader would who types them all.

Every ``bash`` and ``python`` block runs, unless the line before its fence is ``<!-- not run: REASON -->``, or
``<!-- needs: MODULE -->`` and that cannot be imported. The Python blocks of a page share one namespace; each ``bash``
block is a shell of its own in the same directory.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

FENCE = re.compile(r"^```(bash|python)[ ]*\n(.*?)^```[ ]*$", re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r"<!-- not run: (\S.*) -->\n\Z")
NEEDS = re.compile(r"<!-- needs: (\w+) -->\n\Z")
BLOCK_TIMEOUT_S = 240


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    language: str
    code: str
    line: int
    reason_not_run: str | None


def blocks_of(text: str) -> list[Block]:
    """The shell and Python blocks of a page, in order."""
    blocks = []
    for found in FENCE.finditer(text):
        refused = NOT_RUN.search(text[: found.start()])
        needs = NEEDS.search(text[: found.start()])
        reason = refused[1] if refused else None
        if needs and find_spec(needs[1]) is None:
            reason = f"{needs[1]} is not installed"
        line = text.count("\n", 0, found.start()) + 2
        blocks.append(Block(found[1], found[2], line, reason))
    return blocks


def run(page: Path, substitutions: dict[str, str]) -> int:
    """Runs the blocks of a page; the number that ran."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    count = 0
    for block in blocks_of(page.read_text()):
        if block.reason_not_run:
            continue
        code = block.code
        for text, replacement in substitutions.items():
            code = code.replace(text, replacement)
        print(f"--- {page.name}:{block.line} {block.language}", flush=True)
        if block.language == "bash":
            shell = ["bash", "-euo", "pipefail", "-c", code]
            subprocess.run(shell, check=True, stdin=subprocess.DEVNULL, timeout=BLOCK_TIMEOUT_S)
        else:
            # Blank lines in front, so that a traceback names the line of the page.
            exec(compile("\n" * (block.line - 1) + code, str(page), "exec"), namespace)
            sys.stdout.flush()
        count += 1
    return count


if __name__ == "__main__":
    pairs = (pair.split("=", 1) for pair in sys.argv[2:])
    print(f"{run(Path(sys.argv[1]), dict(pairs))} blocks ran")
