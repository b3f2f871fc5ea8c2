"""Checks on the columns of the table ``attributes``: missing values, constants, ids, too many categories."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import duckdb

from feature_store.definitions import MAX_CATEGORIES
from feature_store.sql import identifier
from training.config import Treatment
from training.data.columns import is_number, is_text
from training.evidence import Finding

SAMPLE_ROWS: Final = 100_000
"""Number of rows in which distinct values are counted: enough to tell an id from a category, and fast for many
columns."""

EMPTY_SHARE: Final = 0.5
"""A column that is missing in most rows says more about how it was collected than about the customers."""

UNIQUE_SHARE: Final = 0.95
"""A text column whose values hardly ever repeat is an id, a name or free text: nothing can be generalised from it."""

MIN_UNIQUE_ROWS: Final = 1_000
"""With fewer rows, whole numbers that are no ids may all be distinct by chance."""

WHOLE: Final = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT")


def treatment_columns(treatment: Treatment | None) -> list[tuple[str, str]]:
    """Columns that ``[treatment]`` names: pairs of the config key and the column."""
    if treatment is None:
        return []
    named = [("treatment.column", treatment.column), ("treatment.outcome", treatment.outcome)]
    if isinstance(treatment.probability, str):
        named.append(("treatment.probability", treatment.probability))
    if treatment.time is not None:
        named.append(("treatment.time", treatment.time))
    return named


def sample_rows(rows: int, table: str = "attributes") -> str:
    """SQL for a table, or for a deterministic sample of about SAMPLE_ROWS of its ``rows`` rows."""
    parts = -(-rows // SAMPLE_ROWS)
    return table if parts <= 1 else f"(FROM {table} WHERE hash(customer_id) % {parts} = 0)"


def audit_columns(
    connection: duckdb.DuckDBPyConnection, columns: Mapping[str, str], where: str, fix: str = "do not select it"
) -> Iterator[Finding]:
    """Check each column of ``attributes``.

    Args:
        connection: Holds the table ``attributes``.
        columns: DuckDB types of the columns to check, by name.
        where: What stands before the column's name in a finding, such as ``snapshot``.
        fix: How to leave a column out, as the end of a sentence.

    Yields:
        The findings, column by column.
    """
    if not columns:
        return
    counts = ", ".join(f"count({identifier(name)})" for name in columns)
    rows, *filled = connection.execute(f"SELECT count(*), {counts} FROM attributes").fetchall()[0]
    if not rows:
        return
    values = ", ".join(f"count(DISTINCT {identifier(name)}), count({identifier(name)})" for name in columns)
    counted = connection.execute(f"SELECT {values} FROM {sample_rows(rows)}").fetchall()[0]
    for i, (name, kind) in enumerate(columns.items()):
        yield from _missing(name, 1 - filled[i] / rows, where, fix)
        if filled[i]:
            yield from _values(name, kind, counted[2 * i : 2 * i + 2], where, fix)


def _missing(name: str, share: float, where: str, fix: str) -> Iterator[Finding]:
    if share == 1:
        yield Finding(
            severity="warning",
            check="completeness",
            where=f"{where}.{name}",
            message="it is empty in every row",
            fix=f"find out why, or {fix}",
            share=1.0,
        )
    elif share:
        yield Finding(
            severity="warning" if share > EMPTY_SHARE else "note",
            check="completeness",
            where=f"{where}.{name}",
            message=f"it is missing in {share:.1%} of the rows",
            fix="nothing to do if the shop does not know it for every customer; otherwise check whether it gets lost "
            "on the way",
            share=share,
        )


def _values(name: str, kind: str, counts: tuple[int, int], where: str, fix: str) -> Iterator[Finding]:
    """Findings about the values; ``counts``: number of distinct values, and of rows of the sample that have one."""
    values, rows = counts
    if values == 1:
        yield Finding(
            severity="note",
            check="constant column",
            where=f"{where}.{name}",
            message="it has the same value in every row",
            fix=f"{fix}: nothing can be learnt from it",
        )
    elif not is_text(kind) and not is_number(kind):
        yield Finding(
            severity="note",
            check="column type",
            where=f"{where}.{name}",
            message=f"its type is {kind}, neither a number nor text, so it is not used as a feature",
            fix="convert it in SQL, for example a date to the number of days before the table was made",
        )
    elif _is_id(kind, values, rows):
        yield Finding(
            severity="warning",
            check="id column",
            where=f"{where}.{name}",
            message="hardly any value occurs twice: it is an id, a name or free text",
            fix=f"{fix}: it identifies customers, and nothing learnt from it applies to new ones",
            share=values / rows,
        )
    elif is_text(kind) and values > MAX_CATEGORIES:
        yield Finding(
            severity="warning",
            check="many values",
            where=f"{where}.{name}",
            message=f"it has about {values:,} distinct values; only {MAX_CATEGORIES} of them become categories",
            fix=f"group them in SQL (regions instead of towns), or {fix}",
        )


def _is_id(kind: str, values: int, rows: int) -> bool:
    if is_text(kind):
        return values > MAX_CATEGORIES and values >= UNIQUE_SHARE * rows
    return kind.removeprefix("U") in WHOLE and rows >= MIN_UNIQUE_ROWS and values == rows
