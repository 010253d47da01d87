"""Mount documents: one private file for each mount, kept so that the next node mounts it again."""

from __future__ import annotations

import json
import logging
import secrets
import time
from typing import TYPE_CHECKING, Any

from penstock.errors import CorruptError, DiskError, PenstockError
from penstock.home import write_atomically

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FORMAT", "MountStore"]

FORMAT = 1
"""Version of the document."""

_KEYS = (
    "id",
    "target",
    "path",
    "snapshot",
    "uid",
    "gid",
    "file_mode",
    "directory_mode",
    "umask",
    "allow_other",
    "created",
)
_log = logging.getLogger(__name__)


class MountStore:
    """The mount documents of one home."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def new(self, request: dict[str, Any]) -> dict[str, Any]:
        """The document of a mount that is asked for; not kept yet."""
        wanted = {"snapshot": None, **{name: request[name] for name in _KEYS if name in request}}
        return {"format": FORMAT, "id": secrets.token_hex(8), **wanted, "created": time.time()}

    def load(self) -> tuple[list[dict[str, Any]], list[str]]:
        """Every readable document, oldest first, and what is wrong with the others, which are kept."""
        documents, problems = [], []
        for file in self._directory.glob("*.json"):
            try:
                documents.append(_decode(file))
            except PenstockError as error:
                problems.append(str(error))
                _log.error("%s", error, extra={"code": error.code})
        return sorted(documents, key=lambda document: float(document["created"])), problems

    def save(self, document: dict[str, Any]) -> None:
        """Keeps a document.

        Raises:
            DiskError: the disk is full or failing.
        """
        try:
            write_atomically(self._file(document), json.dumps(document, indent=1))
        except OSError as error:
            action = f"mount {document['target']}"
            raise DiskError(action, f"its document cannot be kept: {error.strerror}", "free space") from None

    def remove(self, document: dict[str, Any]) -> None:
        """Forgets a document; nothing happens where there is none."""
        self._file(document).unlink(missing_ok=True)

    def _file(self, document: dict[str, Any]) -> Path:
        return self._directory / f"{document['id']}.json"


def _decode(file: Path) -> dict[str, Any]:
    action = f"read mount {file}"
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(document, dict):
            document.setdefault("umask", 0)  # it was taken from the modes once
        if not isinstance(document, dict) or any(name not in document for name in _KEYS):
            raise ValueError
    except ValueError:
        raise CorruptError(action, "the document is damaged", "remove it and mount again") from None
    except OSError as error:
        raise DiskError(action, str(error.strerror), "fix its rights or the disk") from None
    if document.get("format") != FORMAT:
        raise CorruptError(action, "it was written by another version of Penstock", "upgrade, or mount again")
    return document
