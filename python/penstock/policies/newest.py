"""Which files and directories are the newest of a pattern: what stays cached until newer ones exist."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple

from penstock.errors import InvalidInputError
from penstock.policies.attachments import check_tree_path

__all__ = ["NEWEST_MAX", "File", "Newest", "newest", "newest_rule"]

NEWEST_MAX = 1000
"""Most that one rule keeps: each is looked at for every object that eviction considers."""

_GLOB = re.compile(r"[*?[]")


class File(NamedTuple):
    """A file of the tree, as much of it as matters here."""

    path: str
    modified_ms: int


@dataclass(frozen=True)
class Newest:
    """Keep the newest so many of a pattern, in each directory that has any.

    Attributes:
        pattern: a path of the tree in which every component may have ``*``, ``?`` and ``[…]``. A directory, or set of
            files, that matches is as new as the newest file in it.
        keep: how many.
    """

    pattern: str
    keep: int

    @property
    def base(self) -> str:
        """The directory that everything that matches is below."""
        parts = self.pattern.split("/")
        fixed = next(number for number, part in enumerate(parts) if _GLOB.search(part))
        return "/".join(parts[:fixed]) or "/"

    def match(self, path: str) -> str | None:
        """The file, or the directory around it, that the pattern means; a leading dot has to be in the pattern."""
        wanted, parts = self.pattern.split("/"), path.split("/")
        pairs = list(zip(wanted, parts, strict=False))
        if len(parts) < len(wanted) or not all(_matches(glob, part) for glob, part in pairs):
            return None
        return "/".join(parts[: len(wanted)])


def newest_rule(pattern: str, keep: int) -> Newest:
    """A rule, checked.

    Raises:
        InvalidInputError: the pattern is no absolute path, or has nothing to choose among; the number cannot be.
    """
    action = f"keep the newest of {pattern}"
    if not 1 <= keep <= NEWEST_MAX:
        raise InvalidInputError(action, f"{keep} of them cannot be kept", f"give a number from 1 to {NEWEST_MAX}")
    pattern = check_tree_path(pattern)
    if "**" in pattern:
        raise InvalidInputError(action, "** has no meaning here", "write one * for each component of the path")
    if not _GLOB.search(pattern):
        raise InvalidInputError(
            action, "it names one path, of which none is newer", "write it as in '/runs/step-*', or pin it without"
        )
    return Newest(pattern, keep)


def newest(rule: Newest, files: Iterable[File]) -> list[str]:
    """The paths that a rule keeps.

    Args:
        rule: what to keep.
        files: all files below its base; others do no harm.
    Returns:
        Paths that match, sorted. What is equally new is taken in the order of its names, numbers in them as numbers.
    """
    changed: dict[str, int] = {}
    for file in files:
        matched = rule.match(file.path)
        if matched is not None:
            changed[matched] = max(changed.get(matched, file.modified_ms), file.modified_ms)
    by_directory: dict[str, list[str]] = {}
    for path in changed:
        by_directory.setdefault(path.rpartition("/")[0], []).append(path)
    kept: list[str] = []
    for paths in by_directory.values():
        paths.sort(key=lambda path: (changed[path], _natural(path)))
        kept += paths[-rule.keep :]
    return sorted(kept)


def _matches(glob: str, part: str) -> bool:
    return fnmatchcase(part, glob) and (glob.startswith(".") or not part.startswith("."))


def _natural(path: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", path)]
