"""Bytes that say what they are: every 4 KiB name their object, version and offset and end with a checksum.

A reader can tell right bytes from zeros, old ones, mixtures and misplaced ones, and which version it was given.
"""

from __future__ import annotations

import struct
import zlib

RECORD_BYTES = 4096
MAGIC = int.from_bytes(b"PENSTOCK", "little")

_HEADER = struct.Struct("<QQQQ")
_CHECKSUM = struct.Struct("<Q")
HEADER_BYTES = _HEADER.size
_REPEATS = RECORD_BYTES // _HEADER.size


def record(number: int, version: int, offset: int) -> bytes:
    """The 4 KiB at ``offset``, a multiple of 4 KiB: magic, object, version, offset again and again, then the sum."""
    text = (_HEADER.pack(MAGIC, number, version, offset) * _REPEATS)[: RECORD_BYTES - _CHECKSUM.size]
    return text + _CHECKSUM.pack(zlib.crc32(text))


def content(number: int, version: int, start: int, end: int) -> bytes:
    """Bytes ``start..end`` of object ``number`` in ``version``."""
    first = start - start % RECORD_BYTES
    whole = b"".join(record(number, version, offset) for offset in range(first, end, RECORD_BYTES))
    return whole[start - first : end - first]


def version_in(found: bytes | memoryview, start: int) -> int:
    """The version that bytes from ``start`` on claim to be; at least 128 of them."""
    at = -start % _HEADER.size
    if start % RECORD_BYTES > RECORD_BYTES - 2 * _HEADER.size:
        # The last header of a record is cut short by the sum.
        at = -start % RECORD_BYTES
    return int(_HEADER.unpack_from(found, at)[2])


def check(number: int, version: int, start: int, found: bytes | memoryview) -> None:
    """Fails unless ``found`` is object ``number`` in ``version`` from ``start`` on."""
    wanted = content(number, version, start, start + len(found))
    if found == wanted:
        return
    at = next(index for index, (one, other) in enumerate(zip(found, wanted, strict=True)) if one != other)
    record_at = at - (start + at) % _HEADER.size
    shown = bytes(found[max(0, record_at) : record_at + _HEADER.size])
    raise AssertionError(f"object {number} version {version} offset {start + at}: found {shown.hex(' ', 8)}")
