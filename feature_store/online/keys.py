"""Names of the keys in Redis, and what is stored under them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from feature_store.state.tombstone import hash_customer_id

LOG: Final = b"tm:log"
LOG_RUN: Final = b"tm:log:run"
LOG_EPOCHS: Final = b"tm:log:history"
ARCHIVED: Final = b"tm:archived"
HELD: Final = b"tm:held"
ERASURE_KEY: Final = b"tm:erasure:key"
TOMBSTONE_PREFIX: Final = b"tm:erased:"
STORED_LAYOUTS: Final = b"tm:layouts"
ACTIVE_LAYOUTS: Final = b"{tm:layouts}:folded"
LAYOUTS_VERSION: Final = b"{tm:layouts}:tag"
"""The braces keep these in one slot of a cluster, so that one script can change them."""
PROFILE_PREFIX: Final = b"tm:live:"
CHUNK: Final = 1000
"""Keys per command."""


class StoredItem(NamedTuple):
    """A kind of key in Redis.

    Attributes:
        key: Pattern of the key.
        kind: Type of the value in Redis.
        content: What the value holds.
        purpose: What it is needed for.
        lifetime: When it is removed.
        personal: Whether it holds data about a customer.
    """

    key: str
    kind: str
    content: str
    purpose: str
    lifetime: str
    personal: bool


STORED_ITEMS: Final = (
    StoredItem(
        "tm:<fingerprint>:<id>",
        "string",
        "A customer's state under the features of this fingerprint, packed.",
        "A score is computed from it.",
        "Until the customer is deleted or merged into another, or `tidemark prune` removes the features. A load "
        "replaces it, and removes it if nothing is known about the customer any more.",
        personal=True,
    ),
    StoredItem(
        "tm:live:<id>",
        "string",
        "A customer's profile, packed: consent, first and last event, channels, interests, ids that were merged into "
        "it, and hashes of recent events. For an id that was merged: the customer that it belongs to.",
        "It enforces consent, counts each event once, and answers GetCustomer.",
        "Until the customer is deleted. Hashes of events are dropped once the events are older than "
        "`max_lateness_hours`.",
        personal=True,
    ),
    StoredItem(
        "tm:log:<position>",
        "string",
        "The log entry of a commit: events, merges and erasures, as JSON.",
        "The archiver reads it, and so do loads.",
        "Until the archiver has moved it into the archive. Events of a customer who is deleted are removed at once; "
        "the erasure, which names the customer's ids, waits for the archiver.",
        personal=True,
    ),
    StoredItem(
        "tm:log",
        "string",
        "Position of the newest commit. Every commit that changes customers increments it.",
        "It orders commits, and shows a load what has changed.",
        "Kept.",
        personal=False,
    ),
    StoredItem(
        "tm:log:run",
        "string",
        "The run of Redis (its `run_id`) that made the newest commit.",
        "A commit in another run begins a new epoch of the log.",
        "Kept.",
        personal=False,
    ),
    StoredItem(
        "tm:log:history",
        "string",
        "Epochs of the log, oldest first, with commas between: the position at which each begins, and its random name.",
        "They identify the history that a position belongs to.",
        "Kept.",
        personal=False,
    ),
    StoredItem(
        "tm:erased:<hash>",
        "string",
        "What is kept of a customer who was deleted: the time, under a keyed hash of the id.",
        "Neither an event from before nor a load brings the customer back.",
        "400 days.",
        personal=False,
    ),
    StoredItem(
        "tm:erasure:key",
        "string",
        "Random key of the hashes of deleted customers.",
        "Without it nobody can tell whether an id belongs to one of the hashes.",
        "Kept.",
        personal=False,
    ),
    StoredItem(
        "tm:archived",
        "string",
        "Position up to which everything is archived; missing if there is no archive.",
        "The server refuses events if too many commits wait for the archiver.",
        "Kept.",
        personal=False,
    ),
    StoredItem(
        "tm:held",
        "string",
        "Position after which log entries are kept although they are archived.",
        "A load reads them.",
        "Until the load ends. It expires by itself if the load was killed.",
        personal=False,
    ),
    StoredItem(
        "tm:<fingerprint>",
        "hash",
        "Facts about the last load of these features.",
        "`tidemark verify` repeats the load's computation, and a server sees whether the features are loaded.",
        "Until `tidemark prune` removes the features.",
        personal=False,
    ),
    StoredItem(
        "tm:layouts",
        "set",
        "Fingerprints of the features that have states.",
        "A server switches to a model only if its features are loaded.",
        "A fingerprint is removed by `tidemark prune`.",
        personal=False,
    ),
    StoredItem(
        "{tm:layouts}:folded",
        "hash",
        "The active features by fingerprint: those that live events are counted in.",
        "Every server updates the states of all active features.",
        "A fingerprint is removed by `tidemark prune`.",
        personal=False,
    ),
    StoredItem(
        "{tm:layouts}:tag",
        "string",
        "Version of the active features, replaced whenever they change.",
        "A commit that was computed for other features is refused.",
        "Kept.",
        personal=False,
    ),
)
"""All kinds of keys. ``<id>`` is a customer id, ``<fingerprint>`` that of a list of features."""


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


def tombstone_keys(erasure_key: bytes, customer_ids: Sequence[str]) -> list[bytes]:
    """Keys of what is kept of erased customers, in order."""
    return [TOMBSTONE_PREFIX + hash_customer_id(erasure_key, name).encode() for name in customer_ids]


def log_key(position: int) -> bytes:
    """Key of a commit's log entry."""
    return b"%b:%d" % (LOG, position)


def _keys(prefix: bytes, customer_ids: Sequence[str]) -> list[bytes]:
    # surrogateescape: keys found by a scan that are not UTF-8 round-trip
    return [prefix + customer_id.encode("utf-8", "surrogateescape") for customer_id in customer_ids]
