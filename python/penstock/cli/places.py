"""Where a path lies that is given to ``cp``: in the tree or on the local disk, and what it is another name of."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

from penstock.cli.paths import tree_path
from penstock.errors import InvalidInputError, NotFoundError
from penstock.policies.mounts import lies_in

if TYPE_CHECKING:
    from collections.abc import Sequence

    from penstock.client import Client

__all__ = ["Place", "Places", "check_apart"]

LOCAL = "file://"


class Place(NamedTuple):
    """A file or directory on one side."""

    in_tree: bool
    path: str
    """Of the tree in its normal form; of the local disk without ``~``."""

    @property
    def name(self) -> str:
        """Its last component; empty for a root, and for ``.``, of which the content is meant."""
        last = self.path.rstrip("/").rpartition("/")[2]
        return {".": "", "..": os.path.basename(os.path.realpath(self.path))}.get(last, last)  # noqa: PTH119

    def __truediv__(self, name: str) -> Place:
        return Place(self.in_tree, f"{self.path.rstrip('/')}/{name}")


class Places:
    """Tells paths of the tree from local ones.

    ``penstock://`` and ``file://`` say it. A relative path is local. An absolute one is of the tree where something is
    attached at or above it; as a source also where the tree has it, or nobody has and it is to become local.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._attachments: Sequence[dict[str, Any]] = client.attachments()

    def source(self, text: str, target: Place) -> Place:
        """Where something is copied from to ``target``."""
        place = self._said(text)
        if place is not None:
            return place
        # What is nowhere is missed where it was meant: what is copied into the tree, on the local disk.
        local = not self._attached(text) and (os.path.lexists(text) or target.in_tree) and not self._in_tree(text)
        return Place(False, text) if local else Place(True, tree_path(text))

    def target(self, text: str) -> Place:
        """Where something is copied to."""
        place = self._said(text)
        if place is not None:
            return place
        return Place(True, tree_path(text)) if self._attached(text) else Place(False, text)

    def identity(self, place: Place) -> tuple[str, str]:
        """Where its bytes are, whatever leads there.

        Two attachments of one bucket give the same, and so do a directory and its attachment.
        """
        if not place.in_tree:
            return LOCAL, os.path.realpath(place.path)
        above = [each for each in self._attachments if lies_in(place.path, each["path"])]
        if not above:
            return "", place.path
        attachment = max(above, key=lambda each: len(each["path"]))
        source, inner = attachment["source"], place.path[len(attachment["path"].rstrip("/")) :]
        if source["kind"] == "file":
            return LOCAL, os.path.realpath(source["directory"] + inner)
        service = "/".join(str(source.get(name)) for name in ("kind", "endpoint", "bucket", "name"))
        return service, ("/" + attachment["prefix"] + inner.removeprefix("/")).rstrip("/") or "/"

    def _said(self, text: str) -> Place | None:
        if text.startswith("penstock://"):
            return Place(True, tree_path(text))
        if text.startswith(LOCAL):
            path = text.removeprefix(LOCAL)
            if not path.startswith("/"):
                raise InvalidInputError(f"copy {text}", "its path is not absolute", "write file:///path")
            return Place(False, path)
        return None if text.startswith("/") else Place(False, os.path.expanduser(text))  # noqa: PTH111 - a slash stays

    def _attached(self, path: str) -> bool:
        return any(lies_in(path, each["path"]) for each in self._attachments)

    def _in_tree(self, path: str) -> bool:
        try:
            self._client.stat(path)
        except (NotFoundError, InvalidInputError):
            return False
        return True


def check_apart(source: tuple[str, str], target: tuple[str, str], action: str) -> None:
    """Refuses a copy of something onto or into itself; each is an identity.

    Raises:
        InvalidInputError: it would overwrite itself, or never end.
    """
    if source[0] != target[0]:
        return
    if source[1] == target[1]:
        raise InvalidInputError(action, "both are the same", "choose another target")
    if lies_in(target[1], source[1]):
        raise InvalidInputError(action, "the target lies in what is copied", "choose a target outside of it")
