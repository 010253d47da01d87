"""Progress while the demo works: a live line on a terminal, a line per step elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

__all__ = ["Progress"]


class Progress:
    """Says what is going on. Used as a context; one step at a time."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status: Status | None = console.status("…") if console.is_terminal else None
        self._text = ""

    def __enter__(self) -> Self:
        if self._status:
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status:
            self._status.stop()

    def step(self, text: str) -> None:
        """The next thing begins; shown where a line can be shown again."""
        self._text = text
        if self._status:
            self._status.update(text)

    def done(self, seconds: float) -> None:
        """It ended: the line stays, with its time."""
        line = f"[dim]{seconds:8.2f} s[/dim]  {self._text}"
        self._console.print(line, highlight=False, soft_wrap=True)
