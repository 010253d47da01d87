"""Snapshots: what a name may be, and which file of the home is meant by one."""

from __future__ import annotations

import re

from penstock.errors import InvalidInputError

__all__ = ["SUFFIX", "check_name"]

SUFFIX = ".snapshot"
"""End of the name of every document."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)


def check_name(name: str) -> str:
    """A name that a snapshot can have.

    Raises:
        InvalidInputError: it is empty, longer than 100 characters, or has others than letters, digits and ``._-``.
    """
    if _NAME.fullmatch(name) is None:
        advice = "take up to 100 letters, digits, `.`, `_` and `-`, and begin with a letter or digit"
        raise InvalidInputError(f"name a snapshot {name!r}", "that is no name for one", advice)
    return name
