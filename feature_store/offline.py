"""Offline feature store: canonical events in DuckDB, and states as of any time with one SQL aggregate.

The same definitions that the online fold follows become one SQL expression per slot here, so that both sides compute
the same state from the same events (``python -m feature_store verify`` proves it).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Self

import duckdb
import numpy as np
import numpy.typing as npt

from feature_store.config import Source
from feature_store.definitions import MAX_ID_BYTES, Feature
from feature_store.errors import InputError
from feature_store.state import DAY_S, Floats, StateLayout

REQUIRED: Final = ("customer_id", "event_time", "event_type")
OPTIONAL: Final = ("amount", "duration_s", "item_id", "channel", "text", "event_id")


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
            self._read_events(source.sql(source.events))
            self._attribute_columns = self._read_attributes(source)
            self.summary: Final = self._summarise()
        except BaseException:
            self.connection.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.connection.close()

    def states(self, layout: StateLayout, as_of: float) -> OfflineStates:
        """States of every customer known by ``as_of`` (unix seconds): no event after it is read."""
        columns = ", ".join(f"{_slot_sql(f)} AS s{i}" for i, f in enumerate(layout.features) if f.event)
        query = f"""
            SELECT customer_id, {columns or "NULL AS none"} FROM events
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

    def _read_events(self, query: str) -> None:
        columns = self._columns("source.events", query)
        for name in REQUIRED:
            if name not in columns:
                raise InputError(f"source.events: column '{name}' is missing: select the shop's column AS {name}")
        for name in columns:
            if name not in REQUIRED + OPTIONAL:
                raise InputError(
                    f"source.events: unknown column '{name}': canonical ones are {', '.join(REQUIRED + OPTIONAL)}"
                )
        if not columns["event_time"].startswith("TIMESTAMP"):
            raise InputError(
                f"source.events: event_time is {columns['event_time']}, not a TIMESTAMP: cast it, "
                "for example with to_timestamp(seconds) or event_time::TIMESTAMP"
            )
        numbers = ", ".join(
            f"CASE WHEN isfinite({name}::DOUBLE) THEN {name}::DOUBLE END AS {name}"
            if name in columns
            else f"NULL::DOUBLE AS {name}"
            for name in ("amount", "duration_s")
        )
        self._execute(
            "source.events",
            f"""CREATE TABLE read AS SELECT customer_id::VARCHAR AS customer_id,
                CASE WHEN isfinite(event_time) THEN epoch(event_time) END AS t,
                event_type::VARCHAR AS event_type, {numbers} FROM ({query}\n)""",
        )
        self.connection.execute(f"CREATE VIEW events AS FROM read WHERE NOT ({' OR '.join(_LEFT_OUT.values())})")

    def _read_attributes(self, source: Source) -> dict[str, str]:
        if source.attributes is None:
            return {}
        query = source.sql(source.attributes)
        columns = self._columns("source.attributes", query)
        if "customer_id" not in columns:
            raise InputError("source.attributes: column 'customer_id' is missing: select the shop's column AS it")
        self._execute(
            "source.attributes",
            f"""CREATE TABLE attributes AS SELECT * REPLACE (customer_id::VARCHAR AS customer_id) FROM ({query}\n)
                WHERE NOT ({_LEFT_OUT["without a usable customer_id"]})""",
        )
        twice = self.connection.execute("SELECT count(*) - count(DISTINCT customer_id) FROM attributes").fetchall()
        if twice[0][0]:
            raise InputError(
                f"source.attributes: {twice[0][0]:,} rows repeat a customer_id: select one row per customer"
            )
        return columns

    def _check_attributes(self, features: tuple[Feature, ...]) -> None:
        for feature in features:
            if feature.aggregate == "attribute":
                kind = self._attribute_columns.get(feature.name)
                if kind is None:
                    raise InputError(f"feature '{feature.name}': source.attributes has no column of that name")
                if not _NUMERIC.fullmatch(kind):
                    raise InputError(f"feature '{feature.name}': its column is {kind}, not a number: convert it in SQL")

    def _summarise(self) -> SourceSummary:
        counts = ", ".join(f"count(*) FILTER ({rule})" for rule in _LEFT_OUT.values())
        row = self.connection.execute(f"SELECT {counts} FROM read").fetchall()[0]
        left_out = {reason: number for reason, number in zip(_LEFT_OUT, row, strict=True) if number}
        found = self.connection.execute("SELECT count(*), count(DISTINCT customer_id), min(t), max(t) FROM events")
        events, customers, start, end = found.fetchall()[0]
        if not events:
            raise InputError("source.events: no usable row: every one lacks a customer_id, an event_time or a type")
        return SourceSummary(events, customers, start, end, left_out)

    def _columns(self, where: str, query: str) -> dict[str, str]:
        return {row[0]: row[1] for row in self._execute(where, f"DESCRIBE {query}")}

    def _execute(self, where: str, query: str) -> list[tuple[str, ...]]:
        try:
            return self.connection.execute(query).fetchall()
        except duckdb.Error as error:
            raise InputError(f"{where}: {str(error).split(chr(10) + 'LINE ')[0]}") from error


_NUMERIC: Final = re.compile(r"BOOLEAN|U?(TINY|SMALL|BIG|HUGE)INT|U?INTEGER|FLOAT|DOUBLE|DECIMAL\(.*\)")

_LEFT_OUT: Final = {
    "without a usable customer_id": f"customer_id IS NULL OR strlen(customer_id) NOT BETWEEN 1 AND {MAX_ID_BYTES}"
    " OR regexp_matches(replace(customer_id, ' ', ''), '[\\p{C}\\p{Z}]')",
    "without an event_time": "t IS NULL",
    "without an event_type": "event_type IS NULL",
    "in the future": "t > epoch(now()) + 86400",
}


def _slot_sql(feature: Feature) -> str:
    """The SQL aggregate of one slot, as of ``$as_of``, over rows ``(event_type, t, amount, duration_s)``."""
    kind = str(feature.event).replace("'", "''")
    only = f"FILTER (event_type = '{kind}')"
    if feature.half_life_days is None:
        return f"{'max' if feature.aggregate == 'latest' else 'min'}(t) {only} - $as_of"
    weight = f"pow(2.0, (t - $as_of) / {feature.half_life_days * DAY_S!r})"
    if feature.field is None:
        return f"sum({weight}) {only}"
    value = (
        feature.field
        if feature.clip is None
        else f"greatest(least({feature.field}, {feature.clip!r}), -{feature.clip!r})"
    )
    return f"sum({weight} * {value}) {only}"


def iso(seconds: float) -> str:
    """Unix seconds as UTC text."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
