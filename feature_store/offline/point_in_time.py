"""States at many cut-offs from one pass over the events: each is read in its step of time, and added to the rest.

::

    events ──┬── step ──┬── step ──┬── step ──┬──►
             │ decay,   │ decay,   │ decay,   │
             │ add      │ add      │ add      │
             └──────────┴─ cut-off ┴──────────┴─ cut-off: the states then

A state is a monoid, so that those of a cut-off are those of the one before, decayed, and the events in between. A step
that would hold too many events is split at full hours, which bounds the memory.

The same events give the same bits, in whatever order and by however many threads they are read: what is added up is
sorted by all its columns first and then added one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import duckdb
import numpy as np
import numpy.typing as npt

from feature_store.definitions import Feature
from feature_store.sql import literal
from feature_store.state.layout import DAY_S, Floats, StateLayout

AT_ONCE: Final = 2_000_000
"""Events read at once, about; each takes some 150 bytes while it is."""
STEP_S: Final = 3_600.0
"""Seconds; steps that are split end at multiples of it."""
ID_DIGITS: Final = 13
"""Hexadecimal digits of an id's hash that decide whether it is in a sample: 52 bits, as a float64 holds them."""

Names = npt.NDArray[np.object_]
Columns = Mapping[str, npt.NDArray[Any]]


