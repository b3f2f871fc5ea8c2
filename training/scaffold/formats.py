"""Recognising how times and numbers are written in a column, and the SQL that reads them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import duckdb

from feature_store.offline.source import NUMERIC
from feature_store.sql import identifier

READ_SHARE: Final = 0.99
"""Minimum share of values that must match a format; the others become missing."""

FIRST_SHARE: Final = 2 * (1 - READ_SHARE)
"""Share of the values that a format is tried on first: nearly all formats fail there, long before the last row."""

DAY_FIRST: Final = ("%d{0}%m{0}%y", "%d{0}%m{0}%Y")
MONTH_FIRST: Final = ("%m{0}%d{0}%y", "%m{0}%d{0}%Y")
"""Two-digit years first: DuckDB does not read four digits as two, but may read two digits as four."""

CLOCKS: Final = ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p")

NUMBERS: Final = (
    ("DATE as yyyymmdd", 19_000_101, 21_001_231, "strptime({1}, '%Y%m%d')"),
    ("unix seconds", 315_532_800, 4_102_444_800, "to_timestamp({0}::DOUBLE)"),
    ("unix milliseconds", 315_532_800e3, 4_102_444_800e3, "to_timestamp({0}::DOUBLE / 1e3)"),
    (
        "time as yyyymmddhhmmss",
        19_000_101_000_000,
        21_001_231_235_959,
        "strptime({1}, '%Y%m%d%H%M%S')",
    ),
    ("unix microseconds", 315_532_800e6, 4_102_444_800e6, "to_timestamp({0}::DOUBLE / 1e6)"),
    ("unix nanoseconds", 315_532_800e9, 4_102_444_800e9, "to_timestamp({0}::DOUBLE / 1e9)"),
)
"""Numbers that stand for times: a name, the range from 1980 (dates: 1900) to 2100, and the SQL that reads them."""


@dataclass(frozen=True)
class ColumnFormat:
    """SQL that reads a column, a description of the format, and the guess in it that a person should check."""

    sql: str
    words: str
    unsure: str = ""


def time_format(connection: duckdb.DuckDBPyConnection, table: str, name: str, kind: str) -> ColumnFormat | None:
    """The format that reads a column as TIMESTAMP; None if it has no times."""
    column = identifier(name)
    if kind.startswith("TIMESTAMP"):
        return ColumnFormat(column, kind)
    if kind == "DATE":
        return ColumnFormat(f"{column}::TIMESTAMP", "DATE, without a time of day")
    text = column if kind == "VARCHAR" else f"{column}::BIGINT::VARCHAR"
    number = f"try_cast({column} AS DOUBLE)" if kind == "VARCHAR" else column
    if (NUMERIC.fullmatch(kind) and kind != "BOOLEAN") or kind == "VARCHAR":
        for words, low, high, sql in NUMBERS:
            inside = f"{number} BETWEEN {low} AND {high}"
            if "strptime" in sql:  # valid dates, not any number in the range
                inside += f" AND {sql.format(column, text).replace('strptime', 'try_strptime')} IS NOT NULL"
            share = _share(connection, table, column, inside)
            if share >= READ_SHARE:
                read = sql.format(column, text)
                return ColumnFormat(read if share == 1 else f"CASE WHEN {inside} THEN {read} END", words)
    return _text_time(connection, table, column) if kind == "VARCHAR" else None


def number_format(connection: duckdb.DuckDBPyConnection, table: str, name: str, kind: str) -> ColumnFormat | None:
    """The format that reads a column as a number; None if it has no numbers."""
    column = identifier(name)
    if NUMERIC.fullmatch(kind):
        return ColumnFormat(column, kind)
    if kind != "VARCHAR":
        return None
    plain = f"regexp_replace({column}, '[$€£\\s]', '', 'g')"
    comma = f"replace({plain}, ',', '.')"
    for sql, words, rule in (
        (column, "text", ""),
        (comma, "text with decimal commas", f" AND NOT regexp_matches({column}, '[.]|,\\d{{3}}|,.*,')"),
        (
            f"replace({plain}, ',', '')",
            "text with currency or thousands",
            f" AND NOT regexp_matches({column}, ',\\d{{1,2}}$')",
        ),
    ):
        read = f"try_cast({sql} AS DOUBLE)"
        if _share(connection, table, column, f"{read} IS NOT NULL{rule}") >= READ_SHARE:
            return ColumnFormat(read, words)
    return None


def _text_time(connection: duckdb.DuckDBPyConnection, table: str, column: str) -> ColumnFormat | None:
    zone = f"regexp_matches({column}, ':\\d\\d(\\.\\d+)?\\s*(Z|UTC|[+-]\\d\\d(:?\\d\\d)?)$')"
    kind = "TIMESTAMPTZ" if _share(connection, table, column, zone) >= READ_SHARE else "TIMESTAMP"
    iso = f"try_cast({column} AS {kind})"
    if _share(connection, table, column, f"{iso} IS NOT NULL") >= READ_SHARE:
        return ColumnFormat(iso, "ISO text")
    for separator in ("/", ".", "-"):
        matching = {
            first: form
            for first, dates in (("day", DAY_FIRST), ("month", MONTH_FIRST))
            if (form := _calendar(connection, table, column, [date.format(separator) for date in dates]))
        }
        if len(matching) == 2:  # noqa: PLR2004 - both orders match
            choice = matching["month"] if separator == "/" else matching["day"]
            return ColumnFormat(choice.sql, choice.words, "day and month may be swapped")
        if matching:
            return next(iter(matching.values()))
    return None


def _calendar(connection: duckdb.DuckDBPyConnection, table: str, column: str, dates: list[str]) -> ColumnFormat | None:
    for date in dates:
        formats = [date + clock for clock in CLOCKS]
        shares = [
            _share(connection, table, column, f"try_strptime({column}, '{form}') IS NOT NULL") for form in formats
        ]
        best = max(range(len(formats)), key=shares.__getitem__)
        if shares[best] >= READ_SHARE:
            return ColumnFormat(f"try_strptime({column}, '{formats[best]}')", f"text as {formats[best]}")
    return None


def _share(connection: duckdb.DuckDBPyConnection, table: str, column: str, rule: str) -> float:
    """Share of the values of a column that satisfy a SQL condition.

    Returns:
        0 if there are no values, and if the first ones show that the share is below READ_SHARE.
    """
    values = f"SELECT {column} FROM {table} WHERE {column} IS NOT NULL"
    count = _count(connection, values, "true")
    tried = math.ceil(FIRST_SHARE * count)
    failed = tried - _count(connection, f"{values} LIMIT {tried}", rule)
    if failed > (1 - READ_SHARE) * count or not count:
        return 0.0
    return _count(connection, values, rule) / count


def _count(connection: duckdb.DuckDBPyConnection, values: str, rule: str) -> int:
    """Number of the values of a query that satisfy a SQL condition."""
    return int(connection.execute(f"SELECT count(*) FILTER ({rule}) FROM ({values})").fetchall()[0][0])
