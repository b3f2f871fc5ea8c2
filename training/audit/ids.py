"""Checks on ids that were taken for numbers on their way, so that they are no longer those of the shop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from feature_store.offline.store import OfflineStore
from training.evidence import Finding

FLOATS: Final = ("DOUBLE", "FLOAT")
SHORTENED: Final = "^[0-9]([.,][0-9]+)?[eE][+][0-9]+$"
"""How a spreadsheet writes a long number, such as 1.20E+11. Ids of digits and letters have no plus sign."""


def audit_ids(source: OfflineStore) -> Iterator[Finding]:
    """Find columns of ids that are read as floating-point numbers, and customers' ids that a spreadsheet shortened."""
    for column, kind in source.id_types.items():
        if kind in FLOATS:
            yield Finding(
                severity="fatal" if column.endswith("customer_id") else "warning",
                check="ids",
                where=column,
                message=f"the ids are read as numbers ({kind}): 1e5 becomes 100000.0, and long ids become the same",
                fix=f"read them as text, for example read_csv(…, types = {{'{column.partition('.')[2]}': 'VARCHAR'}})",
            )
    if any(kind in FLOATS for column, kind in source.id_types.items() if column.endswith("customer_id")):
        return  # their text looks as if a spreadsheet had shortened it
    table = "attributes" if source.attribute_columns and not source.summary.events else "events"
    customers, shortened = source.connection.execute(
        f"""SELECT count(*), count(*) FILTER (regexp_matches(customer_id, '{SHORTENED}'))
            FROM (SELECT DISTINCT customer_id FROM {table})"""
    ).fetchall()[0]
    if shortened:
        yield Finding(
            severity="warning",
            check="ids",
            where=f"{table}.customer_id",
            message=f"{shortened:,} of {customers:,} ids look like numbers that a spreadsheet shortened (1.20E+11)",
            fix="export the ids as text from where they are whole: several customers may have become one",
            share=shortened / customers,
        )
