"""Offline feature store: canonical events in DuckDB, and states as of any time with one SQL aggregate.

The same definitions that the online fold follows become one SQL expression per slot here, so that both sides compute
the same state from the same events (``python -m feature_store verify`` proves it).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Self

import duckdb
import numpy as np
import numpy.typing as npt

from feature_store.canonical import LEFT_OUT, NUMERIC, merge_attributes, read_attributes, read_events
from feature_store.config import Source
from feature_store.definitions import Feature
from feature_store.errors import InputError
from feature_store.state import DAY_S, Floats, StateLayout


@dataclass(frozen=True)
class SourceSummary:
    """What was read: rows kept, and rows left out by reason."""

    events: int
    customers: int
    start: float
    end: float
    left_out: dict[str, int]


@dataclass(frozen=True)
class OfflineStates:
    """States of all customers as of one time: ids ``[n]`` in ascending order, slots float64 ``[n, slots]``."""

    customer_ids: npt.NDArray[np.object_]
    slots: Floats


class OfflineStore:
    """Events of one source, read once into DuckDB."""

    def __init__(self, source: Source) -> None:
        self.connection: Final = duckdb.connect(":memory:")
        self.connection.execute("SET TimeZone = 'UTC'")
        try:
            read_events(self.connection, source)
            self._attribute_columns = read_attributes(self.connection, source)
            self.summary: Final = self._summarise("source.events" if source.archive is None else "source.archive")
        except BaseException:
            self.connection.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.connection.close()

    @property
    def with_attributes(self) -> set[str]:
        """Ids of the customers who have attributes."""
        if not self._attribute_columns:
            return set()
        return {name for (name,) in self.connection.execute("SELECT customer_id FROM attributes").fetchall()}

    def apply_aliases(self) -> None:
        """Give the attributes of aliases (table ``aliases``) to the customers they belong to."""
        if self._attribute_columns:
            merge_attributes(self.connection, self._attribute_columns)

    def states(self, layout: StateLayout, as_of: float, events: str = "events") -> OfflineStates:
        """States of every customer known by ``as_of`` (unix seconds): no event after it is read.

        ``events``: the table or view to read them from.
        """
        columns = ", ".join(f"{_slot_sql(f)} AS s{i}" for i, f in enumerate(layout.features) if f.event)
        query = f"""
            SELECT customer_id, {columns or "NULL AS none"} FROM {events}
            WHERE t <= $as_of GROUP BY customer_id ORDER BY customer_id"""
        attributes = [(i, f) for i, f in enumerate(layout.features) if f.aggregate == "attribute"]
        if attributes:
            self._check_attributes(layout.features)
            known = ", ".join(f'"{f.name}"::DOUBLE AS s{i}' for i, f in attributes)
            query = f"""SELECT * FROM ({query}) FULL JOIN (SELECT customer_id, {known} FROM attributes)
                USING (customer_id) ORDER BY customer_id"""
        found = self.connection.execute(query, {"as_of": as_of}).fetchnumpy()
        slots = np.tile(layout.identity, (len(found["customer_id"]), 1))
        for i in range(len(layout.features)):
            column = np.ma.masked_invalid(found[f"s{i}"])
            slots[:, i] = column.filled(layout.identity[i])
        return OfflineStates(np.asarray(found["customer_id"], dtype=object), slots)

    def _check_attributes(self, features: tuple[Feature, ...]) -> None:
        for feature in features:
            if feature.aggregate == "attribute":
                kind = self._attribute_columns.get(feature.name)
                if kind is None:
                    raise InputError(f"feature '{feature.name}': source.attributes has no column of that name")
                if not NUMERIC.fullmatch(kind):
                    raise InputError(f"feature '{feature.name}': its column is {kind}, not a number: convert it in SQL")

    def _summarise(self, where: str) -> SourceSummary:
        counts = ", ".join(f"count(*) FILTER ({rule})" for rule in LEFT_OUT.values())
        row = self.connection.execute(f"SELECT {counts} FROM read").fetchall()[0]
        left_out = {reason: number for reason, number in zip(LEFT_OUT, row, strict=True) if number}
        found = self.connection.execute("SELECT count(*), count(DISTINCT customer_id), min(t), max(t) FROM events")
        events, customers, start, end = found.fetchall()[0]
        if not events:
            raise InputError(f"{where}: no usable row: every one lacks a customer_id, an event_time or a type")
        return SourceSummary(events, customers, start, end, left_out)


def _slot_sql(feature: Feature) -> str:
    """The SQL aggregate of one slot, as of ``$as_of``, over rows ``(event_type, t, amount, duration_s)``."""
    kind = str(feature.event).replace("'", "''")
    only = f"FILTER (event_type = '{kind}')"
    if feature.half_life_days is None:
        return f"{'max' if feature.aggregate == 'latest' else 'min'}(t) {only} - $as_of"
    weight = f"pow(2.0, (t - $as_of) / {feature.half_life_days * DAY_S!r})"
    if feature.field is None:
        return f"sum({weight}) {only}"
    value = str(feature.field)
    if feature.clip is not None:  # DuckDB's least() and greatest() pass over NULL
        value = f"greatest(least(coalesce({value}, 0), {feature.clip!r}), -{feature.clip!r})"
    return f"sum({weight} * {value}) {only}"


def iso(seconds: float) -> str:
    """Unix seconds as UTC text."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
