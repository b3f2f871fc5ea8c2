"""Describes the fields of packed values. The formats, and their documentation, are made from these descriptions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class PackedField(NamedTuple):
    """A field of a packed value, little-endian.

    Attributes:
        name: Name of the field.
        kind: Its type as a NumPy type string, such as ``<u8`` for an unsigned integer of eight bytes.
        meaning: What it holds.
    """

    name: str
    kind: str
    meaning: str


STRUCT_CODES = {"u1": "B", "<u2": "H", "<u4": "I", "<u8": "Q", "<f4": "f", "<f8": "d"}
"""Codes of :mod:`struct` by NumPy type; other types are bytes of fixed length, such as ``V4``."""


def struct_format(fields: Sequence[PackedField]) -> str:
    """The format of :mod:`struct` for some fields."""
    return "<" + "".join(STRUCT_CODES.get(field.kind) or f"{field.kind[1:]}s" for field in fields)
