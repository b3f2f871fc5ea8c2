"""How a column is turned into times or numbers, whatever form they are written in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import duckdb

from feature_store.offline.source import NUMERIC
from feature_store.sql import identifier

READ_SHARE: Final = 0.99
"""A column is in a form if all but a few of its values are: those few are left out as missing."""

DAY_FIRST: Final = ("%d{0}%m{0}%y", "%d{0}%m{0}%Y")
MONTH_FIRST: Final = ("%m{0}%d{0}%y", "%m{0}%d{0}%Y")
"""Years of two digits first: four are not read as two, while two may be read as four."""

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
"""Numbers that are times, by the values between which they lie (1980 to 2100), and how they are read."""


@dataclass(frozen=True)
class Form:
    """SQL that reads a column, in words, and what is unsure about it."""

    sql: str
    words: str
    unsure: str = ""


def time_form(connection: duckdb.DuckDBPyConnection, table: str, name: str, kind: str) -> Form | None:
    """How a column is read as a TIMESTAMP, None if it is no time."""
    column = identifier(name)
    if kind.startswith("TIMESTAMP"):
        return Form(column, kind)
    if kind == "DATE":
        return Form(f"{column}::TIMESTAMP", "DATE, without a time of day")
    text = column if kind == "VARCHAR" else f"{column}::BIGINT::VARCHAR"
    number = f"try_cast({column} AS DOUBLE)" if kind == "VARCHAR" else column
    if (NUMERIC.fullmatch(kind) and kind != "BOOLEAN") or kind == "VARCHAR":
        for words, low, high, sql in NUMBERS:
            inside = f"{number} BETWEEN {low} AND {high}"
            if "strptime" in sql:  # a calendar's numbers, not just any between two
                inside += f" AND {sql.format(column, text).replace('strptime', 'try_strptime')} IS NOT NULL"
            share = _share(connection, table, column, inside)
            if share >= READ_SHARE:
                read = sql.format(column, text)
                return Form(read if share == 1 else f"CASE WHEN {inside} THEN {read} END", words)
    return _text_time(connection, table, column) if kind == "VARCHAR" else None


def number_form(connection: duckdb.DuckDBPyConnection, table: str, name: str, kind: str) -> Form | None:
    """How a column is read as a number, None if it is none."""
    column = identifier(name)
    if NUMERIC.fullmatch(kind):
        return Form(column, kind)
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
            return Form(read, words)
    return None


def _text_time(connection: duckdb.DuckDBPyConnection, table: str, column: str) -> Form | None:
    zone = f"regexp_matches({column}, ':\\d\\d(\\.\\d+)?\\s*(Z|UTC|[+-]\\d\\d(:?\\d\\d)?)$')"
    kind = "TIMESTAMPTZ" if _share(connection, table, column, zone) >= READ_SHARE else "TIMESTAMP"
    iso = f"try_cast({column} AS {kind})"
    if _share(connection, table, column, f"{iso} IS NOT NULL") >= READ_SHARE:
        return Form(iso, "ISO text")
    for separator in ("/", ".", "-"):
        found = {
            first: form
            for first, dates in (("day", DAY_FIRST), ("month", MONTH_FIRST))
            if (form := _calendar(connection, table, column, [date.format(separator) for date in dates]))
        }
        if len(found) == 2:  # noqa: PLR2004 - both ways of writing
            choice = found["month"] if separator == "/" else found["day"]
            return Form(choice.sql, choice.words, "day and month may be the other way round")
        if found:
            return next(iter(found.values()))
    return None


def _calendar(connection: duckdb.DuckDBPyConnection, table: str, column: str, dates: list[str]) -> Form | None:
    for date in dates:
        formats = [date + clock for clock in CLOCKS]
        tried = [_share(connection, table, column, f"try_strptime({column}, '{form}') IS NOT NULL") for form in formats]
        best = max(range(len(formats)), key=tried.__getitem__)
        if tried[best] >= READ_SHARE:
            return Form(f"try_strptime({column}, '{formats[best]}')", f"text as {formats[best]}")
    return None


def _share(connection: duckdb.DuckDBPyConnection, table: str, column: str, rule: str) -> float:
    """Share of the values of a column for which a rule holds; 0 where there is none."""
    query = f"SELECT count(*) FILTER ({rule}) / count(*) FROM {table} WHERE {column} IS NOT NULL"
    share = connection.execute(query).fetchall()[0][0]
    return float(share or 0.0) if share == share else 0.0  # noqa: PLR0124 - NaN where there is no row
