"""Columns of a customer table: names, DuckDB types, and lists of names for messages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import duckdb

from feature_store.definitions import MAX_CATEGORIES
from feature_store.offline.source import NUMERIC

TEXT: Final = ("VARCHAR", "ENUM")
MAX_LISTED: Final = 10


def columns_of(connection: duckdb.DuckDBPyConnection) -> dict[str, str]:
    """DuckDB types by column name of the table ``attributes``, without the customer's id."""
    types = {row[0]: row[1] for row in connection.execute("DESCRIBE attributes").fetchall()}
    return {name: kind for name, kind in types.items() if name != "customer_id"}


def is_text(kind: str) -> bool:
    """Whether a DuckDB type holds text."""
    return kind.startswith(TEXT)


def is_number(kind: str) -> bool:
    """Whether a DuckDB type holds numbers or truth values."""
    return NUMERIC.fullmatch(kind) is not None


def text_list(names: Iterable[str]) -> str:
    """Names as text for a message: the first MAX_LISTED of them, and the number of the others."""
    shortened = [name if len(name) <= MAX_CATEGORIES else f"{name[:MAX_CATEGORIES]}…" for name in names]
    more = f" and {len(shortened) - MAX_LISTED:,} more" if len(shortened) > MAX_LISTED else ""
    return (", ".join(shortened[:MAX_LISTED]) or "none") + more
