"""``python -m penstock.demo [--json]``: what ``penstock demo`` becomes."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from penstock.demo import run
from penstock.errors import PenstockError

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the demo; a failure is one line and exit code 1, misuse is exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m penstock.demo",
        description="See cold and warm reads, measured here: plain downloads against Penstock, in under a minute.",
    )
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    options = parser.parse_args(arguments)
    try:
        return run(json=options.json)
    except PenstockError as error:
        print(f"{error} [{error.code}]", file=sys.stderr)  # noqa: T201
        return 1


if __name__ == "__main__":
    sys.exit(main())
