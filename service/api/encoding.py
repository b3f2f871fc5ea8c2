"""Fields of protobuf messages as bytes, for responses that are too many or too large to be built as message objects."""

from __future__ import annotations

from typing import Final

_CONTINUES: Final = 0x80
"""The bit of a varint's byte that says that another byte follows; the other seven hold the number."""
VARINTS: Final = [
    bytes([n]) if n < _CONTINUES else bytes([n & ~_CONTINUES & 0xFF | _CONTINUES, n >> 7]) for n in range(1 << 14)
]
"""The encoded numbers of one or two bytes."""


def varint(number: int) -> bytes:
    """An encoded number of zero or more."""
    if number < len(VARINTS):
        return VARINTS[number]
    encoded = bytearray()
    while number >= _CONTINUES:
        encoded.append(number & 0x7F | _CONTINUES)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def field(number: int, data: bytes) -> bytes:
    """A length-delimited field (of less than 16 KiB, number below 16)."""
    return b"%c%b%b" % (number << 3 | 2, VARINTS[len(data)], data)


def long_field(number: int, data: bytes) -> bytes:
    """A length-delimited field of any length, number below 16."""
    return b"%c%b%b" % (number << 3 | 2, varint(len(data)), data)
