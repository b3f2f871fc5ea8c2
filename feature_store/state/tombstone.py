"""Tombstones: what is kept of an erased customer, so that neither a late event nor a load brings it back.

A tombstone is stored under a keyed hash of the id (BLAKE2b with a random key that is kept in Redis), and
holds the time of the erasure. It expires after :data:`KEEP_S`. Until the customer is removed from the log as well, it
also names the position of the newest log entry that mentions it, so that an erasure that was interrupted can be
completed by repeating it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from feature_store.state.packed import PackedField, struct_format

KEEP_S: Final = 400 * 86_400
"""How long tombstones are kept. A source that still has a customer after that brings it back with the next load."""
HASH_BYTES: Final = 16
MAGIC: Final = b"tx"
VERSION: Final = 1
HEAD_FIELDS: Final = (
    PackedField("magic", "S2", "The letters tx."),
    PackedField("version", "u1", "Version of the format."),
    PackedField("flags", "u1", "Zero."),
    PackedField("zeros", "V4", "Zeros, in Redis the checksum."),
    PackedField("position", "V8", "Position of the commit that wrote the value."),
    PackedField("erased_at", "<f8", "Time of the erasure in unix seconds."),
    PackedField("pending", "<u2", "Number of positions of log entries (`<u8`) that follow."),
)
_HEAD: Final = struct.Struct(struct_format(HEAD_FIELDS))
_POSITION: Final = struct.Struct("<Q")


@dataclass(frozen=True)
class Tombstone:
    """What is kept of an erased customer.

    Attributes:
        erased_at: Unix seconds; events up to this time are not accepted any more.
        pending: Positions of log entries from which the customer is still to be removed.
    """

    erased_at: float
    pending: Sequence[int] = ()

    def pack(self) -> bytes:
        """The packed value, with position 0 (``feature_store.online.commit``)."""
        head = _HEAD.pack(MAGIC, VERSION, 0, bytes(4), bytes(8), self.erased_at, len(self.pending))
        return head + b"".join(map(_POSITION.pack, self.pending))

    @staticmethod
    def from_stored(value: bytes | None) -> Tombstone | None:
        """The tombstone of a stored value; None if there is none. A damaged one forbids everything."""
        if value is None:
            return None
        try:
            magic, version, _, zeros, _, erased_at, count = _HEAD.unpack_from(value)
            pending = [_POSITION.unpack_from(value, _HEAD.size + _POSITION.size * at)[0] for at in range(count)]
        except struct.error:
            return Tombstone(math.inf)
        if (magic, version, zeros) != (MAGIC, VERSION, bytes(4)) or math.isnan(erased_at):
            return Tombstone(math.inf)
        return Tombstone(erased_at, pending)


def hash_customer_id(key: bytes, customer_id: str) -> str:
    """The keyed hash under which an erased customer is remembered, in hexadecimal."""
    data = customer_id.encode("utf-8", "surrogateescape")
    return blake2b(data, key=key, digest_size=HASH_BYTES).hexdigest()
