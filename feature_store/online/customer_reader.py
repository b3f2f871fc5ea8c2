"""Reads customers that are to be changed: all of their states, their profiles, and what is kept of erased ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from feature_store.online.keys import Keys, profile_keys, tombstone_keys
from feature_store.online.store import RedisStore
from feature_store.state.folding import EventFolder, StoredCustomer
from feature_store.state.profile import Profile, UnreadableProfileError, alias_of


class LayoutView:
    """The active layouts that a change is computed for, the primary one first; commits are refused once they change."""

    def __init__(self, folder: EventFolder, version: bytes, erasure_key: bytes = b"") -> None:
        self.folder: Final = folder
        self.version: Final = version
        self.erasure_key: Final = erasure_key
        self.layouts: Final = folder.layouts
        self.keys: Final = [Keys(layout.fingerprint) for layout in self.layouts]


async def read_customers(
    store: RedisStore, view: LayoutView, ids: Sequence[str], *, tombstones: bool = False
) -> dict[str, StoredCustomer]:
    """The customers that ids belong to, by id.

    Args:
        store: Redis.
        view: Whose states are read.
        ids: Customer ids and aliases, each once.
        tombstones: Also read what is kept of erased customers, of those that have no profile.

    Raises:
        StoreUnavailableError: Redis does not answer.
    """
    customers: dict[str, StoredCustomer] = {}
    names = {customer_id: customer_id for customer_id in ids}  # the id to read for each id
    while names:
        requested = list(names.values())
        state_keys = [key for keys in view.keys for key in keys.states(requested)]
        values = await store.values([*state_keys, *profile_keys(requested)])
        columns = [values[at : at + len(requested)] for at in range(0, len(values), len(requested))]
        aliases = {}
        for (customer_id, name), *states, profile in zip(names.items(), *columns, strict=True):
            if (root := _alias_of(profile)) is not None:
                aliases[customer_id] = root
            else:
                customers[customer_id] = StoredCustomer(name, states, profile)
        names = aliases
    if tombstones and (new := [customer for customer in customers.values() if customer.profile is None]):
        keys = tombstone_keys(view.erasure_key, [customer.customer_id for customer in new])
        for customer, tombstone in zip(new, await store.values(keys), strict=True):
            customer.tombstone = tombstone
    return customers


async def read_grouped(
    store: RedisStore, view: LayoutView, ids: Sequence[str], indexes: Sequence[int], *, tombstones: bool = False
) -> tuple[list[StoredCustomer], list[list[int]]]:
    """The customers that ids belong to, each once, and the indexes of the ids of each."""
    stored = await read_customers(store, view, list(dict.fromkeys(ids)), tombstones=tombstones)
    by_customer: dict[str, tuple[StoredCustomer, list[int]]] = {}
    for customer_id, index in zip(ids, indexes, strict=True):
        customer = stored[customer_id]
        by_customer.setdefault(customer.customer_id, (customer, []))[1].append(index)
    return [customer for customer, _ in by_customer.values()], [places for _, places in by_customer.values()]


def known_ids(customer: StoredCustomer) -> set[str]:
    """All ids of a customer, as far as its profile can be read."""
    try:
        return {customer.customer_id, *Profile.from_stored(customer.profile).aliases}
    except UnreadableProfileError:
        return {customer.customer_id}


def _alias_of(profile: bytes | None) -> str | None:
    try:
        return alias_of(profile)
    except UnreadableProfileError:
        return None
