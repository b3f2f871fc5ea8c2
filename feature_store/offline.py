"""Offline feature store: canonical events in DuckDB, and states as of any time with one SQL aggregate.

The same definitions that the online fold follows become one SQL expression per slot here, so that both sides compute
the same state from the same events (``python -m feature_store verify`` proves it).
"""

from __future__ import annotations

import time
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
            self.attribute_columns: Final = read_attributes(self.connection, source)
            self.summary: Final = self._summarise(source)
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
        if not self.attribute_columns:
            return set()
        return {name for (name,) in self.connection.execute("SELECT customer_id FROM attributes").fetchall()}

    def apply_aliases(self) -> None:
        """Give the attributes of aliases (table ``aliases``) to the customers they belong to."""
        if self.attribute_columns:
            merge_attributes(self.connection, self.attribute_columns)

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
            known = ", ".join(f"{_attribute_sql(f)} AS s{i}" for i, f in attributes)
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
                kind = self.attribute_columns.get(feature.source_column)
                if kind is None:
                    raise InputError(f"feature '{feature.name}': source.attributes has no column of that name")
                if feature.categories is None and not NUMERIC.fullmatch(kind):
                    raise InputError(f"feature '{feature.name}': its column is {kind}, not a number: convert it in SQL")

    def _summarise(self, source: Source) -> SourceSummary:
        where = "source.events" if source.archive is None else "source.archive"
        if source.events is None and source.archive is None:  # a snapshot is as of when it is read
            ((customers,),) = self.connection.execute("SELECT count(*) FROM attributes").fetchall()
            return SourceSummary(0, customers, time.time(), time.time(), {})
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


def _attribute_sql(feature: Feature) -> str:
    """The number of an attribute: its value, or of a text the index among its categories."""
    column = '"' + feature.source_column.replace('"', '""') + '"'
    if feature.categories is None:
        return f"{column}::DOUBLE"
    known = ", ".join("'" + value.replace("'", "''") + "'" for value in feature.categories)
    code = f"coalesce(nullif(list_position([{known}], {column}::VARCHAR), 0) - 1, {len(feature.categories)})"
    return f"CASE WHEN {column} IS NOT NULL THEN {code} END::DOUBLE"


def iso(seconds: float) -> str:
    """Unix seconds as UTC text."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
