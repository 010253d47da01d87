"""Attachment documents: what is attached where, kept so that the next node attaches it again."""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from pathlib import Path
from typing import Any, Protocol

from penstock.errors import CorruptError, DiskError, InternalError, NotFoundError, PenstockError
from penstock.home import write_atomically
from penstock.policies.attachments import (
    check_source_takes_writes,
    check_tree_path,
    check_writes_are_seen,
    format_freshness,
    format_write,
    url_of,
)

__all__ = ["FORMAT", "Attacher", "AttachmentBook"]

FORMAT = 1
"""Version of the document."""

_SPEC_KEYS = ("id", "path", "source", "prefix", "freshness", "write", "posix")
_SAID_LATER = {"write": None, "posix": False}
"""What older documents do not say."""

_log = logging.getLogger(__name__)


class Attacher(Protocol):
    """The part of the core that attaches."""

    def attach(self, spec_json: str, probe: bool) -> str:
        """Puts a source into the tree."""

    def detach(self, path: str) -> None:
        """Takes it out again."""

    def probe(self, path: str) -> str:
        """Asks the source at exactly that path whether it answers; its status as JSON."""

    def attachments(self) -> str:
        """Every attachment with its health, as a JSON list."""


class AttachmentBook:
    """The attachments of one home: documents on disk, and the same in the core's tree."""

    def __init__(self, directory: Path, core: Attacher) -> None:
        self._directory = directory
        self._core = core
        self._lock = threading.Lock()
        self._documents: dict[str, dict[str, Any]] = {}
        self._problems: dict[str, str] = {}

    def restore(self) -> list[str]:
        """Attaches every document again without asking any source, so that starting never waits for one.

        Returns:
            Problems, one sentence each: documents that are damaged or that the core refuses. They are kept.
        """
        problems = []
        for file in sorted(self._directory.glob("*.json")):
            try:
                document = _decode(file)
            except PenstockError as error:
                problems.append(str(error))
                _log.error("%s", error, extra={"code": error.code})
                continue
            path = document["path"]
            self._documents[path] = document
            try:
                self._core.attach(_spec(document), False)
            except PenstockError as error:
                self._problems[path] = str(error)
                problems.append(str(error))
                _log.error("not attached again: %s", error, extra={"code": error.code, "path": path})
        return problems

    def attach(self, request: dict[str, Any], default_freshness: dict[str, float] | str) -> dict[str, Any]:
        """Attaches a source and keeps its document; when either fails, nothing is left of it.

        Args:
            request: as made by :func:`penstock.policies.attachments.request`.
            default_freshness: taken where the request leaves it open.
        Raises:
            ReadOnlyError: it is to be written and the source cannot be.
            UnsupportedError: it is to be written, not by a single writer, and the source cannot replace on condition.
            PenstockError: what the core or the disk says.
        """
        path, write = check_tree_path(request["path"]), request["write"]
        freshness = default_freshness if request["freshness"] is None else request["freshness"]
        if write is not None:
            check_writes_are_seen(path, freshness, request["way"])
        document = {
            "format": FORMAT,
            "id": secrets.token_hex(8),
            "path": path,
            "source": request["source"],
            "prefix": request["prefix"],
            "freshness": freshness,
            "way": request["way"],
            "write": write,
            "posix": request["posix"],
            "created": time.time(),
        }
        with self._lock:
            broken = path in self._problems
        if broken:
            # The kept document could not be attached; the new one replaces it.
            self.detach(path)
        status = json.loads(self._core.attach(_spec(document), request["probe"]))
        try:
            if write is not None:
                # Only who talks to the source knows: asked after it was attached, and taken back.
                check_source_takes_writes(path, write, status["capabilities"])
            self._keep(document)
        except PenstockError:
            self._core.detach(path)
            raise
        with self._lock:
            self._documents[path] = document
        _log.info("attached %s at %s", url_of(document["source"], document["prefix"]), path)
        return _view(document, status, None)

    def detach(self, path: str) -> None:
        """Takes an attachment out of the tree and forgets its document.

        Raises:
            NotFoundError: nothing is attached at exactly that path.
        """
        path = check_tree_path(path)
        with self._lock:
            document = self._documents.get(path)
            if document is None:
                advice = "`penstock attachments` shows what is attached"
                raise NotFoundError(f"detach {path}", "nothing is attached at that path", advice)
            try:
                self._core.detach(path)
            except NotFoundError:
                if path not in self._problems:
                    raise
            self._file(document).unlink(missing_ok=True)
            del self._documents[path]
            self._problems.pop(path, None)
        _log.info("detached %s", path)

    def probe(self, path: str) -> dict[str, Any]:
        """Asks the source of one attachment again what an attach asks first.

        Raises:
            NotFoundError: nothing is attached at exactly that path.
            PenstockError: what the source refuses with.
        """
        path = check_tree_path(path)
        status = json.loads(self._core.probe(path))
        with self._lock:
            document = self._documents[path]
        return _view(document, status, None)

    def all(self) -> list[dict[str, Any]]:
        """Every document with what the core knows of its health, sorted by path."""
        known = {status["spec"]["path"]: status for status in json.loads(self._core.attachments())}
        with self._lock:
            documents, problems = dict(self._documents), dict(self._problems)
        return [_view(document, known.get(path), problems.get(path)) for path, document in sorted(documents.items())]

    def attached(self) -> list[str]:
        """Paths of the attachments that the core has."""
        with self._lock:
            return [path for path in self._documents if path not in self._problems]

    def covering(self, path: str) -> dict[str, Any] | None:
        """The document of the attachment that a path of the tree belongs to."""
        with self._lock:
            around = [each for each in self._documents if _below(path, each)]
            return self._documents[max(around, key=len)] if around else None

    def path_of(self, identity: str, key: str) -> str | None:
        """Where an object of an attachment is in the tree; ``None`` once that is detached."""
        with self._lock:
            known = next((each for each in self._documents.values() if each["id"] == identity), None)
        return None if known is None else f"{known['path'].rstrip('/')}/{key.removeprefix(known['prefix'])}"

    def directories(self) -> dict[str, str]:
        """Local directories that are attached, each with the path in the tree."""
        with self._lock:
            documents = [self._documents[path] for path in self._documents]
        return {
            document["source"]["directory"]: document["path"]
            for document in documents
            if document["source"]["kind"] == "file"
        }

    def covers(self, path: str) -> bool:
        """Whether a path lies in an attachment, or above one."""
        with self._lock:
            known = list(self._documents)
        return any(_below(path, each) or _below(each, path) for each in known)

    def _keep(self, document: dict[str, Any]) -> None:
        try:
            write_atomically(self._file(document), json.dumps(document, indent=1))
        except OSError as error:
            reason = f"its document cannot be kept: {error.strerror}"
            raise DiskError(f"attach {document['path']}", reason, "free space") from None

    def _file(self, document: dict[str, Any]) -> Path:
        return self._directory / f"{document['id']}.json"


