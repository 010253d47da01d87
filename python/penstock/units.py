"""Sizes and durations as people write them, ``50GiB`` and ``15min``, and back. Pure; standard library only."""

from __future__ import annotations

import re

from penstock.errors import InvalidInputError

__all__ = ["format_count", "format_duration", "format_rate", "format_size", "parse_duration", "parse_size"]

_SIZE_UNITS = {
    "": 1,
    "b": 1,
    "k": 10**3,
    "kb": 10**3,
    "m": 10**6,
    "mb": 10**6,
    "g": 10**9,
    "gb": 10**9,
    "t": 10**12,
    "tb": 10**12,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
}
_DURATION_UNITS = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.ASCII | re.IGNORECASE)
_LARGEST_SIZE = (1 << 63) - 1


def parse_size(value: str | int) -> int:
    """Bytes from ``50GiB``, ``200MB``, ``4096``; binary (KiB, MiB, GiB, TiB) and decimal units.

    Raises:
        InvalidInputError: not a size, negative, or beyond 8 EiB.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise _invalid("size", value, "write it as 50GiB, 200MB or a number of bytes")
    number, unit = _split("size", str(value), "write it as 50GiB, 200MB or a number of bytes")
    factor = _SIZE_UNITS.get(unit.lower())
    if factor is None:
        raise _invalid("size", value, "its unit must be one of B, KB, MB, GB, TB, KiB, MiB, GiB, TiB")
    whole = int(number) * factor if number.isdigit() else int(float(number) * factor)
    if whole > _LARGEST_SIZE:
        raise _invalid("size", value, "that is more than 8 EiB")
    return whole


def parse_duration(value: str | float) -> float:
    """Seconds from ``60s``, ``15min``, ``1.5h``, ``7d``, ``250ms`` or a number of seconds.

    Raises:
        InvalidInputError: not a duration, or negative.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise _invalid("duration", value, "write it as 60s, 15min or 1.5h")
    number, unit = _split("duration", str(value), "write it as 60s, 15min or 1.5h")
    factor = _DURATION_UNITS.get(unit.lower())
    if factor is None:
        raise _invalid("duration", value, "its unit must be one of ms, s, min, h, d")
    return float(number) * factor


def format_size(size_bytes: float) -> str:
    """``1.5 GiB``; whole numbers of bytes below 1 KiB."""
    if size_bytes < 1024:
        return f"{int(size_bytes)} B"
    amount = float(size_bytes)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        amount /= 1024
        if amount < 1024 or unit == "TiB":
            break
    return f"{amount:.0f} {unit}" if amount >= 100 else f"{amount:.1f} {unit}"


def format_rate(bytes_per_s: float) -> str:
    """``240 MiB/s``."""
    return f"{format_size(bytes_per_s)}/s"


def format_duration(duration_s: float) -> str:
    """``1 h 05 min``, ``3 min 20 s``, ``12 s``, ``0.4 s``, ``3 ms``: two units at most."""
    if duration_s < 0.1:
        return f"{duration_s * 1000:.0f} ms"
    if duration_s < 10:
        return f"{duration_s:.1f} s"
    whole = round(duration_s)
    if whole < 60:
        return f"{whole} s"
    minutes, seconds = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s" if seconds else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def format_count(count: int, noun: str) -> str:
    """A number with its noun, as in ``1 file`` or ``2,000 files``."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _split(what: str, text: str, advice: str) -> tuple[str, str]:
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise _invalid(what, text, advice)
    return match[1], match[2]


def _invalid(what: str, value: object, advice: str) -> InvalidInputError:
    return InvalidInputError(f"read {what} {value!r}", f"it is not a {what}", advice)
