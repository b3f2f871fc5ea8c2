"""Offline feature store: canonical events in DuckDB, and states as of any times.

They follow the same definitions as the online fold, so that both sides compute the same state from the same events
(``tidemark verify`` proves it); how, is in ``feature_store.offline.point_in_time``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType
from typing import Final, Self

import duckdb
import numpy as np
import numpy.typing as npt

from feature_store.config import Source
from feature_store.definitions import Feature
from feature_store.errors import InputError
from feature_store.offline.point_in_time import states_at
from feature_store.offline.source import NUMERIC, count_left_out, merge_attributes, read_attributes, read_events
from feature_store.sql import identifier, literal
from feature_store.state.layout import Floats, StateLayout


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
        (states,) = self.states_at(layout, [as_of], events=events)
        return states

    def states_at(
        self, layout: StateLayout, cutoffs: Sequence[float], *, customers: str | None = None, events: str = "events"
    ) -> Iterator[OfflineStates]:
        """States at each of several times (unix seconds, ascending), for about the price of one reading of the events.

        The same events give the same bits, whatever their order and the number of threads. ``customers``: SQL that is
        true for the customer ids to take, such as ``sampled(0.1)``; ``events``: the table or view to read from.
        """
        if not cutoffs or any(later <= before for before, later in pairwise(cutoffs)):
            raise ValueError("cut-offs must ascend")
        attributes = {i: self._attribute_sql(f) for i, f in enumerate(layout.features) if f.aggregate == "attribute"}
        found = states_at(self.connection, layout, cutoffs, attributes, customers=customers, events=events)
        return (OfflineStates(ids, slots) for ids, slots in found)

    def _attribute_sql(self, feature: Feature) -> str:
        """The number of an attribute: its value, or of a text the index among its categories."""
        kind = self.attribute_columns.get(feature.source_column)
        if kind is None:
            raise InputError(f"feature '{feature.name}': source.attributes has no column of that name")
        column = identifier(feature.source_column)
        if feature.categories is not None:
            known = ", ".join(map(literal, feature.categories))
            code = f"coalesce(nullif(list_position([{known}], {column}::VARCHAR), 0) - 1, {len(feature.categories)})"
            return f"(CASE WHEN {column} IS NOT NULL THEN {code} END)::DOUBLE"
        if not NUMERIC.fullmatch(kind):
            raise InputError(f"feature '{feature.name}': its column is {kind}, not a number: convert it in SQL")
        return f"{column}::DOUBLE"

    def _summarise(self, source: Source) -> SourceSummary:
        where = "source.events" if source.archive is None else "source.archive"
        if source.events is None and source.archive is None:  # a snapshot is as of when it is read
            ((customers,),) = self.connection.execute("SELECT count(*) FROM attributes").fetchall()
            now = time.time()
            return SourceSummary(0, customers, now, now, {})
        found = self.connection.execute("SELECT count(*), count(DISTINCT customer_id), min(t), max(t) FROM events")
        events, customers, start, end = found.fetchall()[0]
        if not events:
            raise InputError(f"{where}: no usable row: every one lacks a customer_id, an event_time or a type")
        return SourceSummary(events, customers, start, end, count_left_out(self.connection))
