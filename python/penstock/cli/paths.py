"""Paths as users type them: tree paths, ``penstock://`` URLs, local paths."""

from __future__ import annotations

from penstock.policies.attachments import check_tree_path

__all__ = ["tree_path"]


def tree_path(text: str) -> str:
    """The path in the tree that a user means; ``penstock:///data`` is the same as ``/data``.

    Raises:
        InvalidInputError: it is relative or otherwise outside the tree.
    """
    if text.startswith("penstock://"):
        return check_tree_path("/" + text.removeprefix("penstock://").lstrip("/"))
    return check_tree_path(text)
