"""States at many cut-offs in one pass over the events, which are read in steps of time and added up.

::

    events ──┬── step ──┬── step ──┬── step ──┬──►
             │ decay,   │ decay,   │ decay,   │
             │ add      │ add      │ add      │
             └──────────┴─ cut-off ┴──────────┴─ cut-off: the states as of then

States are a monoid, so the states at a cut-off are those of the cut-off before, decayed, plus the events in between. A
step that would hold too many events is split at full hours, which bounds the memory.

The same events give bit-identical states, in whatever order and with however many threads they are read: they are
sorted by all columns and then added one by one. :meth:`feature_store.state.layout.StateLayout.fold` is the online
counterpart; tests hold the two equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import duckdb
import numpy as np
import numpy.typing as npt

from feature_store.definitions import Feature
from feature_store.sql import literal
from feature_store.state.layout import DAY_S, Floats, StateLayout

MAX_EVENTS: Final = 2_000_000
"""Approximate number of events read at a time; each takes about 150 bytes of memory."""
STEP_S: Final = 3_600.0
"""Steps are split at multiples of this."""
ID_DIGITS: Final = 13
"""Hexadecimal digits of an id's hash that decide whether it is in a sample: 52 bits, which a float64 holds exactly."""

Names = npt.NDArray[np.object_]
Columns = Mapping[str, npt.NDArray[Any]]


