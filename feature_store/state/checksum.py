"""A check over every packed value in Redis: what was torn, flipped or put under another key is never taken for right.

Both kinds of values keep four bytes of a known content at 4 to 7 (a state the fingerprint, a record zeros). Stored they
are mixed with the CRC-32 of the key and of all else but the position, which the commit's script puts in. Read back
they come out as they were, or not: then whoever unpacks the value says that it cannot be used. It takes no byte more,
and a value that is wrong still names its position, so that it can be written over and erased like any other.
"""

from __future__ import annotations

from typing import Final
from zlib import crc32

KNOWN: Final = slice(4, 8)
"""The bytes that are mixed."""
REST: Final = 16
"""After the position."""


def sealed(key: bytes, value: bytes) -> bytes:
    """A packed value as it is stored under ``key``, and the other way round; too short to be one: as it is."""
    if len(value) < REST:
        return value
    head = value[:4]
    mixed = int.from_bytes(value[KNOWN], "little") ^ crc32(value[REST:], crc32(key + head))
    return b"%b%b%b" % (head, mixed.to_bytes(4, "little"), value[8:])


opened: Final = sealed
"""Mixing twice gives back what there was."""
