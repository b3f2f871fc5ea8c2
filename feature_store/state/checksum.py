"""A checksum over every packed value in Redis, so that a damaged value, or one under the wrong key, is never used.

Both kinds of packed value have four bytes of known content at offset 4: a state the fingerprint of its layout, a
profile zeros. In Redis these bytes are XORed with the CRC-32 of the key and of everything else in the value except the
commit position, which the commit script fills in. If anything was altered, the bytes do not come out as expected when
the value is read, and unpacking reports it as unusable. The checksum takes no extra space, and a damaged value still
has a readable position, so it can be overwritten and erased like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from zlib import crc32

CHECKED: Final = slice(4, 8)
"""The bytes of known content, which hold the checksum in Redis."""
BODY: Final = 16
"""Offset of the first byte after the position."""


def with_checksum(key: bytes, value: bytes) -> bytes:
    """The value to store under a key; a value too short to be a packed one is returned unchanged."""
    if len(value) < BODY:
        return value
    head = value[:4]
    mixed = int.from_bytes(value[CHECKED], "little") ^ crc32(value[BODY:], crc32(key + head))
    return b"%b%b%b" % (head, mixed.to_bytes(4, "little"), value[8:])


without_checksum: Final = with_checksum
"""The packed value of what is stored under a key: applying the XOR twice restores the original."""


def remove_checksums(keys: Sequence[bytes], values: Sequence[bytes | None]) -> list[bytes | None]:
    """The packed values of what is stored under keys, in order."""
    return [None if value is None else without_checksum(key, value) for key, value in zip(keys, values, strict=True)]
