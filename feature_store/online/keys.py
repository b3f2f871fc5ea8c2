"""Names of the keys in Redis.

========================== ==================================================================================
key                        value
========================== ==================================================================================
``tm:<fingerprint>:<id>``  a customer's state (``feature_store.state.layout``) under one layout
``tm:<fingerprint>``       hash: facts about the last load of that layout
``tm:layouts``             set: fingerprints of the layouts that have states
``{tm:layouts}:folded``    hash: the active layouts, into which live events are folded: features by fingerprint
``{tm:layouts}:tag``       version of that hash, replaced whenever it changes
``tm:live:<id>``           a customer's profile (``feature_store.state.profile``), or whose alias this id is
``tm:log``                 position of the newest commit; every commit that changes customers increments it
``tm:log:<position>``      log entry of a commit (``feature_store.state.log_entries``), until it is archived
``tm:archived``            position up to which everything is archived; missing if there is no archive
``tm:held``                position after which log entries are kept although archived, while a load is running
========================== ==================================================================================

States and profiles are stored with a checksum (``feature_store.state.checksum``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

LOG: Final = b"tm:log"
ARCHIVED: Final = b"tm:archived"
HELD: Final = b"tm:held"
STORED_LAYOUTS: Final = b"tm:layouts"
ACTIVE_LAYOUTS: Final = b"{tm:layouts}:folded"
LAYOUTS_VERSION: Final = b"{tm:layouts}:tag"
"""The braces keep these in one slot of a cluster, so that one script can change them."""
PROFILE_PREFIX: Final = b"tm:live:"
CHUNK: Final = 1000
"""Keys per command."""


class Keys:
    """The keys of one layout."""

    def __init__(self, fingerprint: str) -> None:
        self.load: Final = f"tm:{fingerprint}".encode()
        self.prefix: Final = self.load + b":"

    def states(self, customer_ids: Sequence[str]) -> list[bytes]:
        """Keys of customers' states, in order."""
        return _keys(self.prefix, customer_ids)


def profile_keys(customer_ids: Sequence[str]) -> list[bytes]:
    """Keys of customers' profiles, in order."""
    return _keys(PROFILE_PREFIX, customer_ids)


def log_key(position: int) -> bytes:
    """Key of a commit's log entry."""
    return b"%b:%d" % (LOG, position)


def _keys(prefix: bytes, customer_ids: Sequence[str]) -> list[bytes]:
    # surrogateescape: keys found by a scan that are not UTF-8 round-trip
    return [prefix + customer_id.encode("utf-8", "surrogateescape") for customer_id in customer_ids]
