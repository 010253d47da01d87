"""One error tree, mirrored from the kinds of the Rust core by what the caller can do.

    PenstockError
    ├── InvalidInputError      ValueError           fix the input
    ├── NotFoundError          FileNotFoundError    nothing has that name
    ├── AlreadyExistsError     FileExistsError      something has that name already
    ├── IsDirectoryError       IsADirectoryError    a file was asked for
    ├── NotDirectoryError      NotADirectoryError   a directory was asked for
    ├── NotEmptyError          OSError              a directory is to go, and something is in it
    ├── CrossDeviceError       OSError              it cannot be moved there in one step: copy it
    ├── PermissionDeniedError  PermissionError      credentials missing, wrong, expired, not entitled
    ├── ReadOnlyError          OSError              the tree, attachment or file is read-only
    ├── StaleVersionError      OSError              the pinned version is gone: open again
    ├── ConflictError          OSError              somebody else changed the object
    ├── UnavailableError       ConnectionError      source or node cannot be reached: try later
    ├── TimedOutError          TimeoutError         the deadline passed: try later or raise it
    ├── RateLimitedError       OSError              the source asks for fewer requests
    ├── NoSpaceError           OSError              disk or budget is full: free space
    ├── ResourceLimitError     OSError              memory, descriptors or connections used up
    ├── CorruptError           OSError              bytes do not match their checksum or length
    ├── BusyError              OSError              somebody holds it: wait, or stop the holder
    ├── UnsupportedError       OSError              the source or this build cannot do that
    ├── CancelledError         OSError              the work was cancelled
    ├── DiskError              OSError              the local disk failed
    └── InternalError          RuntimeError         a defect of ours: report it

Every error has a stable ``code``, an ``errno``, and the parts of its message: ``action`` (doing what, to
what), ``reason`` (why) and ``advice`` (what now, or ``None``). Standard library only: this module is
imported wherever Penstock is.
"""

from __future__ import annotations

import errno as errno_codes

__all__ = [
    "ERROR_TYPES",
    "AlreadyExistsError",
    "BusyError",
    "CancelledError",
    "ConflictError",
    "CorruptError",
    "CrossDeviceError",
    "DiskError",
    "InternalError",
    "InvalidInputError",
    "IsDirectoryError",
    "NoSpaceError",
    "NotDirectoryError",
    "NotEmptyError",
    "NotFoundError",
    "PenstockError",
    "PermissionDeniedError",
    "RateLimitedError",
    "ReadOnlyError",
    "ResourceLimitError",
    "StaleVersionError",
    "TimedOutError",
    "UnavailableError",
    "UnsupportedError",
    "compose",
    "disk_error",
    "error_from",
]


def compose(action: str, reason: str, advice: str | None = None, **facts: object) -> str:
    """One line in the project's form: doing what to what, why, what now, facts last."""
    text = f"{action}: {reason}" if action else reason
    if advice:
        text += f"; {advice}"
    if facts:
        text += " (" + " ".join(f"{name}={value}" for name, value in facts.items()) + ")"
    return text


class PenstockError(Exception):
    """Anything that Penstock reports as failed; catch this to catch them all.

    Args:
        action: the operation and its object, as in ``read s3://logs/a.parquet``.
        reason: why it failed.
        advice: what the caller can do now, or ``None``.
        message: the whole line, where it was composed elsewhere; made of the other parts when absent.
        facts: shown last as ``name=value``; never a secret.
    """

    code: str = "internal"
    errno: int | None = errno_codes.EIO
    action: str
    reason: str
    advice: str | None
    message: str

    def __init__(
        self, action: str, reason: str, advice: str | None = None, *, message: str | None = None, **facts: object
    ) -> None:
        self.action = action
        self.reason = reason
        self.advice = advice
        self.message = message if message is not None else compose(action, reason, advice, **facts)
        if isinstance(self, OSError):
            OSError.__init__(self, type(self).errno, self.message)
            self.errno = type(self).errno
        else:
            super().__init__(self.message)

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[object, ...]:
        return (error_from, (self.code, self.message, self.action, self.reason, self.advice))

    def as_dict(self) -> dict[str, str | None]:
        """The error as the control API and ``--json`` show it."""
        return {
            "code": self.code,
            "message": self.message,
            "action": self.action,
            "reason": self.reason,
            "advice": self.advice,
        }


class InvalidInputError(PenstockError, ValueError):
    """Fix the input: an argument, a URL or a setting that cannot be right."""

    code = "invalid-input"
    errno = errno_codes.EINVAL


class NotFoundError(PenstockError, FileNotFoundError):
    """Nothing has that name."""

    code = "not-found"
    errno = errno_codes.ENOENT


class AlreadyExistsError(PenstockError, FileExistsError):
    """Something has that name already."""

    code = "already-exists"
    errno = errno_codes.EEXIST


