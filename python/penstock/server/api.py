"""The control API: HTTP and JSON in front of the service. Translates, never decides."""

from __future__ import annotations

import errno
import logging
from http import HTTPStatus
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint

from penstock.errors import InternalError, InvalidInputError, NotFoundError, PenstockError, ResourceLimitError
from penstock.jobs import JobKind  # noqa: TC001 - pydantic reads it at run time
from penstock.server.service import WAIT_MAX_S, NodeService

__all__ = ["STATUS_OF_CODE", "create_app"]

_NO_DESCRIPTOR = "every descriptor of the node is in use: its clients hold many files"
_MORE_DESCRIPTORS = "close files, or start the node with a higher `ulimit -n`"

STATUS_OF_CODE = {
    "invalid-input": HTTPStatus.BAD_REQUEST,
    "not-found": HTTPStatus.NOT_FOUND,
    "already-exists": HTTPStatus.CONFLICT,
    "is-a-directory": HTTPStatus.CONFLICT,
    "not-a-directory": HTTPStatus.CONFLICT,
    "not-empty": HTTPStatus.CONFLICT,
    "cross-device": HTTPStatus.CONFLICT,
    "permission-denied": HTTPStatus.FORBIDDEN,
    "read-only": HTTPStatus.FORBIDDEN,
    "stale-version": HTTPStatus.CONFLICT,
    "conflict": HTTPStatus.CONFLICT,
    "unavailable": HTTPStatus.BAD_GATEWAY,
    "timeout": HTTPStatus.GATEWAY_TIMEOUT,
    "rate-limited": HTTPStatus.TOO_MANY_REQUESTS,
    "no-space": HTTPStatus.INSUFFICIENT_STORAGE,
    "resource-limit": HTTPStatus.SERVICE_UNAVAILABLE,
    "corrupt": HTTPStatus.INTERNAL_SERVER_ERROR,
    "busy": HTTPStatus.CONFLICT,
    "unsupported": HTTPStatus.NOT_IMPLEMENTED,
    "cancelled": HTTPStatus.CONFLICT,
    "disk": HTTPStatus.INTERNAL_SERVER_ERROR,
    "internal": HTTPStatus.INTERNAL_SERVER_ERROR,
}
"""HTTP status by error code; the body says everything, the status only fits."""

_log = logging.getLogger(__name__)


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class S3Source(_Body):
    """A bucket."""

    kind: Literal["s3"]
    bucket: str
    endpoint: str | None = None
    region: str | None = None
    virtual_host: bool | None = None
    credentials: str = "chain"


class FileSource(_Body):
    """A directory of the node's machine."""

    kind: Literal["file"]
    directory: str


class MemorySource(_Body):
    """Objects in the node's memory."""

    kind: Literal["memory"]
    name: str


class SecondsOfFreshness(_Body):
    """Facts are believed for so long."""

    seconds: Annotated[float, Field(ge=0)]


class WriteBody(_Body):
    """How an attachment may be written."""

    durability: Literal["local", "source"]
    single_writer: bool = False


class AttachBody(_Body):
    """What to attach where."""

    path: str
    source: Annotated[S3Source | FileSource | MemorySource, Field(discriminator="kind")]
    prefix: str = ""
    freshness: SecondsOfFreshness | Literal["immutable"] | None = None
    way: Literal["auto", "open", "no-open"] = "auto"
    write: WriteBody | None = None
    posix: bool = False
    probe: bool = True


class MountBody(_Body):
    """What to mount where."""

    target: str
    path: str = "/"
    snapshot: str | None = None
    uid: Annotated[int | None, Field(ge=0, lt=(1 << 32) - 1)] = None
    gid: Annotated[int | None, Field(ge=0, lt=(1 << 32) - 1)] = None
    file_mode: Annotated[int | None, Field(ge=0, le=0o777)] = None
    directory_mode: Annotated[int | None, Field(ge=0, le=0o777)] = None
    umask: Annotated[int, Field(ge=0, le=0o777)] = 0
    allow_other: bool = False
    reuse: bool = False


