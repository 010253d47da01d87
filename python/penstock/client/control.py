"""The control API of a node, as its clients ask it: JSON over ``control.sock``."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from penstock.errors import InternalError, PermissionDeniedError, TimedOutError, UnavailableError, error_from

if TYPE_CHECKING:
    from collections.abc import Iterator
    from http.client import HTTPConnection

__all__ = ["Control"]

TIMEOUT_S = 90.0
"""Longest silence of the node: above its own longest wait for a job and its attach deadline."""

LISTING_TIMEOUT_S = 3600.0
"""As :data:`TIMEOUT_S`, for what lists a whole source: a hundred million objects take minutes."""

_ADVICE = "`penstock up` starts one"


class Control:
    """Asks the node of one home. Holds no connection between calls, so it may cross a fork and be pickled.

    Every method raises the error that the node answers with, :class:`UnavailableError` where no node answers, and
    :class:`TimedOutError` where one is silent for :data:`TIMEOUT_S`.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = str(path)

    def status(self) -> dict[str, Any]:
        """Everything that ``penstock status --json`` shows."""
        return dict(self._ask("GET", "/v1/status"))

    def shutdown(self) -> None:
        """Tells the node to drain and end; returns before it has."""
        self._ask("POST", "/v1/shutdown")

    def attachments(self) -> list[dict[str, Any]]:
        """Every attachment with its health."""
        return list(self._ask("GET", "/v1/attachments"))

    def attach(self, request: dict[str, Any]) -> dict[str, Any]:
        """Attaches what :func:`penstock.policies.attachments.request` made."""
        return dict(self._ask("POST", "/v1/attachments", request))

    def probe(self, path: str) -> dict[str, Any]:
        """Asks the source of the attachment at exactly that path whether it answers."""
        return dict(self._ask("GET", "/v1/attachments/probe?" + urlencode({"path": path})))

    def detach(self, path: str, *, lazy: bool = False) -> None:
        """Takes the attachment at exactly that path out of the tree; ``lazy`` also where a mount of it is in use."""
        self._ask("DELETE", "/v1/attachments?" + urlencode({"path": path, "lazy": lazy}))

    def mounts(self) -> list[dict[str, Any]]:
        """Every mount with its kernel mounts."""
        return list(self._ask("GET", "/v1/mounts"))

    def mount(self, request: dict[str, Any], *, reuse: bool = False) -> dict[str, Any]:
        """Mounts what :func:`penstock.policies.mounts.request` made; ``reuse`` takes the same mount that is there."""
        return dict(self._ask("POST", "/v1/mounts", {**request, "reuse": reuse}))

    def umount(self, target: str, *, lazy: bool = False) -> None:
        """Takes a mount away; ``lazy`` also where somebody uses it."""
        self._ask("DELETE", "/v1/mounts?" + urlencode({"target": target, "lazy": lazy}))

    def snapshots(self) -> list[dict[str, Any]]:
        """Every snapshot, oldest first."""
        return list(self._ask("GET", "/v1/snapshots"))

    def create_snapshot(self, path: str, name: str) -> dict[str, Any]:
        """Freezes a path of the tree as it is now; waits until its source was listed."""
        body = {"path": path, "name": name}
        return dict(self._ask("POST", "/v1/snapshots", body, timeout_s=LISTING_TIMEOUT_S))

    def snapshot(self, name: str, *, check: bool = False) -> dict[str, Any]:
        """One snapshot; ``check`` has all of its document read."""
        return dict(self._ask("GET", f"/v1/snapshots/{quote(name, safe='')}?" + urlencode({"check": check})))

    def snapshot_files(self, name: str) -> Iterator[dict[str, Any]]:
        """Every file of a snapshot: path, size, time, version."""
        row: int | None = 0
        while row is not None:
            page = self._ask("GET", f"/v1/snapshots/{quote(name, safe='')}/files?row={row}")
            yield from page["files"]
            row = page["next"]

    def snapshot_diff(self, name: str, other: str | None = None) -> dict[str, Any]:
        """What is different in another snapshot; without one, in the tree as it is now."""
        query = "" if other is None else "?" + urlencode({"other": other})
        target = f"/v1/snapshots/{quote(name, safe='')}/diff{query}"
        return dict(self._ask("GET", target, timeout_s=LISTING_TIMEOUT_S))

    def remove_snapshot(self, name: str) -> None:
        """Forgets a snapshot."""
        self._ask("DELETE", f"/v1/snapshots/{quote(name, safe='')}")

    def pins(self) -> list[str]:
        """Every pinned path."""
        return list(self._ask("GET", "/v1/pins"))

    def pin(self, path: str, newest: int | None = None) -> list[str]:
        """Pins a path, or the newest of a pattern; returns all pinned paths."""
        return list(self._ask("POST", "/v1/pins", {"path": path, "newest": newest}))

    def unpin(self, path: str) -> list[str]:
        """Takes a pin away; returns those that are left."""
        return list(self._ask("DELETE", "/v1/pins?" + urlencode({"path": path})))

    def prune(self, size_bytes: int) -> dict[str, Any]:
        """Shrinks the cache to at most so many bytes."""
        return dict(self._ask("POST", "/v1/cache/prune", {"size_bytes": size_bytes}))

    def jobs(self) -> list[dict[str, Any]]:
        """Every known job, oldest first, without its failures."""
        return list(self._ask("GET", "/v1/jobs"))

    def submit_job(self, kind: str, path: str, options: dict[str, Any] | None = None) -> dict[str, Any]:
        """Queues a job: ``preload``, ``evict`` or ``verify``."""
        return dict(self._ask("POST", "/v1/jobs", {"kind": kind, "path": path, "options": options or {}}))

    def job(self, job_id: str, wait_s: float = 0, revision: int | None = None) -> dict[str, Any]:
        """One job; with ``wait_s``, once it differs from ``revision``, has ended, or the time is over."""
        query: dict[str, float] = {"wait_s": wait_s}
        if revision is not None:
            query["revision"] = revision
        return dict(self._ask("GET", f"/v1/jobs/{quote(job_id, safe='')}?{urlencode(query)}"))

    def cancel_job(self, job_id: str) -> dict[str, Any]:
        """Ends a job; batches under way are finished first."""
        return dict(self._ask("POST", f"/v1/jobs/{quote(job_id, safe='')}/cancel"))

    def retry_job(self, job_id: str) -> dict[str, Any]:
        """Queues the failed files of an ended job again."""
        return dict(self._ask("POST", f"/v1/jobs/{quote(job_id, safe='')}/retry"))

    def remove_job(self, job_id: str) -> None:
        """Forgets an ended job."""
        self._ask("DELETE", f"/v1/jobs/{quote(job_id, safe='')}")

    def _ask(self, method: str, target: str, body: Any = None, *, timeout_s: float = TIMEOUT_S) -> Any:
        action = f"ask the node behind {self.path}"
        try:
            status, text = self._exchange(method, target, body, timeout_s)
        except TimeoutError:
            advice = "look at its log, then `penstock down && penstock up`"
            raise TimedOutError(action, f"it was silent for {timeout_s:.0f} s", advice) from None
        except (FileNotFoundError, ConnectionRefusedError):
            raise UnavailableError(action, "no node runs on this home", _ADVICE) from None
        except PermissionError:
            advice = "use a home of your own: set PENSTOCK_HOME, or unset it"
            raise PermissionDeniedError(action, "the home belongs to another user", advice) from None
        except OSError as error:
            raise UnavailableError(action, f"the connection broke: {error.strerror or error}", _ADVICE) from None
        if not text and status < 300:
            return None
        try:
            answer = json.loads(text)
        except ValueError:
            raise InternalError(action, "its answer is not JSON", "report it", status=status) from None
        if status >= 300:
            raise error_from(**answer)
        return answer

    def _exchange(self, method: str, target: str, body: Any, timeout_s: float) -> tuple[int, bytes]:
        from http.client import HTTPException

        connection = self._connect(timeout_s)
        try:
            headers = {"Content-Type": "application/json", "Connection": "close"}
            connection.request(method, target, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            return response.status, response.read()
        except HTTPException as error:
            raise ConnectionResetError(None, f"{type(error).__name__}") from None
        finally:
            connection.close()

    def _connect(self, timeout_s: float) -> HTTPConnection:
        from http.client import HTTPConnection

        connection = HTTPConnection("penstock", timeout=timeout_s)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.settimeout(timeout_s)
        try:
            connection.sock.connect(self.path)
        except OSError:
            connection.close()
            raise
        return connection