class IsDirectoryError(PenstockError, IsADirectoryError):
    """A file was asked for and a directory is there."""

    code = "is-a-directory"
    errno = errno_codes.EISDIR


class NotDirectoryError(PenstockError, NotADirectoryError):
    """A directory was asked for and a file is there."""

    code = "not-a-directory"
    errno = errno_codes.ENOTDIR


class NotEmptyError(PenstockError):
    """A directory is to go, and something is in it."""

    code = "not-empty"
    errno = errno_codes.ENOTEMPTY


class CrossDeviceError(PenstockError):
    """It cannot be moved there in one step: copy it, then remove it."""

    code = "cross-device"
    errno = errno_codes.EXDEV


class PermissionDeniedError(PenstockError, PermissionError):
    """The credentials are missing, wrong, expired or not entitled."""

    code = "permission-denied"
    errno = errno_codes.EACCES


class ReadOnlyError(PenstockError, OSError):
    """The tree, attachment or file is read-only."""

    code = "read-only"
    errno = errno_codes.EROFS


class StaleVersionError(PenstockError, OSError):
    """The pinned version is gone: open the file again."""

    code = "stale-version"
    errno = errno_codes.ESTALE


class ConflictError(PenstockError, OSError):
    """A condition on a write did not hold: somebody else changed the object."""

    code = "conflict"
    errno = errno_codes.ESTALE


class UnavailableError(PenstockError, ConnectionError):
    """The source or node cannot be reached or answers with failures: try later."""

    code = "unavailable"
    errno = errno_codes.EIO


class TimedOutError(PenstockError, TimeoutError):
    """The deadline passed: try later or raise it."""

    code = "timeout"
    errno = errno_codes.ETIMEDOUT


class RateLimitedError(PenstockError, OSError):
    """The source asks for fewer requests; retries within the deadline did not help."""

    code = "rate-limited"
    errno = errno_codes.EAGAIN


class NoSpaceError(PenstockError, OSError):
    """Disk or budget is full: free space."""

    code = "no-space"
    errno = errno_codes.ENOSPC


class ResourceLimitError(PenstockError, OSError):
    """Memory, descriptors or connections are used up: wait, or raise the limit."""

    code = "resource-limit"
    errno = errno_codes.EAGAIN


class CorruptError(PenstockError, OSError):
    """Bytes do not match their checksum or length."""

    code = "corrupt"
    errno = errno_codes.EIO


class BusyError(PenstockError, OSError):
    """Somebody holds it: wait, or stop the holder."""

    code = "busy"
    errno = errno_codes.EBUSY


class UnsupportedError(PenstockError, OSError):
    """The source or this build cannot do that."""

    code = "unsupported"
    errno = errno_codes.EOPNOTSUPP


class CancelledError(PenstockError, OSError):
    """The work was cancelled."""

    code = "cancelled"
    errno = errno_codes.ECANCELED


class DiskError(PenstockError, OSError):
    """The local disk failed."""

    code = "disk"
    errno = errno_codes.EIO


class InternalError(PenstockError, RuntimeError):
    """A defect of ours: report it."""

    code = "internal"
    errno = errno_codes.EIO


ERROR_TYPES: dict[str, type[PenstockError]] = {
    kind.code: kind
    for kind in (
        InvalidInputError,
        NotFoundError,
        AlreadyExistsError,
        IsDirectoryError,
        NotDirectoryError,
        NotEmptyError,
        CrossDeviceError,
        PermissionDeniedError,
        ReadOnlyError,
        StaleVersionError,
        ConflictError,
        UnavailableError,
        TimedOutError,
        RateLimitedError,
        NoSpaceError,
        ResourceLimitError,
        CorruptError,
        BusyError,
        UnsupportedError,
        CancelledError,
        DiskError,
        InternalError,
    )
}
"""Type by stable code, in the order of the reference."""


def error_from(code: str, message: str, action: str, reason: str, advice: str | None) -> PenstockError:
    """The error of that code with its parts; the core and the control API raise through here.

    A code this build does not know (a newer node) becomes a plain :class:`PenstockError` that keeps it.
    """
    kind = ERROR_TYPES.get(code)
    if kind is None:
        unknown = PenstockError(action, reason, advice, message=message)
        unknown.code = code
        return unknown
    return kind(action, reason, advice, message=message)


def disk_error(action: str, error: OSError) -> PenstockError:
    """What a file of the home met: no space, no right, or a disk that fails."""
    reason = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
    if error.errno in (errno_codes.ENOSPC, errno_codes.EDQUOT):
        return NoSpaceError(action, reason, "free space there, or set PENSTOCK_HOME to another directory")
    if error.errno in (errno_codes.EACCES, errno_codes.EPERM, errno_codes.EROFS):
        return PermissionDeniedError(action, reason, "set PENSTOCK_HOME to a directory that you can write")
    return DiskError(action, reason, "check the disk, or set PENSTOCK_HOME to another directory")