def _below(path: str, ancestor: str) -> bool:
    return path == ancestor or path.startswith(ancestor.rstrip("/") + "/")


def _spec(document: dict[str, Any]) -> str:
    return json.dumps({name: document[name] for name in _SPEC_KEYS})


def _decode(file: Path) -> dict[str, Any]:
    action = f"read attachment {file}"
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(document, dict):
            raise ValueError
        document = {**_SAID_LATER, **document}
        if any(name not in document for name in (*_SPEC_KEYS, "way")):
            raise ValueError
    except ValueError:
        raise CorruptError(action, "the document is damaged", "remove it and attach again") from None
    except OSError as error:
        raise DiskError(action, str(error.strerror), "fix its rights or the disk") from None
    if document.get("format") != FORMAT:
        raise CorruptError(action, "it was written by another version of Penstock", "upgrade, or attach again")
    return document


def _view(document: dict[str, Any], status: dict[str, Any] | None, problem: str | None) -> dict[str, Any]:
    if status is None and problem is None:
        problem = str(InternalError(f"use {document['path']}", "the core does not know it", "restart the node"))
    status = status or {}
    capabilities = status.get("capabilities") or {}
    return {
        "id": document["id"],
        "path": document["path"],
        "url": url_of(document["source"], document["prefix"]),
        "source": document["source"],
        "prefix": document["prefix"],
        "freshness": document["freshness"],
        "freshness_text": format_freshness(document["freshness"]),
        "way": document["way"],
        "write": document["write"],
        "write_text": format_write(document["write"]),
        "posix": document["posix"],
        "created": document["created"],
        "asked": problem is not None or bool(status.get("asked")),
        "healthy": problem is None and bool(status.get("healthy")),
        "reason": problem or status.get("failure"),
        "failed_ms": status.get("failed_ms"),
        "weak": bool(capabilities.get("weak_versions")),
        "latency_ms": status.get("latency_ms"),
        "clock_skew_s": status.get("clock_skew_s"),
        "identity": status.get("identity"),
        "capabilities": capabilities,
    }
