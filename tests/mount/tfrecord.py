"""TFRecord as its format says: length, checksum of it, data, checksum of that."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

_POLYNOMIAL = 0x82F63B78
_MASK_DELTA = 0xA282EAD8


def _table() -> list[int]:
    rows = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = (value >> 1) ^ (_POLYNOMIAL if value & 1 else 0)
        rows.append(value)
    return rows


_TABLE = _table()


def crc32c(content: bytes) -> int:
    """Castagnoli's checksum, which the standard library lacks."""
    value = 0xFFFFFFFF
    for byte in content:
        value = (value >> 8) ^ _TABLE[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF


def masked(content: bytes) -> int:
    """The checksum as it stands in a file."""
    value = crc32c(content)
    return (((value >> 15) | (value << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def pack(records: list[bytes]) -> bytes:
    """A file with these records."""
    packed = []
    for record in records:
        length = struct.pack("<Q", len(record))
        packed.append(length + struct.pack("<I", masked(length)) + record + struct.pack("<I", masked(record)))
    return b"".join(packed)


def read(stream: BinaryIO) -> Iterator[bytes]:
    """The records of a file; fails at the first whose checksum does not match."""
    while header := stream.read(12):
        length, length_sum = struct.unpack("<QI", header)
        assert length_sum == masked(header[:8]), f"the length of a record is wrong at {stream.tell() - 12}"
        record = stream.read(length)
        assert struct.unpack("<I", stream.read(4))[0] == masked(record), f"a record is wrong at {stream.tell()}"
        yield record
