"""The life of a node process: configure, lock, start the core, serve, drain, leave."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from penstock import config, logs
from penstock.errors import DiskError, InvalidInputError, PenstockError, disk_error
from penstock.home import Home, locate, write_atomically
from penstock.jobs import JobLimits, JobRunner, JobStore
from penstock.server import stage
from penstock.server.api import create_app
from penstock.server.detach import detached
from penstock.server.lock import AlreadyRunningError, NodeLock
from penstock.server.service import NodeService

__all__ = ["EXIT_ALREADY_RUNNING", "main"]

EXIT_ALREADY_RUNNING = 3
"""A racing start lost: another node of the home answers. Who asked for one just uses it."""

HOUSEKEEPING_S = 5.0
"""How often a node looks whether it is idle and whether its log has grown too large."""

CONTROL_GRACE_S = 2
"""How long control requests under way may take once the node stops."""

Announce = Callable[[dict[str, Any]], None]
"""Says that the node answers, with facts about it."""

_log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a node until it is told to stop or nobody needs it.

    Returns:
        0 stopped in order, 1 failed, 2 misused (arguments, configuration); 3 for who started it in the background:
        another node runs already.
    """
    options = _parser().parse_args(arguments)
    if options.detach:
        return detached(lambda ready: _guarded(options, ready))
    return _guarded(options, lambda: None)


def _guarded(options: argparse.Namespace, ready: Callable[[], None]) -> int:
    try:
        _run(options, ready)
    except AlreadyRunningError as error:
        return _refused(error, options, 1 if options.foreground else EXIT_ALREADY_RUNNING)
    except InvalidInputError as error:
        return _refused(error, options, 2)
    except PenstockError as error:
        return _refused(error, options, 1)
    except OSError as error:
        # What the disk says of a small file of the home: full, read-only, failing.
        return _refused(disk_error(f"start a node on {locate(options.home).name}", error), options, 1)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m penstock.server", description="Run the node of one home.")
    parser.add_argument("--home", help="directory for everything; default: PENSTOCK_HOME, else the platform's")
    parser.add_argument("--project", type=Path, help="where the search for penstock.toml begins; default: none")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="set a configuration key")
    parser.add_argument("--detach", action="store_true", help="end once the node answers, and leave it behind")
    parser.add_argument("--foreground", action="store_true", help="log to standard error and stay when idle")
    return parser


def _refused(error: PenstockError, options: argparse.Namespace, code: int) -> int:
    # Who started a node in the background reads standard output, up to the moment when it answers: the disk of the home
    # may not even take this line.
    stream = sys.stdout if options.detach else sys.stderr
    text = json.dumps(error.as_dict()) if options.detach else f"error: {error} [{error.code}]"
    print(text, file=stream, flush=True)
    return code


def _run(options: argparse.Namespace, ready: Callable[[], None]) -> None:
    home = locate(options.home)
    home.prepare()
    settings = config.load(home, flags=options.set, directory=_reachable(options.project)).settings
    lock = NodeLock(home)

    def announce(facts: dict[str, Any]) -> None:
        lock.announce(facts)
        ready()

    lock.acquire()
    try:
        logs.start(settings.log.level, home.log_file, sys.stderr if options.foreground else None)
        with _control_socket(home) as listener:
            _host(home, settings, listener, announce, foreground=options.foreground)
    finally:
        lock.release()


def _reachable(directory: Path | None) -> Path | None:
    """The directory, or the nearest above it that answers: who works in a mount whose node died starts the next one."""
    if directory is not None:
        for candidate in (directory, *directory.parents):
            with contextlib.suppress(OSError):
                # The name that is looked for: of a directory that is known, a dead mount still shows the attributes.
                (candidate / config.PROJECT_FILE_NAME).exists()
                return candidate
    return None


