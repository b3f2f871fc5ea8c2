"""Canonical events and attributes: the result of a source's SQL, or its archive, as DuckDB tables of a fixed form.

============== =========================================================================================================
table          content
============== =========================================================================================================
``read``       all rows: customer_id, t (unix seconds), event_type, amount, duration_s, item_id, event_id
``events``     view of the usable rows of ``read``
``unusable``   unusable ids: customer_id, rows
``attributes`` customer_id and the source's columns, one row per customer: the newest values
``changes``    only if attributes have times: customer_id, source_customer_id, valid_from (unix seconds,
               -inf for always) and the source's columns
``aliases``    alias, root; has rows only for an archive. Customer ids in the other tables are roots
============== =========================================================================================================
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import duckdb

from feature_store.archive.reader import ALIAS_COLUMNS, ArchiveSnapshot, read_archive
from feature_store.config import Source
from feature_store.definitions import MAX_ID_BYTES
from feature_store.errors import InputError
from feature_store.sandbox import HINT, check_is_select
from feature_store.sql import identifier, parquet_query

REQUIRED: Final = ("customer_id", "event_time", "event_type")
OPTIONAL: Final = ("amount", "duration_s", "item_id", "channel", "text", "event_id")

NUMERIC: Final = re.compile(r"BOOLEAN|U?(TINY|SMALL|BIG|HUGE)INT|U?INTEGER|FLOAT|DOUBLE|DECIMAL\(.*\)")
"""Types of DuckDB columns that can be the attribute of a feature without categories."""

NO_EVENTS: Final = (
    "NULL::VARCHAR AS customer_id, NULL::DOUBLE AS t, NULL::VARCHAR AS event_type, NULL::DOUBLE AS amount, "
    "NULL::DOUBLE AS duration_s, NULL::VARCHAR AS item_id, NULL::VARCHAR AS event_id"
)
"""Columns of ``read`` for a source without events."""

VALID_FROM: Final = "valid_from"
"""Column of ``source.attributes``: the time from which the values of a row hold, until the customer's next row."""

LOG_ID_PREFIX: Final = "tm:log:"
LOG_ID: Final = f"'{LOG_ID_PREFIX}' || seq || ':' || n"
"""SQL for the id of an event that was sent without one: its place in the event log."""

UNUSABLE_ID: Final = "without a usable customer_id"

LEFT_OUT: Final = {
    UNUSABLE_ID: f"customer_id IS NULL OR strlen(customer_id) NOT BETWEEN 1 AND {MAX_ID_BYTES}"
    " OR regexp_matches(replace(customer_id, ' ', ''), '[\\p{C}\\p{Z}]')",
    "without an event_time": "t IS NULL",
    "without an event_type": "event_type IS NULL",
    "in the future": "t > epoch(now()) + 86400",
}
"""SQL conditions on rows of ``read`` that are left out of ``events``, by reason."""


def read_events(connection: duckdb.DuckDBPyConnection, source: Source) -> dict[str, str]:
    """Create the tables of events and aliases.

    Returns:
        DuckDB types of the columns of ``source.events`` by name, before they are converted; none without it.

    Raises:
        InputError: Something is wrong with the source.
    """
    columns: dict[str, str] = {}
    connection.execute(f"CREATE TABLE aliases AS {parquet_query([], ALIAS_COLUMNS)}")
    if source.events is not None:
        columns = _read_query(connection, source.sql(source.events))
    elif (folder := source.archive_folder) is not None:
        _read_archive(connection, folder)
    else:
        connection.execute(f"CREATE TABLE read AS SELECT {NO_EVENTS} LIMIT 0")
    _make_view(connection)
    return columns


