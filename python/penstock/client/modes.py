"""Modes of files, as the built-in ``open`` has them."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

__all__ = ["Mode", "WriteMode", "checked_mode", "mode_of"]

WriteMode: TypeAlias = Literal["wb", "xb", "ab", "wb+", "xb+", "ab+", "rb+"]
"""How the core is asked for a file to write."""


class Mode(NamedTuple):
    """What a file is opened for."""

    action: Literal["r", "w", "x", "a"]
    """Read what is there; write a new content; that, where nothing has the name; write behind what is there."""
    both: bool
    """Read and written."""
    is_text: bool

    @property
    def writes(self) -> bool:
        """Whether anything can be written."""
        return self.both or self.action != "r"

    @property
    def core(self) -> WriteMode:
        """The mode of what is written, as the core has it."""
        names: dict[tuple[str, bool], WriteMode] = {
            ("w", False): "wb",
            ("x", False): "xb",
            ("a", False): "ab",
            ("w", True): "wb+",
            ("x", True): "xb+",
            ("a", True): "ab+",
            ("r", True): "rb+",
        }
        return names[self.action, self.both]


def mode_of(path: str, mode: str) -> Mode:
    """What a mode means.

    Args:
        path: of the file, for the error.
        mode: one of ``r``, ``w``, ``x`` and ``a``, and perhaps ``+``, and ``b`` or ``t``, in any order.
    Raises:
        ValueError: anything else.
    """
    actions = [letter for letter in mode if letter in "rwxa"]
    if len(actions) != 1 or len(set(mode)) != len(mode) or set(mode) - set("rwxa+bt") or {"b", "t"} <= set(mode):
        raise ValueError(f"open {path}: mode {mode!r} is not one of r, w, x and a, and perhaps +, and b or t")
    return Mode(actions[0], "+" in mode, "b" not in mode)  # type: ignore[arg-type]  # one of the four


def checked_mode(path: str, mode: str, version: str | None, durability: str | None, *, has_text_options: bool) -> Mode:
    """What a mode means that is given together with options.

    Raises:
        ValueError: as :func:`mode_of`, and for an option that the mode does not have.
    """
    opened = mode_of(path, mode)
    if version is not None and opened.writes:
        raise ValueError(f"open {path}: a version is read, not written: mode {mode!r}")
    if durability is not None and not opened.writes:
        raise ValueError(f"open {path}: durability is of files that are written, not of mode {mode!r}")
    if has_text_options and not opened.is_text:
        raise ValueError(f"open {path}: text options need mode {mode.replace('b', '')!r}")
    return opened