class SnapshotBody(_Body):
    """What to freeze, and how to call it."""

    path: str
    name: str


class JobOptions(_Body):
    """How a job goes about it."""

    max_bytes_per_s: Annotated[int | None, Field(gt=0)] = None


class JobBody(_Body):
    """A job to queue."""

    kind: JobKind
    path: str
    options: JobOptions = JobOptions()


class PathBody(_Body):
    """A path of the tree."""

    path: str


class PinBody(_Body):
    """A path to pin, or a pattern of which the newest stay."""

    path: str
    newest: int | None = None


class PruneBody(_Body):
    """How much may stay in the cache."""

    size_bytes: Annotated[int, Field(ge=0)]


def create_app(service: NodeService) -> FastAPI:
    """The application that serves one node."""
    app = FastAPI(title="Penstock control API", version=service.version, docs_url=None, redoc_url=None)
    app.add_exception_handler(PenstockError, _answer_error)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(HTTPException, _answer_unknown)
    app.add_middleware(BaseHTTPMiddleware, dispatch=_Watch(service))
    _add_node(app, service)
    _add_attachments(app, service)
    _add_mounts(app, service)
    _add_snapshots(app, service)
    _add_pins(app, service)
    _add_jobs(app, service)
    return app


class _Watch:
    """Counts every request as use of the node, and answers a defect in the form of every other error."""

    def __init__(self, service: NodeService) -> None:
        self._service = service

    async def __call__(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        self._service.touch()
        try:
            return await call_next(request)
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller gets words and the log the trace
            action = f"{request.method} {request.url.path}"
            if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
                return await _answer_error(request, ResourceLimitError(action, _NO_DESCRIPTOR, _MORE_DESCRIPTORS))
            _log.exception("a defect in %s", action)
            return await _answer_error(request, InternalError(action, repr(error), "report it with the node's log"))


def _add_node(app: FastAPI, service: NodeService) -> None:
    @app.get("/v1/status")
    def status() -> dict[str, Any]:
        return service.status()

    @app.post("/v1/cache/prune")
    def prune(body: PruneBody) -> dict[str, Any]:
        return service.prune(body.size_bytes)

    @app.post("/v1/shutdown", status_code=HTTPStatus.ACCEPTED)
    def shutdown() -> dict[str, str]:
        service.stop()
        return {"state": "stopping"}


def _add_attachments(app: FastAPI, service: NodeService) -> None:
    @app.get("/v1/attachments")
    def attachments() -> list[dict[str, Any]]:
        return service.attachments.all()

    @app.post("/v1/attachments", status_code=HTTPStatus.CREATED)
    def attach(body: AttachBody) -> dict[str, Any]:
        return service.attach(body.model_dump())

    @app.get("/v1/attachments/probe")
    def probe(path: str) -> dict[str, Any]:
        return service.attachments.probe(path)

    @app.delete("/v1/attachments", status_code=HTTPStatus.NO_CONTENT)
    def detach(path: str, lazy: bool = False) -> None:
        service.detach(path, lazy=lazy)


def _add_mounts(app: FastAPI, service: NodeService) -> None:
    @app.get("/v1/mounts")
    def mounts() -> list[dict[str, Any]]:
        return service.mounts.all()

    @app.post("/v1/mounts", status_code=HTTPStatus.CREATED)
    def mount(body: MountBody) -> dict[str, Any]:
        return service.mount(body.model_dump(exclude={"reuse"}), reuse=body.reuse)

    @app.delete("/v1/mounts", status_code=HTTPStatus.NO_CONTENT)
    def umount(target: str, lazy: bool = False) -> None:
        service.umount(target, lazy=lazy)


def _add_snapshots(app: FastAPI, service: NodeService) -> None:
    @app.get("/v1/snapshots")
    def snapshots() -> list[dict[str, Any]]:
        return service.snapshots.all()

    @app.post("/v1/snapshots", status_code=HTTPStatus.CREATED)
    def create(body: SnapshotBody) -> dict[str, Any]:
        return service.snapshots.create(body.path, body.name)

    @app.get("/v1/snapshots/{name}")
    def show(name: str, check: bool = False) -> dict[str, Any]:
        return service.snapshots.show(name, check=check)

    @app.get("/v1/snapshots/{name}/files")
    def files(name: str, row: Annotated[int, Query(ge=0)] = 0) -> dict[str, Any]:
        return service.snapshots.files(name, row)

    @app.get("/v1/snapshots/{name}/diff")
    def diff(name: str, other: str | None = None) -> dict[str, Any]:
        return service.snapshots.diff(name, other)

    @app.delete("/v1/snapshots/{name}", status_code=HTTPStatus.NO_CONTENT)
    def remove_snapshot(name: str) -> None:
        service.snapshots.remove(name)


def _add_pins(app: FastAPI, service: NodeService) -> None:
    @app.get("/v1/pins")
    def pins() -> list[str]:
        return service.pins.all()

    @app.post("/v1/pins")
    def pin(body: PinBody) -> list[str]:
        return service.pin(body.path, body.newest)

    @app.delete("/v1/pins")
    def unpin(path: str) -> list[str]:
        return service.unpin(path)


def _add_jobs(app: FastAPI, service: NodeService) -> None:
    @app.get("/v1/jobs")
    def jobs() -> list[dict[str, Any]]:
        return service.jobs.all()

    @app.post("/v1/jobs", status_code=HTTPStatus.CREATED)
    def submit(body: JobBody) -> dict[str, Any]:
        return service.submit(body.kind, body.path, body.options.max_bytes_per_s)

    @app.get("/v1/jobs/{job_id}")
    async def job(
        job_id: str, wait_s: Annotated[float, Query(ge=0, le=WAIT_MAX_S)] = 0, revision: int | None = None
    ) -> dict[str, Any]:
        return await service.wait_for_job(job_id, wait_s, revision)

    @app.post("/v1/jobs/{job_id}/cancel")
    def cancel(job_id: str) -> dict[str, Any]:
        return service.jobs.cancel(job_id)

    @app.post("/v1/jobs/{job_id}/retry")
    def retry(job_id: str) -> dict[str, Any]:
        return service.jobs.retry(job_id)

    @app.delete("/v1/jobs/{job_id}", status_code=HTTPStatus.NO_CONTENT)
    def remove(job_id: str) -> None:
        service.jobs.remove(job_id)


async def _answer_error(_: Request, error: Exception) -> JSONResponse:
    known = error if isinstance(error, PenstockError) else InternalError("answer", repr(error))
    status = STATUS_OF_CODE.get(known.code, HTTPStatus.INTERNAL_SERVER_ERROR)
    return JSONResponse(known.as_dict(), status_code=status)


async def _answer_invalid(request: Request, error: Exception) -> JSONResponse:
    first = error.errors()[0] if isinstance(error, RequestValidationError) else {"loc": (), "msg": str(error)}
    place = ".".join(str(part) for part in first["loc"])
    known = InvalidInputError(f"{request.method} {request.url.path}", f"{place}: {first['msg']}")
    return await _answer_error(request, known)


async def _answer_unknown(request: Request, error: Exception) -> JSONResponse:
    action = f"{request.method} {request.url.path}"
    if getattr(error, "status_code", HTTPStatus.NOT_FOUND) != HTTPStatus.NOT_FOUND:
        return await _answer_error(request, InvalidInputError(action, str(getattr(error, "detail", error))))
    advice = "restart the node, so that client and node have one version: `penstock down`, `penstock up`"
    return await _answer_error(request, NotFoundError(action, "this node does not know that request", advice))