def _host(
    home: Home, settings: config.Settings, listener: socket.socket, announce: Announce, *, foreground: bool
) -> None:
    from penstock._native import VERSION, Node
    from penstock.jobs.core_tree import CoreTree

    document = settings.node_config(home, default_cache_bytes(home))
    stage.hold(home, settings.stage_directory(home))
    to_terminal = foreground and not sys.stderr.isatty()
    level = settings.log.level.replace("warning", "warn")
    core = Node(json.dumps(document), None if to_terminal else str(home.log_file), level)
    limits = JobLimits(
        max_running=settings.jobs.max_running,
        workers=settings.jobs.workers,
        keep=settings.jobs.keep,
        max_bytes_per_s=settings.jobs.max_rate,
    )
    jobs = JobRunner(JobStore(home.jobs), lambda: CoreTree(home.data_socket), limits)
    service = NodeService(home, settings, core, jobs)
    service.foreground, service.version = foreground, VERSION
    try:
        service.restore()
        port = core.metrics_port()
        facts = {"version": VERSION, "started": time.time(), "metrics_port": port, "home": str(home.name)}
        server = _ControlServer(service, announce=lambda: announce(facts))
        _log.info("node started", extra={"pid": os.getpid(), "version": VERSION, "home": str(home.name)})
        asyncio.run(server.serve(sockets=[listener]))
    finally:
        _log.info("node stopping", extra={"pid": os.getpid()})
        # Gone before the drain, so that nobody waits for answers that will not come.
        home.control_socket.unlink(missing_ok=True)
        # While the core still serves them: what reads through one then ends with its bytes, not with an error.
        service.mounts.close()
        service.keeper.stop(settings.node.drain_timeout)
        jobs.stop(settings.node.drain_timeout)
        core.drain(settings.node.drain_timeout)
        stage.release(home, json.loads(core.status())["stage"])
        _log.info("node stopped", extra={"pid": os.getpid()})


class _ControlServer(uvicorn.Server):
    """Uvicorn on a private Unix socket, with our signals and a housekeeping task beside it."""

    def __init__(self, service: NodeService, announce: Any) -> None:
        super().__init__(
            uvicorn.Config(
                create_app(service),
                http=_OwnUserProtocol,
                ws="none",
                loop="asyncio",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=CONTROL_GRACE_S,
            )
        )
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        self._service = service
        self._announce = announce
        service.stop = self._stop

    def _stop(self) -> None:
        self.force_exit, self.should_exit = self.should_exit, True
        self._service.stopping = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT drain; the same again leaves at once."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens, then says that the node is ready."""
        await super().startup(sockets)
        self._announce()
        self._service.mounts.start()
        self._housekeeping = asyncio.create_task(self._keep_house())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Takes no more requests and lets those under way finish."""
        self._housekeeping.cancel()
        await super().shutdown(sockets)

    async def _keep_house(self) -> None:
        service = self._service
        timeout_s = 0.0 if service.foreground else service.settings.node.idle_timeout
        pause_s = min(HOUSEKEEPING_S, timeout_s / 4) if timeout_s else HOUSEKEEPING_S
        while True:
            await asyncio.sleep(pause_s)
            await asyncio.to_thread(logs.rotate, service.home.log_file, service.settings.log.max_size)
            if timeout_s and await asyncio.to_thread(service.idle_s) >= timeout_s:
                _log.info("nobody needs the node", extra={"idle_timeout_s": timeout_s})
                self._stop()
                return


class _OwnUserProtocol(H11Protocol):
    """HTTP for processes of this user (and root): everybody else is hung up on before a byte is read."""

    _refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        peer = transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        _, uid, _ = struct.unpack("3i", peer)
        if uid in (os.getuid(), 0):
            super().connection_made(transport)
            return
        self._refused = True
        _log.warning("control connection of another user refused", extra={"code": "permission-denied", "uid": uid})
        transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._refused:
            super().connection_lost(exc)


@contextlib.contextmanager
def _control_socket(home: Home) -> Iterator[socket.socket]:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(home.control_socket))
    except OSError as error:
        reason = error.strerror or str(error)
        raise DiskError(f"listen on {home.control_socket}", reason, "set PENSTOCK_HOME to a local disk") from None
    finally:
        os.umask(before)
    with listener:
        yield listener


def default_cache_bytes(home: Home) -> int:
    """The size of a cache that nobody set: chosen at the first start and kept, so that a full cache stays full."""
    kept = home.state / "default-cache-size"
    with contextlib.suppress(OSError, ValueError):
        return int(kept.read_text(encoding="ascii"))
    try:
        facts = os.statvfs(home.cache)
    except OSError:
        # Nothing is cached there: a size all the same, of which other defaults are parts, but not for ever.
        return config.DEFAULT_CACHE_BYTES
    free = facts.f_bavail * facts.f_frsize
    size = min(config.DEFAULT_CACHE_BYTES, int(free * config.DEFAULT_CACHE_SHARE))
    write_atomically(kept, str(size))
    return size