def count_left_out(connection: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """Numbers of rows of ``read`` that were left out, by reason; reasons without rows are absent."""
    by_row = {reason: condition for reason, condition in LEFT_OUT.items() if reason != UNUSABLE_ID}
    counts = ", ".join(f"count(*) FILTER ({condition})" for condition in by_row.values())
    rows = connection.execute(f"""
        SELECT (SELECT coalesce(sum(rows), 0)::BIGINT FROM unusable), {counts} FROM read""").fetchall()[0]
    return {reason: number for reason, number in zip([UNUSABLE_ID, *by_row], rows, strict=True) if number}


def read_attributes(connection: duckdb.DuckDBPyConnection, source: Source) -> tuple[dict[str, str], bool]:
    """Create the tables of attributes, if the source has any.

    Returns:
        The DuckDB types of the columns by name, and whether the attributes have times (the column ``valid_from``).

    Raises:
        InputError: The query fails, or its rows are not what they should be.
    """
    if source.attributes is None:
        return {}, False
    query = source.sql(source.attributes)
    columns = _columns(connection, "source.attributes", query)
    if "customer_id" not in columns:
        raise InputError("source.attributes: column 'customer_id' is missing: select the shop's column AS customer_id")
    has_events = source.events is not None or source.archive is not None  # otherwise it is a snapshot, without time
    if has_events and VALID_FROM in columns:
        _read_changes(connection, query, columns.pop(VALID_FROM))
        if source.archive is not None:
            merge_changes(connection)
        create_newest(connection, columns)
        return columns, True
    _execute(
        connection,
        "source.attributes",
        f"""CREATE TABLE attributes AS
            FROM (SELECT * REPLACE (customer_id::VARCHAR AS customer_id) FROM ({query}\n))
            WHERE NOT ({LEFT_OUT[UNUSABLE_ID]})""",
    )
    ((repeated,),) = connection.execute("SELECT count(*) - count(DISTINCT customer_id) FROM attributes").fetchall()
    if repeated:
        raise InputError(
            f"source.attributes: {repeated:,} rows repeat a customer_id: select one row per customer, or if these are "
            f"changes, their time AS {VALID_FROM}"
        )
    if source.archive is not None:
        merge_attributes(connection, columns)
    return columns, False


def attributes_as_of(columns: Mapping[str, str], moment: str, changes: str = "changes") -> str:
    """SQL for the attributes that held at a time: customer_id and ``columns``, one row per customer.

    Args:
        columns: DuckDB types of the columns, by name.
        moment: SQL for the time, unix seconds; it may use columns of ``changes``.
        changes: The table of changes, or SQL in its place.
    """
    newest = f"""SELECT DISTINCT ON (customer_id, source_customer_id) * FROM {changes} WHERE valid_from <= {moment}
        ORDER BY customer_id, source_customer_id, valid_from DESC"""
    return f"SELECT {_merged(columns)} FROM ({newest}) GROUP BY customer_id"


def merge_changes(connection: duckdb.DuckDBPyConnection) -> None:
    """Assign the changes of aliases to their customers; as of any time they are merged as states are."""
    connection.execute(
        "UPDATE changes SET customer_id = root FROM aliases WHERE aliases.alias = changes.source_customer_id"
    )


def create_newest(connection: duckdb.DuckDBPyConnection, columns: Mapping[str, str]) -> None:
    """Create the table ``attributes`` from the newest changes; changes of the future are left out."""
    moment = "epoch(now()) + 86400"
    connection.execute(f"CREATE OR REPLACE TABLE attributes AS {attributes_as_of(columns, moment)}")


def _read_changes(connection: duckdb.DuckDBPyConnection, query: str, kind: str) -> None:
    """Create the table ``changes``."""
    if not kind.startswith(("TIMESTAMP", "DATE")):
        raise InputError(
            f"source.attributes: {VALID_FROM} is {kind}, not a TIMESTAMP or DATE: cast it, or give the column another "
            "name if it does not say from when the row is valid"
        )
    # NULL: always; infinity: never.
    time = f"coalesce(CASE WHEN isfinite({VALID_FROM}) THEN epoch({VALID_FROM}) ELSE {VALID_FROM}::VARCHAR::DOUBLE END"
    _execute(
        connection,
        "source.attributes",
        f"""CREATE TABLE changes AS
            FROM (SELECT * REPLACE (customer_id::VARCHAR AS customer_id, {time}, '-inf'::DOUBLE) AS {VALID_FROM}),
                customer_id::VARCHAR AS source_customer_id FROM ({query}\n))
            WHERE NOT ({LEFT_OUT[UNUSABLE_ID]})""",
    )
    ((repeated,),) = connection.execute(
        f"SELECT count(*) - count(DISTINCT (customer_id, {VALID_FROM})) FROM changes"
    ).fetchall()
    if repeated:
        raise InputError(
            f"source.attributes: {repeated:,} rows repeat a customer_id and a {VALID_FROM}: select one row per "
            "customer and time"
        )


def _read_query(connection: duckdb.DuckDBPyConnection, query: str) -> dict[str, str]:
    columns = _columns(connection, "source.events", query)
    for name in REQUIRED:
        if name not in columns:
            raise InputError(f"source.events: column '{name}' is missing: select the shop's column AS {name}")
    for name in columns:
        if name not in REQUIRED + OPTIONAL:
            raise InputError(
                f"source.events: unknown column '{name}': the canonical columns are {', '.join(REQUIRED + OPTIONAL)}"
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
    ids = ", ".join(f"{name if name in columns else 'NULL'}::VARCHAR AS {name}" for name in ("item_id", "event_id"))
    _execute(
        connection,
        "source.events",
        f"""CREATE TABLE read AS SELECT customer_id::VARCHAR AS customer_id,
            CASE WHEN isfinite(event_time) THEN epoch(event_time) END AS t,
            event_type::VARCHAR AS event_type, {numbers}, {ids} FROM ({query}\n)""",
    )
    return columns


def _make_view(connection: duckdb.DuckDBPyConnection) -> None:
    """Create the view ``events``. Every scan evaluates it, so ids are checked once each and not once per row."""
    connection.execute(
        f"""CREATE TABLE unusable AS SELECT * FROM (SELECT customer_id, count(*) AS rows FROM read GROUP BY customer_id)
            WHERE {LEFT_OUT[UNUSABLE_ID]}"""
    )
    left_out = [condition for reason, condition in LEFT_OUT.items() if reason != UNUSABLE_ID]
    left_out.append("customer_id IS NULL")
    if connection.execute("SELECT 1 FROM unusable WHERE customer_id IS NOT NULL LIMIT 1").fetchall():
        left_out.append("customer_id IN (SELECT customer_id FROM unusable WHERE customer_id IS NOT NULL)")
    connection.execute(f"CREATE VIEW events AS FROM read WHERE NOT ({' OR '.join(left_out)})")


def _read_archive(connection: duckdb.DuckDBPyConnection, folder: Path) -> None:
    """Read the events that were folded, under the ids of their customers. An event without an id gets LOG_ID."""

    def load(snapshot: ArchiveSnapshot) -> bool:
        connection.execute(f"CREATE OR REPLACE TABLE aliases AS {snapshot.aliases_sql}")
        connection.execute(
            f"""CREATE OR REPLACE TABLE read AS SELECT coalesce(root, customer_id) AS customer_id, t, event_type,
                amount, duration_s, item_id, coalesce(event_id, {LOG_ID}) AS event_id
                FROM ({snapshot.events_sql}) LEFT JOIN aliases ON alias = customer_id WHERE mark = ''"""
        )
        return bool(connection.execute(f"SELECT 1 FROM ({snapshot.events_sql}) LIMIT 1").fetchall())

    if not read_archive(folder, load):
        raise InputError(
            f"source.archive: {folder} holds no event yet: archive events first, or use source.events instead"
        )


def merge_attributes(connection: duckdb.DuckDBPyConnection, columns: Mapping[str, str]) -> None:
    """Merge the attributes of aliases into those of their customers as states merge: the larger number, never NULL."""
    connection.execute(
        "UPDATE attributes SET customer_id = aliases.root FROM aliases WHERE aliases.alias = attributes.customer_id"
    )
    connection.execute(
        f"CREATE OR REPLACE TABLE attributes AS SELECT {_merged(columns)} FROM attributes GROUP BY customer_id"
    )


def _merged(columns: Mapping[str, str]) -> str:
    """SQL for customer_id and the attributes of one customer's rows, merged."""
    merged = ["customer_id"]
    for name in columns:
        if name == "customer_id":
            continue
        column = identifier(name)
        value = f"max({column}) FILTER (isfinite({column}::DOUBLE))"
        if not NUMERIC.fullmatch(columns[name]):  # not the attribute of a numeric feature
            value = f"any_value({column})"
        merged.append(f"{value} AS {column}")
    return ", ".join(merged)


def _columns(connection: duckdb.DuckDBPyConnection, where: str, query: str) -> dict[str, str]:
    check_is_select(connection, where, query)
    return {row[0]: row[1] for row in _execute(connection, where, f"DESCRIBE {query}")}


def _execute(connection: duckdb.DuckDBPyConnection, where: str, query: str) -> list[tuple[str, ...]]:
    try:
        return connection.execute(query).fetchall()
    except duckdb.Error as error:
        hint = f": {HINT}" if isinstance(error, duckdb.PermissionException) else ""
        raise InputError(f"{where}: {str(error).split(chr(10) + 'LINE ')[0]}{hint}") from error
