"""What is kept of erased customers, for commands (synchronous)."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from feature_store.online.command_client import CommandClient
from feature_store.online.commit import Group, Write
from feature_store.online.commit_groups import commit_groups
from feature_store.online.keys import CHUNK, ERASURE_KEY, LAYOUTS_VERSION, PROFILE_PREFIX, TOMBSTONE_PREFIX
from feature_store.state.checksum import remove_checksums, with_checksum
from feature_store.state.profile import Profile, UnreadableProfileError
from feature_store.state.tombstone import KEEP_S, Tombstone, hash_customer_id

OF_CUSTOMER: Final = re.compile(rb"tm:(?:live|[0-9a-f]{8}):(.*)", re.DOTALL)
"""Keys of profiles and states."""


@dataclass(frozen=True)
class ErasedCustomers:
    """Customers that were erased.

    Attributes:
        key: Key of the hashes.
        times: Unix seconds of the erasure by hash.
    """

    key: bytes = b""
    times: Mapping[str, float] = field(default_factory=dict)

    def among(self, customer_ids: Iterable[str]) -> dict[str, float]:
        """Unix seconds of the erasure of those customers that were erased."""
        if not self.times:
            return {}
        hashes = ((name, hash_customer_id(self.key, name)) for name in customer_ids)
        return {name: self.times[hashed] for name, hashed in hashes if hashed in self.times}


def restore_tombstones(client: CommandClient, erased: ErasedCustomers) -> None:
    """Remember erased customers in a Redis that has lost them.

    Servers read the key again, because the version of the layouts changes; StoreUnavailableError.
    """
    now = time.time()
    pipeline = client.redis.pipeline(transaction=False)
    for hashed, erased_at in erased.times.items():
        if (left_s := int(erased_at + KEEP_S - now)) > 0:
            key = TOMBSTONE_PREFIX + hashed.encode()
            pipeline.set(key, with_checksum(key, Tombstone(erased_at).pack()), ex=min(left_s, KEEP_S), nx=True)
    client.call(pipeline.execute)
    if erased.key and client.call(client.redis.get, ERASURE_KEY) != erased.key:
        client.call(client.redis.set, ERASURE_KEY, erased.key)
        client.call(client.redis.delete, LAYOUTS_VERSION)


def forget_customers(client: CommandClient, erased: ErasedCustomers, came_back: Collection[str]) -> None:
    """Remove the states of erased customers from a Redis that has lost their erasure, and what it knew of them.

    A customer who has come back since then keeps its consent, and gets its state with the next load.

    Args:
        client: Redis.
        erased: The customers.
        came_back: Ids of the customers that have come back.
    """
    if not erased.times:
        return
    scan = client.redis.scan_iter(b"tm:*:*", CHUNK)
    while keys := client.call(lambda: list(islice(scan, CHUNK))):
        names = {key: match[1].decode("utf-8", "surrogateescape") for key in keys if (match := OF_CUSTOMER.match(key))}
        gone = erased.among(names.values())
        for key, name in names.items():
            if name in gone:
                _forget(client, key, gone[name], came_back=name in came_back)


def _forget(client: CommandClient, key: bytes, erased_at: float, *, came_back: bool) -> None:
    (value,) = remove_checksums([key], [client.call(client.redis.get, key)])
    writes = [Write(key, value, None)]
    if came_back and value is not None and key.startswith(PROFILE_PREFIX):
        try:
            profile = Profile.from_stored(value)
        except UnreadableProfileError:
            profile = Profile(scoring=False)
        writes = [Write(key, value, Profile(profile.scoring, profile.automated_response, not_before=erased_at).pack())]
    if commit_groups(client, [Group(writes)]).conflicts:  # it changed in the meantime
        _forget(client, key, erased_at, came_back=came_back)


def read_erased_customers(client: CommandClient) -> ErasedCustomers:
    """All erased customers that Redis remembers; StoreUnavailableError."""
    key, times = client.call(client.redis.get, ERASURE_KEY) or b"", dict[str, float]()
    scan = client.redis.scan_iter(TOMBSTONE_PREFIX + b"*", CHUNK)
    while keys := client.call(lambda: list(islice(scan, CHUNK))):
        values = remove_checksums(keys, client.call(client.redis.mget, keys))
        for name, value in zip(keys, values, strict=True):
            if (tombstone := Tombstone.from_stored(value)) is not None:
                times[name[len(TOMBSTONE_PREFIX) :].decode()] = tombstone.erased_at
    return ErasedCustomers(key, times)
