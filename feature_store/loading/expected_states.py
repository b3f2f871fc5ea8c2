"""The state that every customer should have as of a commit, kept up to date with the log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from feature_store.errors import InputError
from feature_store.loading.event_history import EventHistory, LoadPoint
from feature_store.online.event_log import EventLog
from feature_store.state.events import Event
from feature_store.state.layout import Floats, State, StateLayout
from feature_store.state.log_entries import LoggedErasure, LoggedEvent, LoggedMerge, LogItem, decode_entry


class ExpectedStates:
    """States computed from a history, in arrays, and beside them those that later commits have changed.

    Attributes:
        point: The load point.
        position: Position of the commit as of which these are the states.
        erased: Ids that were erased since the history was read.
    """

    def __init__(self, history: EventHistory, layout: StateLayout, point: LoadPoint) -> None:
        computed = history.states(layout, point)
        self.point: Final = point
        self.position = history.position
        self._history: Final = history
        self._layout: Final = layout
        self._as_of: Final = computed.as_of
        self._slots: Final = computed.slots
        self._row: Final = {str(name): row for row, name in enumerate(computed.customer_ids)}
        self._changed: Final[dict[str, State | None]] = {}
        self.erased: Final[set[str]] = set()

    @property
    def customers(self) -> set[str]:
        """Ids of all customers that should have a state."""
        unchanged = self._row.keys() - self._changed.keys()
        return unchanged | {name for name, state in self._changed.items() if state is not None}

    def states(self, names: Sequence[str]) -> tuple[Floats, Floats]:
        """``as_of`` ``[n]`` and slots ``[n, slots]``; NaN and the identity for customers without a state."""
        as_of = np.full(len(names), np.nan)
        slots = np.tile(self._layout.identity, (len(names), 1))
        at = [at for at, name in enumerate(names) if name in self._row]
        rows = [self._row[names[i]] for i in at]
        as_of[at], slots[at] = self._as_of[rows], self._slots[rows]
        for i, name in enumerate(names):
            if name in self._changed:
                state = self._changed[name]
                as_of[i] = np.nan if state is None else state.as_of
                slots[i] = self._layout.identity if state is None else state.slots
        return as_of, slots

    def packed(self, names: Sequence[str]) -> list[bytes | None]:
        """Packed states of customers; None for those without a state."""
        as_of, slots = self.states(names)
        values = self._layout.pack_many(as_of, slots)
        return [None if missing else value for value, missing in zip(values, np.isnan(as_of), strict=True)]

    def catch_up(self, log: EventLog) -> set[str]:
        """Apply the log up to the newest commit.

        Returns:
            Ids of the customers that changed.

        Raises:
            InputError: Entries were removed from the log in the meantime, which does not happen while it is held.
        """
        newest, changed = log.position(), set()
        entries = [decode_entry(position, data) for position, data in log.entries(self.position + 1, newest)]
        ids = [item.event_id for items in entries for item in items if isinstance(item, LoggedEvent) and item.event_id]
        loaded = self._history.in_source(ids)
        for items in entries:
            changed |= self._apply(items, loaded)
        if (log.archived() or 0) > self.position:
            raise InputError("events were archived while they were being read from the log: start again")
        self.position = newest
        return changed

    def _apply(self, items: Sequence[LogItem], loaded: set[tuple[str, str]]) -> set[str]:
        """Apply a commit, except events that are in the source (``loaded``); ids of the customers that changed."""
        aliases, changed = self._history.aliases, set()
        by_customer: dict[str, list[Event]] = {}
        for item in items:
            match item:
                case LoggedEvent(mark=""):
                    root = aliases.roots.get(item.customer_id, item.customer_id)
                    if (root, item.event_id) not in loaded:
                        event = Event(root, item.event_type, item.t, item.amount, item.duration_s)
                        by_customer.setdefault(root, []).append(event)
                case LoggedMerge(alias, root):
                    aliases.merge(alias, root)
                    self._merge(alias, root)
                    loaded |= {(root, event_id) for name, event_id in loaded if name == alias}
                    changed |= {alias, root}
                case LoggedErasure(ids):
                    aliases.erase(ids)
                    self._changed.update(dict.fromkeys(ids))
                    self.erased.update(ids)
                    changed.update(ids)
        for root, events in by_customer.items():
            self._changed[root] = self._folded(root, events)
        return changed | by_customer.keys()

    def _merge(self, alias: str, root: str) -> None:
        both = [state for name in (alias, root) if (state := self._state(name)) is not None]
        self._changed[alias] = None
        self._changed[root] = self._layout.merge(*both) if len(both) > 1 else both[0] if both else None

    def _folded(self, name: str, events: Sequence[Event]) -> State:
        before = self._state(name) or State(-np.inf, self._layout.identity)
        as_of, slots = self._layout.fold(np.array([before.as_of]), before.slots[np.newaxis], [0] * len(events), events)
        return State(float(as_of[0]), slots[0])

    def _state(self, name: str) -> State | None:
        as_of, slots = self.states([name])
        return None if np.isnan(as_of[0]) else State(float(as_of[0]), slots[0])
