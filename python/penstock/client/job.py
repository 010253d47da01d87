"""A job as the program that asked for it sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from penstock.errors import TimedOutError, error_from

if TYPE_CHECKING:
    from penstock.client.control import Control

__all__ = ["Job"]

_ENDED = ("finished", "failed", "cancelled")
_WAIT_STEP_S = 20.0


class Job:
    """One job of the node. It goes on without this value, and without this process."""

    def __init__(self, control: Control, known: dict[str, Any]) -> None:
        self._control = control
        self._known = known

    @property
    def id(self) -> str:
        """Its number."""
        return str(self._known["id"])

    @property
    def state(self) -> str:
        """``queued``, ``running``, ``finished``, ``failed`` or ``cancelled``, as last seen."""
        return str(self._known["state"])

    def status(self) -> dict[str, Any]:
        """Asks the node: totals, what is done, rate, time left, failures with reasons."""
        self._known = self._control.job(self.id)
        return dict(self._known)

    def wait(self, timeout_s: float | None = None) -> dict[str, Any]:
        """Waits until the job has ended.

        Args:
            timeout_s: longest wait; ``None`` waits for ever.
        Returns:
            Its final status. Files that failed are in it, with reasons; ``state`` is ``failed`` then.
        Raises:
            PenstockError: the job as a whole failed: the error that ended it.
            TimedOutError: it has not ended within ``timeout_s``; it goes on.
        """
        import time

        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self.status()
        while self.state not in _ENDED:
            left = _WAIT_STEP_S if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise TimedOutError(f"wait for job {self.id}", f"it has not ended after {timeout_s} s", "wait again")
            self._known = self._control.job(self.id, min(left, _WAIT_STEP_S), self._known["revision"])
        if self._known["error"]:
            raise error_from(**self._known["error"])
        return dict(self._known)

    def cancel(self) -> None:
        """Ends the job; batches under way are finished first."""
        self._known = self._control.cancel_job(self.id)

    def retry(self) -> None:
        """Queues what failed again."""
        self._known = self._control.retry_job(self.id)

    def __repr__(self) -> str:
        return f"<Job {self.id}: {self._known['kind']} {self._known['path']} ({self.state})>"
