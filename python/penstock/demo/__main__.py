"""``python -m penstock.demo [--json]``: what ``penstock demo`` becomes."""

from __future__ import annotations

import sys

from penstock.demo import run
from penstock.errors import PenstockError


def main() -> int:
    """Runs the demo; a failure is one line and exit code 1."""
    unknown = [argument for argument in sys.argv[1:] if argument != "--json"]
    if unknown:
        print(f"penstock demo takes --json only, not {unknown[0]}", file=sys.stderr)  # noqa: T201
        return 2
    try:
        return run(json="--json" in sys.argv[1:])
    except PenstockError as error:
        print(f"{error} [{error.code}]", file=sys.stderr)  # noqa: T201
        return 1


if __name__ == "__main__":
    sys.exit(main())
