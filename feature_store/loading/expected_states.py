"""What every customer's state should be, as of a commit, and how that goes on with the log."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from feature_store.errors import InputError
from feature_store.loading.event_history import Cut, History
from feature_store.online.store import StateWriter
from feature_store.state.events import Event
from feature_store.state.layout import Floats, State, StateLayout

EVENT_ID: Final = 8
"""Its place in an item of the log."""


class Ledger:
    """States computed from a history, in arrays; those that commits have touched since stand beside them."""

    def __init__(self, history: History, layout: StateLayout, cut: Cut) -> None:
        expected = history.expected(layout, cut)
        self.cut: Final = cut
        self._history: Final = history
        self._layout: Final = layout
        self._as_of: Final = expected.as_of
        self._slots: Final = expected.slots
        self._row: Final = {str(name): row for row, name in enumerate(expected.customer_ids)}
        self._touched: Final[dict[str, State | None]] = {}
        self.position = history.position
        """The commit as of which this is."""

    @property
    def customers(self) -> set[str]:
        """All who should have a state."""
        known = self._row.keys() - self._touched.keys()
        return known | {name for name, state in self._touched.items() if state is not None}

    def states(self, names: Sequence[str]) -> tuple[Floats, Floats]:
        """``as_of`` [n] and slots [n, slots] of customers; not a number and the identity for those without a state."""
        as_of = np.full(len(names), np.nan)
        slots = np.tile(self._layout.identity, (len(names), 1))
        rows = [(at, self._row[name]) for at, name in enumerate(names) if name in self._row]
        mine = [at for at, _ in rows]
        as_of[mine], slots[mine] = self._as_of[[row for _, row in rows]], self._slots[[row for _, row in rows]]
        for at, name in enumerate(names):
            if name in self._touched:
                state = self._touched[name]
                as_of[at] = np.nan if state is None else state.as_of
                slots[at] = self._layout.identity if state is None else state.slots
        return as_of, slots

    def packed(self, names: Sequence[str]) -> list[bytes | None]:
        """Packed states of customers, None for those without."""
        as_of, slots = self.states(names)
        values = self._layout.pack_many(as_of, slots)
        return [None if missing else value for value, missing in zip(values, np.isnan(as_of), strict=True)]

    def catch_up(self, redis: StateWriter) -> set[str]:
        """Go on to the newest commit, and return the customers who changed.

        InputError where the log has forgotten some since, which it does not while it is held.
        """
        newest, changed = redis.log_position(), set()
        entries = [json.loads(entry) for _, entry in redis.log(self.position + 1, newest)]
        ids = [item[EVENT_ID] for items in entries for item in items if item[0] == "e" and item[EVENT_ID]]
        loaded = self._history.in_source(ids)
        for items in entries:
            changed |= self._take(items, loaded)
        if (redis.archived() or 0) > self.position:
            raise InputError("events were archived while this read them from the log: start it again")
        self.position = newest
        return changed

    def _take(self, items: Sequence[Any], loaded: set[tuple[str, str]]) -> set[str]:
        """Take in a commit, but for the events that were loaded; who changed."""
        aliases, changed = self._history.aliases, set()
        by_customer: dict[str, list[Event]] = {}
        for item in items:
            match item:
                case ["e", name, t, kind, amount, duration_s, _, _, event_id, _, ""]:
                    root = aliases.roots.get(name, name)
                    if (root, event_id) not in loaded:
                        by_customer.setdefault(root, []).append(Event(root, kind, t, amount, duration_s))
                case ["m", alias, root]:
                    aliases.merge(alias, root)
                    self._merge(alias, root)
                    loaded |= {(root, event_id) for name, event_id in loaded if name == alias}
                    changed |= {alias, root}
                case ["d", ids]:
                    aliases.erase(ids)
                    self._touched.update(dict.fromkeys(ids))
                    changed.update(ids)
        for root, mine in by_customer.items():
            self._touched[root] = self._folded(root, mine)
        return changed | by_customer.keys()

    def _merge(self, alias: str, root: str) -> None:
        given_up, stays = self._state(alias), self._state(root)
        both = [state for state in (given_up, stays) if state is not None]
        self._touched[alias] = None
        self._touched[root] = self._layout.merge(*both) if len(both) > 1 else both[0] if both else None

    def _folded(self, name: str, events: Sequence[Event]) -> State:
        before = self._state(name) or State(-np.inf, self._layout.identity)
        as_of, slots = self._layout.fold(np.array([before.as_of]), before.slots[np.newaxis], [0] * len(events), events)
        return State(float(as_of[0]), slots[0])

    def _state(self, name: str) -> State | None:
        as_of, slots = self.states([name])
        return None if np.isnan(as_of[0]) else State(float(as_of[0]), slots[0])
