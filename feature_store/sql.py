"""Building DuckDB SQL: quoting of names and values, and tables made of Python rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb


def identifier(name: str) -> str:
    """The name of a column or table, quoted for SQL."""
    return '"' + name.replace('"', '""') + '"'


def literal(value: object) -> str:
    """A string (or the text of a path) as a SQL literal."""
    return f"'{escaped(str(value))}'"


def escaped(text: str) -> str:
    """Text for use inside a SQL literal, between quotes that are there already."""
    return text.replace("'", "''")


def fill_table(
    connection: duckdb.DuckDBPyConnection, table: str, columns: Mapping[str, str], rows: Sequence[tuple[Any, ...]]
) -> None:
    """Create a table from rows, replacing one of the same name.

    Rows are passed as one list per column: DuckDB takes single rows thousands of times more slowly.

    Args:
        connection: Where to create it.
        table: Its name, which is not quoted.
        columns: DuckDB types by column name.
        rows: Values in the order of the columns.
    """
    lists = zip(*rows, strict=True) if rows else [[]] * len(columns)
    parts = ", ".join(f"unnest(${name}::{kind}[]) AS {name}" for name, kind in columns.items())
    connection.execute(
        f"CREATE OR REPLACE TABLE {table} AS SELECT {parts}",
        {name: list(values) for name, values in zip(columns, lists, strict=True)},
    )


def parquet_query(files: Sequence[Path], columns: Mapping[str, str]) -> str:
    """A query for the rows of Parquet files that have these columns (DuckDB types by name); no files, no rows."""
    if not files:
        return f"SELECT {', '.join(f'NULL::{kind} AS {name}' for name, kind in columns.items())} WHERE false"
    return f"SELECT {', '.join(columns)} FROM read_parquet([{', '.join(literal(file) for file in files)}])"
