"""What may be wrong with the columns of the table ``attributes``: empty, constant, ids, too many texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import duckdb

from feature_store.definitions import MAX_CATEGORIES
from feature_store.offline.source import NUMERIC
from training.config import Treatment
from training.evidence import Finding

SAMPLE_ROWS: Final = 100_000
"""Rows in which values are counted: enough to tell an id from a category, and quick for any number of columns."""

EMPTY_SHARE: Final = 0.5
"""A column that most rows lack says more about who was asked than about the customer."""

UNIQUE_SHARE: Final = 0.95
"""A text that hardly ever occurs twice tells rows apart and groups none: an id, a name or free words."""

LEAST_UNIQUE_ROWS: Final = 1_000
"""Of fewer rows whole numbers may well differ all by themselves."""

WHOLE: Final = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT")
TEXT: Final = ("VARCHAR", "ENUM")
MOST_LISTED: Final = 10


def columns_of(connection: duckdb.DuckDBPyConnection) -> dict[str, str]:
    """DuckDB types of the columns of ``attributes``, without the id."""
    found = {row[0]: row[1] for row in connection.execute("DESCRIBE attributes").fetchall()}
    return {name: kind for name, kind in found.items() if name != "customer_id"}


def treatment_columns(treatment: Treatment | None) -> list[tuple[str, str]]:
    """Where a config's treatment names columns, and which."""
    if treatment is None:
        return []
    named = [("treatment.column", treatment.column), ("treatment.outcome", treatment.outcome)]
    if isinstance(treatment.probability, str):
        named.append(("treatment.probability", treatment.probability))
    return named


def quoted(name: str) -> str:
    """A column's name in SQL."""
    return '"' + name.replace('"', '""') + '"'


def is_text(kind: str) -> bool:
    """Whether a DuckDB type holds text."""
    return kind.startswith(TEXT)


def is_number(kind: str) -> bool:
    """Whether a DuckDB type holds numbers or truth values."""
    return NUMERIC.fullmatch(kind) is not None


def sample_rows(rows: int) -> str:
    """SQL for the table, or of a large one for about SAMPLE_ROWS rows, the same ones each time."""
    parts = -(-rows // SAMPLE_ROWS)
    return "attributes" if parts <= 1 else f"(FROM attributes WHERE hash(customer_id) % {parts} = 0)"


def audit_columns(
    connection: duckdb.DuckDBPyConnection, columns: Mapping[str, str], where: str, mend: str = "do not select it"
) -> Iterator[Finding]:
    """Findings about each column (its DuckDB type by name); ``mend``: how to leave one out."""
    if not columns:
        return
    counts = ", ".join(f"count({quoted(name)})" for name in columns)
    rows, *filled = connection.execute(f"SELECT count(*), {counts} FROM attributes").fetchall()[0]
    if not rows:
        return
    values = ", ".join(f"count(DISTINCT {quoted(name)}), count({quoted(name)})" for name in columns)
    found = connection.execute(f"SELECT {values} FROM {sample_rows(rows)}").fetchall()[0]
    for i, (name, kind) in enumerate(columns.items()):
        yield from _missing(name, 1 - filled[i] / rows, where, mend)
        if filled[i]:
            yield from _values(name, kind, found[2 * i : 2 * i + 2], where, mend)


def _missing(name: str, share: float, where: str, mend: str) -> Iterator[Finding]:
    if share == 1:
        yield Finding(
            severity="warning",
            check="completeness",
            where=f"{where}.{name}",
            message="it is empty in every row",
            mend=f"look why, or {mend}",
            share=1.0,
        )
    elif share:
        yield Finding(
            severity="warning" if share > EMPTY_SHARE else "note",
            check="completeness",
            where=f"{where}.{name}",
            message=f"it is missing in {share:.1%} of the rows",
            mend="fine where it is not known of everybody; look whether it gets lost on the way",
            share=share,
        )


def _values(name: str, kind: str, counts: tuple[int, int], where: str, mend: str) -> Iterator[Finding]:
    """What ``counts`` says: how many different values there are in how many rows of the sample."""
    values, rows = counts
    if values == 1:
        yield Finding(
            severity="note",
            check="constant column",
            where=f"{where}.{name}",
            message="it has the same value in every row",
            mend=f"{mend}: nothing can be learnt from it",
        )
    elif not is_text(kind) and not is_number(kind):
        yield Finding(
            severity="note",
            check="column type",
            where=f"{where}.{name}",
            message=f"it is {kind}, neither a number nor a text, and is not learnt from",
            mend="convert it in SQL, a date for example to days before the table was made",
        )
    elif _is_id(kind, values, rows):
        yield Finding(
            severity="warning",
            check="id column",
            where=f"{where}.{name}",
            message="hardly a value occurs twice: it is an id, a name or free text",
            mend=f"{mend}: it tells customers apart and says nothing of new ones",
            share=values / rows,
        )
    elif is_text(kind) and values > MAX_CATEGORIES:
        yield Finding(
            severity="warning",
            check="many values",
            where=f"{where}.{name}",
            message=f"it has about {values:,} different texts, {MAX_CATEGORIES} are told apart",
            mend=f"group them in SQL (a region instead of a town), or {mend}",
        )


def _is_id(kind: str, values: int, rows: int) -> bool:
    if is_text(kind):
        return values > MAX_CATEGORIES and values >= UNIQUE_SHARE * rows
    return kind.removeprefix("U") in WHOLE and rows >= LEAST_UNIQUE_ROWS and values == rows


def text_list(names: Iterable[str]) -> str:
    """Some names as text, the first MOST_LISTED of them."""
    every = [name if len(name) <= MAX_CATEGORIES else f"{name[:MAX_CATEGORIES]}…" for name in names]
    more = f" and {len(every) - MOST_LISTED:,} more" if len(every) > MOST_LISTED else ""
    return (", ".join(every[:MOST_LISTED]) or "none") + more
