"""Where everything that Penstock owns lives: config, state, cache, sockets, logs. Decides names, checks rights.

With ``PENSTOCK_HOME=H`` all of it is below ``H``; without it the directories of the platform are used. Light on
purpose (standard library, ``platformdirs`` only when asked): clients in training processes import it.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.errors import InvalidInputError, PermissionDeniedError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["SOCKET_PATH_MAX_BYTES", "Home", "locate", "write_atomically"]

SOCKET_PATH_MAX_BYTES = 107
"""Longest path that a Unix socket can have on Linux (108 with the closing NUL)."""

_PRIVATE = 0o700

_STAND_INS = Path("/tmp")  # noqa: S108 - `prepare` makes a directory 0700 there and refuses one of somebody else
"""Where a run directory is whose place in the home has too long a path."""


class Home:
    """The directories and files of one home. Making the value touches nothing; :meth:`prepare` does.

    Attributes:
        config: the user's configuration file.
        attachments: directory of attachment documents, ``<id>.json``.
        pins: file of pinned paths.
        jobs: directory of job state.
        mounts: directory of mount documents, ``<id>.json``.
        snapshots: directory of snapshot documents, ``<name>.snapshot``.
        images: directory of images of mounted snapshots.
        state: directory of catalog and cache index.
        stage: default directory of written files that their source has not got, and of their journal.
        cache: default directory of extent files.
        run: directory of sockets, lock and ``node.json``; private to the user.
        logs: directory of log files.
    """

    __slots__ = (
        "attachments",
        "cache",
        "config",
        "images",
        "jobs",
        "logs",
        "mounts",
        "name",
        "pins",
        "run",
        "snapshots",
        "stage",
        "state",
    )

    def __init__(self, config: Path, data: Path, cache: Path, logs: Path, run: Path) -> None:
        self.name = data
        self.config = config
        self.attachments = data / "attachments"
        self.pins = data / "pins.json"
        self.jobs = data / "jobs"
        self.mounts = data / "mounts"
        self.snapshots = data / "snapshots"
        self.state = data / "state"
        self.images = self.state / "images"
        self.stage = data / "stage"
        self.cache = cache
        self.logs = logs
        self.run = run

    @property
    def data_socket(self) -> Path:
        """Socket of the binary protocol: reads, listings, descriptors."""
        return self.run / "data.sock"

    @property
    def control_socket(self) -> Path:
        """Socket of the control API: attachments, jobs, pins, status."""
        return self.run / "control.sock"

    @property
    def node_file(self) -> Path:
        """What the running node says of itself: pid, version, start, metrics port."""
        return self.run / "node.json"

    @property
    def lock_file(self) -> Path:
        """Held by the one node of this home."""
        return self.run / "node.lock"

    @property
    def start_lock_file(self) -> Path:
        """Held by who starts the node, until it answers."""
        return self.run / "start.lock"

    @property
    def log_file(self) -> Path:
        """JSON lines of the node."""
        return self.logs / "node.jsonl"

    def __repr__(self) -> str:
        return f"Home({str(self.name)!r})"

    def node_is_dying(self) -> bool:
        """Whether the node was killed and cannot end: a thread of it waits for a mount that it served itself.

        Its sockets and locks seem to be somebody's meanwhile, though nobody answers.
        """
        try:
            pid = int(self.lock_file.read_text(encoding="ascii"))
            return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"
        except (OSError, ValueError):
            return False

    def run_stands_in(self) -> bool:
        """Whether ``run`` is not in the home, because the path of a socket would be too long there."""
        return not self.run.is_relative_to(self.name)

    def prepare(self) -> None:
        """Makes every directory, private to this user, and checks that it can be written.

        The default cache may be out of reach: a node without it reads on, uncached, and may have another one.

        Raises:
            PermissionDeniedError: a directory cannot be made or written, or belongs to somebody else.
            InvalidInputError: a file stands where a directory is needed.
        """
        documents = (self.attachments, self.jobs, self.mounts, self.snapshots)
        for directory in (self.name, *documents, self.state, self.images, self.stage, self.logs):
            _make_private(directory)
        with contextlib.suppress(PermissionDeniedError):
            _make_private(self.cache)
        self.prepare_run()

    def prepare_run(self) -> None:
        """Makes the run directory alone; raises as :meth:`prepare`."""
        _make_private(self.run)
        check_private(self.run)


def locate(home: str | os.PathLike[str] | None = None, environment: Mapping[str, str] | None = None) -> Home:
    """The home to use: the argument, else ``PENSTOCK_HOME``, else the platform's directories.

    Args:
        home: directory for everything; relative paths are taken from the working directory.
        environment: stands in for ``os.environ``.

    Raises:
        InvalidInputError: ``PENSTOCK_HOME`` is set and empty.
    """
    variables = os.environ if environment is None else environment
    chosen = os.fspath(home) if home is not None else variables.get("PENSTOCK_HOME")
    if chosen is None:
        return _platform_home()
    if not chosen:
        raise InvalidInputError("find the home", "PENSTOCK_HOME is empty", "set it to a directory, or unset it")
    root = Path(os.path.abspath(Path(chosen).expanduser()))  # noqa: PTH100 - links stay
    run = _short_run(root / "run")
    return Home(root / "config.toml", root, root / "cache", root / "logs", run)


def _platform_home() -> Home:
    import platformdirs

    directories = platformdirs.PlatformDirs("penstock", appauthor=False)
    data = directories.user_data_path
    config = directories.user_config_path / "config.toml"
    return Home(config, data, directories.user_cache_path, directories.user_log_path, _short_run(data / "run"))


def _short_run(run: Path) -> Path:
    """``run`` itself, or a short private stand-in where a socket's path would be too long below it.

    Never from ``XDG_RUNTIME_DIR``: a login session has it and a cron job of the same user has not, and both must find
    the same node.
    """
    longest = run / "control.sock"
    if len(os.fsencode(longest)) <= SOCKET_PATH_MAX_BYTES:
        return run
    import hashlib

    digest = hashlib.sha256(os.fsencode(run)).hexdigest()[:16]
    return _STAND_INS / f"penstock-{os.getuid()}-{digest}"


def _make_private(directory: Path) -> None:
    action = f"prepare {directory}"
    try:
        directory.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InvalidInputError(
            action, "a file stands where a directory is needed", "move it away, or set PENSTOCK_HOME elsewhere"
        ) from None
    except OSError as error:
        raise PermissionDeniedError(
            action, f"it cannot be made: {error.strerror}", "set PENSTOCK_HOME to a directory that you can write"
        ) from None
    if not os.access(directory, os.W_OK | os.X_OK):
        read_only = os.statvfs(directory).f_flag & os.ST_RDONLY
        reason, fix = "it is not writable", "fix its rights"
        if directory.stat().st_uid != os.getuid():
            reason = "it is not writable, and belongs to another user"
        if read_only:
            reason, fix = "its file system is mounted read-only", "mount it for writing"
        raise PermissionDeniedError(action, reason, f"{fix}, or set PENSTOCK_HOME to a directory that you can write")


def check_private(directory: Path) -> None:
    """Refuses a run directory that another user owns or can enter: sockets in it could be somebody else's.

    Raises:
        PermissionDeniedError: it is a link, belongs to another user, or is open to group or others.
    """
    facts = os.lstat(directory)
    action = f"use {directory}"
    if stat.S_ISLNK(facts.st_mode) or not stat.S_ISDIR(facts.st_mode):
        raise PermissionDeniedError(action, "it is not a directory of its own", "remove it")
    if facts.st_uid != os.getuid():
        raise PermissionDeniedError(
            action, "it belongs to another user", "set PENSTOCK_HOME to a directory of yours", owner=facts.st_uid
        )
    if stat.S_IMODE(facts.st_mode) & 0o077:
        try:
            directory.chmod(_PRIVATE)
        except OSError as error:
            raise PermissionDeniedError(action, f"others can enter it: {error.strerror}", "chmod 700 it") from None


def write_atomically(path: Path, text: str, *, durable: bool = True) -> None:
    """Replaces a small private file whole: a reader sees the old text or the new, never a part.

    Args:
        path: the file; its directory exists.
        text: the new content.
        durable: also survive a crash of the machine (costs two syncs).

    Raises:
        OSError: the directory cannot be written or the disk is full; the old file is untouched.
    """
    import tempfile

    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink()
        raise
    if durable:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
