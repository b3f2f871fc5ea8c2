"""Offline feature store: canonical events in DuckDB, and states as of any time.

States follow the same definitions as online, so both sides compute the same state from the same events, which
``tidemark verify`` checks. ``feature_store.offline.point_in_time`` computes them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from feature_store.config import Source
from feature_store.definitions import Feature
from feature_store.errors import InputError
from feature_store.offline.point_in_time import states_at
from feature_store.offline.source import (
    NUMERIC,
    attributes_as_of,
    count_left_out,
    create_newest,
    merge_attributes,
    merge_changes,
    read_attributes,
    read_events,
)
from feature_store.sandbox import connect
from feature_store.sql import fill_table, identifier, literal
from feature_store.state.layout import Floats, StateLayout

IDS: Final = ("customer_id", "item_id", "event_id")
"""Columns of events that hold ids."""


@dataclass(frozen=True)
class SourceSummary:
    """What was read.

    Attributes:
        events: Number of usable events.
        customers: Number of customers that have any.
        start: Unix seconds of the first event.
        end: Unix seconds of the last event.
        left_out: Numbers of unusable rows, by reason.
    """

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
    """The events of one source, read once into DuckDB.

    Attributes:
        id_types: DuckDB types of the columns with ids, as the source's SQL has them, by name (``events.customer_id``).
    """

    def __init__(self, source: Source, folders: Sequence[Path] = (), *, threads: int | None = None) -> None:
        """Read a source.

        Args:
            source: What to read. Its SQL has access to the files and folders that it names (``feature_store.sandbox``).
            folders: Other folders that will be read later, such as an archive.
            threads: Threads of DuckDB; by default as many as there are cores.

        Raises:
            InputError: Something is wrong with the source.
        """
        options = {} if threads is None else {"threads": threads}
        self.connection: Final = connect([*source.folders, *folders], source.queries, **options)
        try:
            columns = read_events(self.connection, source)
            self.id_types: Final = {f"events.{name}": kind for name, kind in columns.items() if name in IDS}
            self.attribute_columns, self.attributes_have_times = read_attributes(self.connection, source)
            if self.attribute_columns:
                self.id_types["attributes.customer_id"] = self.attribute_columns["customer_id"]
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
        """Ids of the customers that have attributes."""
        if not self.attribute_columns:
            return set()
        return {name for (name,) in self.connection.execute("SELECT customer_id FROM attributes").fetchall()}

    def apply_aliases(self) -> None:
        """Assign the attributes of aliases (table ``aliases``) to the customers they belong to."""
        if self.attributes_have_times:
            merge_changes(self.connection)
            create_newest(self.connection, self.attribute_columns)
        elif self.attribute_columns:
            merge_attributes(self.connection, self.attribute_columns)

    def attributes_at(self, moment: float) -> str:
        """SQL for the attributes that held at a time; without times, for the newest ones. One row per customer."""
        if self.attributes_have_times:
            return f"({attributes_as_of(self.attribute_columns, f'{moment!r}::DOUBLE')})"
        return "attributes"

    def states(self, layout: StateLayout, as_of: float, events: str = "events") -> OfflineStates:
        """States of every customer known by ``as_of`` (unix seconds); no later event is read.

        Attributes are the newest ones, whatever ``as_of``, as they are online.

        Args:
            layout: Which states.
            as_of: The time.
            events: The table or view to read events from.
        """
        ((ids, slots),) = states_at(self.connection, layout, [as_of], self._attributes(layout), events=events)
        return OfflineStates(ids, slots)

    def states_at(
        self, layout: StateLayout, cutoffs: Sequence[float], *, customers: str | None = None, events: str = "events"
    ) -> Iterator[OfflineStates]:
        """States at each of several times, at about the cost of reading the events once.

        Attributes with times are those that held at each time; without times they are the newest ones. The same events
        give bit-identical states, whatever their order and the number of threads.

        Args:
            layout: Which states.
            cutoffs: Unix seconds, ascending.
            customers: SQL condition on ``customer_id``, such as ``sample_condition(0.1)``; None for all customers.
            events: The table or view to read events from.

        Raises:
            InputError: A feature's attribute is not in the source, or is not a number.
        """
        if not cutoffs or any(later <= before for before, later in pairwise(cutoffs)):
            raise ValueError("cut-offs must be ascending")
        states = states_at(
            self.connection,
            layout,
            cutoffs,
            self._attributes(layout),
            customers=customers,
            events=events,
            attributes_at=self.attributes_at if self.attributes_have_times else None,
        )
        return (OfflineStates(ids, slots) for ids, slots in states)

    def states_at_own_times(self, layout: StateLayout, customer_ids: Sequence[str], moments: Sequence[float]) -> Floats:
        """States of customers, each as of a time of its own.

        Attributes without times are missing, because their values may be later than the time of the customer.

        Args:
            layout: Which states.
            customer_ids: Ids ``[n]``, each once.
            moments: Unix seconds ``[n]``.

        Returns:
            Slots ``[n, slots]``; a customer without events before has the empty state.

        Raises:
            InputError: As ``states_at``.
        """
        rows = list(zip(customer_ids, map(float, moments), strict=True))
        fill_table(self.connection, "moments", {"customer_id": "VARCHAR", "moment": "DOUBLE"}, rows)
        # Times relative to each customer's own, so that one pass gives the states of all.
        self.connection.execute(
            """CREATE OR REPLACE VIEW before AS SELECT events.* REPLACE (t - moment AS t)
            FROM events JOIN moments USING (customer_id) WHERE t <= moment"""
        )
        held = attributes_as_of(self.attribute_columns, "moment", "changes JOIN moments USING (customer_id)")
        ((ids, slots),) = states_at(
            self.connection,
            layout,
            [0.0],
            self._attributes(layout) if self.attributes_have_times else {},
            customers="customer_id IN (SELECT customer_id FROM moments)",
            events="before",
            attributes_at=(lambda _: f"({held})") if self.attributes_have_times else None,
        )
        place = {name: at for at, name in enumerate(ids)}
        states = np.tile(layout.identity, (len(rows), 1))
        for row, (name, _) in enumerate(rows):
            if name in place:
                states[row] = slots[place[name]]
        return states

    def _attributes(self, layout: StateLayout) -> dict[int, str]:
        """SQL for the values of the layout's attributes, by slot."""
        return {i: self._attribute_sql(f) for i, f in enumerate(layout.features) if f.aggregate == "attribute"}

    def _attribute_sql(self, feature: Feature) -> str:
        """SQL for the value of an attribute: the number, or the index of a text among its categories."""
        kind = self.attribute_columns.get(feature.source_column)
        if kind is None:
            raise InputError(f"feature '{feature.name}': source.attributes has no column '{feature.source_column}'")
        column = identifier(feature.source_column)
        if feature.categories is not None:
            categories = ", ".join(map(literal, feature.categories))
            code = (
                f"coalesce(nullif(list_position([{categories}], {column}::VARCHAR), 0) - 1, {len(feature.categories)})"
            )
            return f"(CASE WHEN {column} IS NOT NULL THEN {code} END)::DOUBLE"
        if not NUMERIC.fullmatch(kind):
            raise InputError(f"feature '{feature.name}': its column is {kind}, not a number: convert it in SQL")
        return f"{column}::DOUBLE"

    def _summarise(self, source: Source) -> SourceSummary:
        where = "source.events" if source.archive is None else "source.archive"
        if source.events is None and source.archive is None:  # a snapshot is as of the time when it is read
            ((customers,),) = self.connection.execute("SELECT count(*) FROM attributes").fetchall()
            now = time.time()
            return SourceSummary(0, customers, now, now, {})
        query = "SELECT count(*), count(DISTINCT customer_id), min(t), max(t) FROM events"
        events, customers, start, end = self.connection.execute(query).fetchall()[0]
        if not events:
            raise InputError(f"{where}: no usable row: every row lacks a customer_id, an event_time or an event_type")
        return SourceSummary(events, customers, start, end, count_left_out(self.connection))
