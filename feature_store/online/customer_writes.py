"""The writes by which customers are changed in Redis. No I/O."""

from __future__ import annotations

from collections.abc import Sequence

from feature_store.online.commit import Write
from feature_store.online.customer_reader import LayoutView
from feature_store.online.keys import profile_keys, tombstone_keys
from feature_store.state.folding import CustomerChange, StoredCustomer
from feature_store.state.layout import MAGIC, State, StateLayout, needs_profile, with_profile
from feature_store.state.profile import UnreadableProfileError


def changed_writes(view: LayoutView, customer: StoredCustomer, change: CustomerChange) -> list[Write]:
    """The writes of a customer's change. A state that is not rewritten is not checked for conflicts either."""
    if change.profile is None:
        return []
    states = change.states or [None] * len(customer.states)
    writes = [
        Write(key, old, new)
        for keys, old, new in zip(view.keys, customer.states, states, strict=True)
        if new is not None
        for key in keys.states([customer.customer_id])
    ]
    return [*writes, *profile_writes(view, customer, change.profile)]


def profile_writes(view: LayoutView, customer: StoredCustomer, profile: bytes) -> list[Write]:
    """The write of a customer's profile. A new one is refused if the customer was erased in the meantime."""
    (key,) = profile_keys([customer.customer_id])
    writes = [Write(key, customer.profile, profile)]
    if customer.profile is None:
        (key,) = tombstone_keys(view.erasure_key, [customer.customer_id])
        writes.append(Write(key, customer.tombstone, None, check_only=True))
    return writes


def flag_writes(keys: Sequence[bytes], states: Sequence[bytes | None]) -> list[Write]:
    """The writes that let the states of a customer say that it has a profile, when it gets one.

    Args:
        keys: Keys of its states.
        states: What is stored under them. A missing state must still be missing when the profile is written; one that
            a load writes afterwards says that there is a profile.
    """
    writes = []
    for key, state in zip(keys, states, strict=True):
        if state is None:
            writes.append(Write(key, None, None, check_only=True))
        elif state.startswith(MAGIC) and not needs_profile(state):
            writes.append(Write(key, state, with_profile(state)))
    return writes


def merged_writes(view: LayoutView, source: StoredCustomer, target: StoredCustomer) -> list[Write]:
    """The writes that merge the states of two customers in all layouts.

    Raises:
        UnreadableProfileError: A state of the primary layout cannot be read. In another layout the target keeps the
            state that it has until the next load.
    """
    writes = []
    for layout, keys, given_up, stays in zip(view.layouts, view.keys, source.states, target.states, strict=True):
        source_key, target_key = keys.states([source.customer_id, target.customer_id])
        try:
            merged = _merged_state(layout, given_up, stays)
        except UnreadableProfileError:
            if layout is view.layouts[0]:
                raise
            merged = stays
        writes += [Write(source_key, given_up, None), Write(target_key, stays, merged)]
    return writes


def _merged_state(layout: StateLayout, given_up: bytes | None, stays: bytes | None) -> bytes | None:
    """The packed state of both; UnreadableProfileError if one cannot be read."""
    states = layout.unpack([given_up, stays])
    if (states.found & ~states.valid).any():
        raise UnreadableProfileError
    parts = [State(float(states.as_of[row]), states.slots[row]) for row in (0, 1) if states.found[row]]
    if not parts:
        return None
    return with_profile(layout.pack(parts[0] if len(parts) == 1 else layout.merge(*parts)))