def sample_condition(share: float) -> str:
    """A SQL condition that selects a share (0 to 1) of all customers by a hash of ``customer_id``.

    The same share always selects the same customers, and a smaller one a subset of those of a larger one.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be between 0 and 1, not {share!r}")
    if share == 1:
        return "true"
    return f"md5(customer_id) < '{int(share * 16**ID_DIGITS):0{ID_DIGITS}x}'"


@dataclass
class _TypeSlots:
    """Slots of one event type: decayed sums by half-life in seconds, latest and earliest times."""

    sums: dict[float, list[tuple[int, Feature]]] = field(default_factory=dict)
    latest: list[int] = field(default_factory=list)
    earliest: list[int] = field(default_factory=list)


class StateAccumulator:
    """Accumulates the states of ``n`` customers over time, one row per slot: float64 ``[slots, n]``."""

    def __init__(self, layout: StateLayout, customers: int) -> None:
        self._slots: Final = np.repeat(layout.identity[:, np.newaxis], customers, axis=1)
        self._as_of = -np.inf
        self._type_slots: Final = {name: _TypeSlots() for name in _event_types(layout)}
        self._decayed: Final[list[tuple[int, float]]] = []
        self._timed: Final[list[int]] = []
        for slot, feature in enumerate(layout.features):
            if feature.event is None:
                continue
            type_slots = self._type_slots[feature.event]
            if feature.half_life_days is None:
                (type_slots.latest if feature.aggregate == "latest" else type_slots.earliest).append(slot)
                self._timed.append(slot)
            else:
                half_life = feature.half_life_days * DAY_S
                type_slots.sums.setdefault(half_life, []).append((slot, feature))
                self._decayed.append((slot, half_life))

    def set_attribute(self, slot: int, values: Floats) -> None:
        """Set an attribute of all customers (``[n]``); values that are not finite are missing."""
        self._slots[slot] = np.where(np.isfinite(values), values, np.nan)

    def advance(self, as_of: float) -> None:
        """Decay all sums to a later time."""
        if np.isfinite(self._as_of):
            with np.errstate(invalid="ignore"):  # infinite sums, which states() replaces
                for slot, half_life in self._decayed:
                    self._slots[slot] *= np.exp2((self._as_of - as_of) / half_life)
        self._as_of = as_of

    def add(self, events: Columns) -> None:
        """Add events that are not after ``as_of``.

        Args:
            events: Columns kind (index of the event type among those of the layout), customer (index), t (unix seconds)
                and the fields; sorted by kind, customer and t.
        """
        bounds = np.searchsorted(events["kind"], np.arange(len(self._type_slots) + 1))
        for type_slots, start, end in zip(self._type_slots.values(), bounds[:-1], bounds[1:], strict=True):
            if start < end:
                self._add(type_slots, {name: column[start:end] for name, column in events.items()})

    def states(self, rows: npt.NDArray[np.bool_]) -> Floats:
        """Current slots ``[m, slots]`` of the customers selected by a mask ``[n]``."""
        slots = self._slots[:, rows]
        slots[self._timed] -= self._as_of
        for slot, _ in self._decayed:
            slots[slot, ~np.isfinite(slots[slot])] = 0.0
        return slots.T

    def _add(self, type_slots: _TypeSlots, events: Columns) -> None:
        customer, t = events["customer"].astype(np.intp), events["t"]
        if type_slots.latest or type_slots.earliest:
            first = np.flatnonzero(np.diff(customer, prepend=-1))
            last = np.append(first[1:], len(customer)) - 1
            for slot in type_slots.latest:
                self._slots[slot, customer[last]] = t[last]
            for slot in type_slots.earliest:
                self._slots[slot, customer[first]] = np.minimum(self._slots[slot, customer[first]], t[first])
        for half_life, slots in type_slots.sums.items():
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
    attributes_at: Callable[[float], str] | None = None,
) -> Iterator[tuple[Names, Floats]]:
    """States of the customers known at each cut-off.

    A customer is known from the first event, or the first attributes, on.

    Args:
        connection: Has the tables of ``feature_store.offline.source``.
        layout: Which states.
        cutoffs: Unix seconds, ascending.
        attributes: SQL expressions over the table ``attributes``, by slot.
        customers: SQL condition on ``customer_id``; None for all customers.
        events: The table or view to read events from.
        attributes_at: SQL for the attributes that held at a time; None for the table ``attributes`` at every cut-off.

    Yields:
        Ids ``[n]`` and slots ``[n, slots]``, per cut-off.
    """
    with connection.cursor() as cursor:  # a cursor has its own temporary tables
        newest = "attributes" if attributes_at is None else attributes_at(cutoffs[-1])
        everybody = _everybody(cursor, cutoffs[-1], newest if attributes else None, customers or "true", events)
        names, since = np.asarray(everybody["customer_id"], dtype=object), everybody["since"]
        accumulator = StateAccumulator(layout, len(names))
        with_attributes = np.zeros(len(names), dtype=np.bool_)
        if attributes and attributes_at is None:
            with_attributes = _set_attributes(cursor, accumulator, attributes, newest, len(names))
        reader, start = _EventReader(cursor, layout, events), -np.inf
        for cutoff, ends in zip(cutoffs, reader.steps(cutoffs, all_customers=customers is None), strict=True):
            for end in ends:
                accumulator.advance(end)
                accumulator.add(reader.read(start, end))
                start = end
            if attributes and attributes_at is not None:
                with_attributes = _set_attributes(cursor, accumulator, attributes, attributes_at(cutoff), len(names))
            known = (since <= cutoff) | with_attributes
            yield names[known], accumulator.states(known)


def step_ends(starts: Floats, events: Floats, cutoffs: Sequence[float]) -> list[list[float]]:
    """For each cut-off, the ends of the steps that lead to it; the last one is the cut-off itself.

    A step has at most MAX_EVENTS events, or slightly more if it begins within an hour or a single hour has more.

    Args:
        starts: Starts of the hours that have events, unix seconds ascending.
        events: Number of events in each of these hours.
        cutoffs: Unix seconds, ascending.
    """
    steps = []
    for before, cutoff in zip([-np.inf, *cutoffs], cutoffs, strict=False):
        ends, waiting = [], 0.0
        hours = slice(*np.searchsorted(starts, [before, cutoff]))
        for start, number in zip(starts[hours].tolist(), events[hours].tolist(), strict=True):
            if waiting and waiting + number > MAX_EVENTS:
                ends.append(start)
                waiting = 0.0
            waiting += number
        steps.append([*ends, cutoff])
    return steps


def _everybody(
    connection: duckdb.DuckDBPyConnection, last: float, attributes: str | None, customers: str, events: str
) -> Columns:
    """Create and return the table ``everybody``: customer_id, customer (index), since (first event, or infinity).

    ``attributes`` is SQL for those that count as known without events; None for nobody.
    """
    known = (
        "seen" if attributes is None else f"seen FULL JOIN (SELECT customer_id FROM {attributes}) USING (customer_id)"
    )
    # The condition is evaluated once per customer, not once per event.
    connection.execute(
        f"""CREATE TEMP TABLE everybody AS
            WITH seen AS MATERIALIZED (SELECT customer_id, min(t) AS since FROM {events} WHERE t <= $last
                GROUP BY customer_id)
            SELECT customer_id, (row_number() OVER (ORDER BY customer_id) - 1)::INTEGER AS customer,
                coalesce(since, 'inf') AS since
            FROM {known} WHERE {customers}""",
        {"last": last},
    )
    return connection.execute("FROM everybody ORDER BY customer").fetchnumpy()


def _set_attributes(
    connection: duckdb.DuckDBPyConnection,
    accumulator: StateAccumulator,
    attributes: Mapping[int, str],
    table: str,
    customers: int,
) -> npt.NDArray[np.bool_]:
    """Set the attributes of everybody from a table; returns which customers ``[customers]`` are in it."""
    columns = ", ".join(f"{value} AS s{slot}" for slot, value in attributes.items())
    values = connection.execute(
        f"FROM (SELECT customer_id, {columns} FROM {table}) JOIN everybody USING (customer_id)"
    ).fetchnumpy()
    rows = values["customer"].astype(np.intp)
    for slot in attributes:
        slots = np.full(customers, np.nan)
        slots[rows] = np.ma.filled(values[f"s{slot}"], np.nan)
        accumulator.set_attribute(slot, slots)
    with_attributes = np.zeros(customers, dtype=np.bool_)
    with_attributes[rows] = True
    return with_attributes


class _EventReader:
    """Reads the events of a layout's types, in steps of time."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, layout: StateLayout, events: str) -> None:
        self._connection: Final = connection
        types = [literal(name) for name in _event_types(layout)]
        fields = sorted({f.field for f in layout.features if f.field})
        columns = "".join(f", coalesce({name}, 0)::DOUBLE AS {name}" for name in fields)
        self._table: Final = events
        kind = " ".join(f"WHEN {name} THEN {at}" for at, name in enumerate([*types, "NULL"]))
        # Sorted by all columns, so that the order depends on nothing but the events themselves.
        self._query: Final = f"""
            SELECT (CASE event_type {kind} END)::USMALLINT AS kind, customer, t{columns}
            FROM (FROM {events} WHERE t > $start AND t <= $end AND event_type IN ({", ".join(types) or "NULL"}))
                JOIN everybody USING (customer_id) ORDER BY ALL"""

    def steps(self, cutoffs: Sequence[float], *, all_customers: bool) -> list[list[float]]:
        """Ends of the steps, by cut-off (:func:`step_ends`)."""
        selected = "" if all_customers else "SEMI JOIN everybody USING (customer_id)"
        hours = self._connection.execute(
            f"""SELECT floor(t / {STEP_S}) * {STEP_S} AS start, count(*)::DOUBLE AS events FROM {self._table} {selected}
                WHERE t <= $last GROUP BY start ORDER BY start""",
            {"last": cutoffs[-1]},
        ).fetchnumpy()
        return step_ends(hours["start"], hours["events"], cutoffs)

    def read(self, start: float, end: float) -> Columns:
        """Events after ``start`` up to ``end``, in the form that :meth:`StateAccumulator.add` takes."""
        return self._connection.execute(self._query, {"start": start, "end": end}).fetchnumpy()


def _event_types(layout: StateLayout) -> list[str]:
    return sorted({f.event for f in layout.features if f.event})


def _clipped(values: Floats, clip: float | None) -> Floats:
    return values if clip is None else np.clip(values, -clip, clip)