def sampled(share: float) -> str:
    """SQL that picks this share (0 to 1) of all customers by a hash of ``customer_id``: the same ones at any time.

    A smaller share's customers are among those of a larger one.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be between 0 and 1, not {share!r}")
    if share == 1:
        return "true"
    return f"md5(customer_id) < '{int(share * 16**ID_DIGITS):0{ID_DIGITS}x}'"


@dataclass
class _Kind:
    """Slots of one event type: decayed sums by half-life in seconds, latest and earliest times."""

    sums: dict[float, list[tuple[int, Feature]]] = field(default_factory=dict)
    latest: list[int] = field(default_factory=list)
    earliest: list[int] = field(default_factory=list)


class Fold:
    """States of ``n`` customers as time goes on, a row for each slot: float64 ``[slots, n]``."""

    def __init__(self, layout: StateLayout, customers: int) -> None:
        self._slots: Final = np.repeat(layout.identity[:, np.newaxis], customers, axis=1)
        self._as_of = -np.inf
        self._kinds: Final = {name: _Kind() for name in _event_types(layout)}
        self._decayed: Final[list[tuple[int, float]]] = []
        self._timed: Final[list[int]] = []
        for slot, feature in enumerate(layout.features):
            if feature.event is None:
                continue
            kind = self._kinds[feature.event]
            if feature.half_life_days is None:
                (kind.latest if feature.aggregate == "latest" else kind.earliest).append(slot)
                self._timed.append(slot)
            else:
                half_life = feature.half_life_days * DAY_S
                kind.sums.setdefault(half_life, []).append((slot, feature))
                self._decayed.append((slot, half_life))

    def know(self, slot: int, values: Floats) -> None:
        """Set an attribute (``[n]``): what is no finite number is missing."""
        self._slots[slot] = np.where(np.isfinite(values), values, np.nan)

    def advance(self, as_of: float) -> None:
        """Decay all sums to a later time."""
        if np.isfinite(self._as_of):
            with np.errstate(invalid="ignore"):  # of infinite sums, which states() leaves out
                for slot, half_life in self._decayed:
                    self._slots[slot] *= np.exp2((self._as_of - as_of) / half_life)
        self._as_of = as_of

    def add(self, events: Columns) -> None:
        """Add events that are not after ``as_of``: kind, customer, t and fields, by kind, then customer, then time.

        kind: an event type's place among all of the layout, in order.
        """
        bounds = np.searchsorted(events["kind"], np.arange(len(self._kinds) + 1))
        for kind, start, end in zip(self._kinds.values(), bounds[:-1], bounds[1:], strict=True):
            if start < end:
                self._add(kind, {name: column[start:end] for name, column in events.items()})

    def states(self, rows: npt.NDArray[np.bool_]) -> Floats:
        """Slots ``[m, slots]`` of some customers as they are now."""
        slots = self._slots[:, rows]
        slots[self._timed] -= self._as_of
        for slot, _ in self._decayed:
            slots[slot, ~np.isfinite(slots[slot])] = 0.0
        return slots.T

    def _add(self, kind: _Kind, events: Columns) -> None:
        customer, t = events["customer"].astype(np.intp), events["t"]
        if kind.latest or kind.earliest:
            first = np.flatnonzero(np.diff(customer, prepend=-1))
            last = np.append(first[1:], len(customer)) - 1
            for slot in kind.latest:
                self._slots[slot, customer[last]] = t[last]
            for slot in kind.earliest:
                self._slots[slot, customer[first]] = np.minimum(self._slots[slot, customer[first]], t[first])
        for half_life, slots in kind.sums.items():
            weight = np.exp2((t - self._as_of) / half_life)
            for slot, feature in slots:
                added = weight if feature.field is None else weight * _clipped(events[feature.field], feature.clip)
                with np.errstate(invalid="ignore", over="ignore"):
                    self._slots[slot] += np.bincount(customer, added, minlength=self._slots.shape[1])


def states_at(
    connection: duckdb.DuckDBPyConnection,
    layout: StateLayout,
    cutoffs: Sequence[float],
    attributes: Mapping[int, str],
    *,
    customers: str | None = None,
    events: str = "events",
) -> Iterator[tuple[Names, Floats]]:
    """Ids ``[n]`` and slots ``[n, slots]`` of the customers known at each cut-off (unix seconds, ascending).

    attributes: by slot, SQL over the table ``attributes``; customers: SQL that is true for the ids to take (None: all).
    """
    with connection.cursor() as own:  # for a temporary table of its own
        everybody = _everybody(own, cutoffs[-1], attributes, customers or "true", events)
        names, since = np.asarray(everybody["customer_id"], dtype=object), everybody["since"]
        fold = Fold(layout, len(names))
        for slot in attributes:
            fold.know(slot, np.ma.filled(everybody[f"s{slot}"], np.nan))
        read, start = _Reading(own, layout, events), -np.inf
        for cutoff, ends in zip(cutoffs, read.steps(cutoffs, every=customers is None), strict=True):
            for end in ends:
                fold.advance(end)
                fold.add(read(start, end))
                start = end
            known = since <= cutoff
            yield names[known], fold.states(known)


def step_ends(starts: Floats, events: Floats, cutoffs: Sequence[float]) -> list[list[float]]:
    """For each cut-off, the ends of the steps that lead to it, of which it is the last itself.

    starts: of the hours that have events, unix seconds ascending; events: how many each of them has. A step has AT_ONCE
    events, or a little more where it begins within an hour, or where one hour has more.
    """
    found = []
    for before, cutoff in zip([-np.inf, *cutoffs], cutoffs, strict=False):
        ends, waiting = [], 0.0
        mine = slice(*np.searchsorted(starts, [before, cutoff]))
        for start, number in zip(starts[mine].tolist(), events[mine].tolist(), strict=True):
            if waiting and waiting + number > AT_ONCE:
                ends.append(start)
                waiting = 0.0
            waiting += number
        found.append([*ends, cutoff])
    return found


def _everybody(
    connection: duckdb.DuckDBPyConnection, last: float, attributes: Mapping[int, str], customers: str, events: str
) -> Columns:
    """Make the table ``everybody`` and return it: customer_id, its place in order, since when known, attributes."""
    known, columns = "FROM seen", ""
    if attributes:
        columns = "".join(f", {value} AS s{slot}" for slot, value in attributes.items())
        told = f"SELECT customer_id, '-inf'::DOUBLE AS always{columns} FROM attributes"
        known = f"FROM seen FULL JOIN ({told}) USING (customer_id)"
        columns = "".join(f", s{slot}" for slot in attributes)
    # An id is looked at once, not once for each of its events.
    connection.execute(
        f"""CREATE TEMP TABLE everybody AS
            WITH seen AS MATERIALIZED (SELECT customer_id, min(t) AS since FROM {events} WHERE t <= $last
                GROUP BY customer_id)
            SELECT customer_id, (row_number() OVER (ORDER BY customer_id) - 1)::INTEGER AS customer,
                {"coalesce(always, since)" if attributes else "since"} AS since {columns}
            FROM ({known}) WHERE {customers}""",
        {"last": last},
    )
    return connection.execute("FROM everybody ORDER BY customer").fetchnumpy()


class _Reading:
    """Events of a layout's types, in steps of time."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, layout: StateLayout, events: str) -> None:
        self._connection: Final = connection
        kinds = [literal(name) for name in _event_types(layout)]
        fields = sorted({f.field for f in layout.features if f.field})
        columns = "".join(f", coalesce({name}, 0)::DOUBLE AS {name}" for name in fields)
        self._table: Final = events
        kind = " ".join(f"WHEN {name} THEN {at}" for at, name in enumerate([*kinds, "NULL"]))
        # Ordered by all that is read, and so by nothing but the events themselves.
        self._query: Final = f"""
            SELECT (CASE event_type {kind} END)::USMALLINT AS kind, customer, t{columns}
            FROM (FROM {events} WHERE t > $start AND t <= $end AND event_type IN ({", ".join(kinds) or "NULL"}))
                JOIN everybody USING (customer_id) ORDER BY ALL"""

    def steps(self, cutoffs: Sequence[float], *, every: bool) -> list[list[float]]:
        """Ends of steps, by cut-off, over the events of every customer or of those taken."""
        taken = "" if every else "SEMI JOIN everybody USING (customer_id)"
        hours = self._connection.execute(
            f"""SELECT floor(t / {STEP_S}) * {STEP_S} AS start, count(*)::DOUBLE AS events FROM {self._table} {taken}
                WHERE t <= $last GROUP BY start ORDER BY start""",
            {"last": cutoffs[-1]},
        ).fetchnumpy()
        return step_ends(hours["start"], hours["events"], cutoffs)

    def __call__(self, start: float, end: float) -> Columns:
        """Events after ``start`` up to ``end``, as :meth:`Fold.add` takes them."""
        return self._connection.execute(self._query, {"start": start, "end": end}).fetchnumpy()


def _event_types(layout: StateLayout) -> list[str]:
    return sorted({f.event for f in layout.features if f.event})


def _clipped(values: Floats, clip: float | None) -> Floats:
    return values if clip is None else np.clip(values, -clip, clip)
