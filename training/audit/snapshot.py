"""Checks on a snapshot: the table ``attributes`` with one row per customer and a label."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import duckdb

from feature_store.config import Snapshot
from feature_store.sql import identifier
from training.audit.columns import audit_columns, treatment_columns
from training.audit.events import FEW_CUSTOMERS, MIN_CUSTOMERS
from training.audit.leaks import find_leaks
from training.config import Treatment
from training.data.columns import columns_of, is_number, text_list
from training.evidence import LEAK, Finding

MIN_OUTCOMES: Final = 20
"""Minimum number of customers with the rarer label, so that every part of a split has some to test on."""

LEAVE_OUT: Final = "add it to snapshot.leave_out"


def audit_snapshot(
    snapshot: Snapshot, connection: duckdb.DuckDBPyConnection, treatment: Treatment | None = None
) -> list[Finding]:
    """Check a snapshot.

    Args:
        snapshot: The config section.
        connection: Holds the snapshot as the table ``attributes``.
        treatment: The config section ``[treatment]``, whose columns must exist as well.

    Returns:
        The findings, in no order of severity.
    """
    columns = columns_of(connection)
    findings = [*_named(snapshot, columns, treatment), *_ids(connection)]
    label = columns.get(snapshot.label)
    if label is not None:
        findings += _label(connection, snapshot.label, label)
    excluded = {snapshot.label, snapshot.group, snapshot.value, *snapshot.leave_out}
    learnt = {name: kind for name, kind in columns.items() if name not in excluded}
    findings += audit_columns(connection, learnt, "snapshot", LEAVE_OUT)
    if label is not None and not any(finding.check == "label" for finding in findings):
        findings += [_leak(name, auc) for name, auc in find_leaks(connection, snapshot.label, learnt).items()]
    return findings


def _leak(name: str, auc: float) -> Finding:
    return Finding(
        severity="warning",
        check=LEAK,
        where=f"snapshot.{name}",
        message=f"it predicts the label almost perfectly (AUC {auc:.3f}), as if it had been written afterwards",
        fix=f"{LEAVE_OUT}, unless it was known before the outcome",
    )


def _named(snapshot: Snapshot, columns: Mapping[str, str], treatment: Treatment | None) -> Iterator[Finding]:
    """Findings about columns that the config names and that are missing, or not numbers where they have to be."""
    numbers = {key: getattr(snapshot, key) for key in ("value", "contact_cost", "offer_cost")}
    named = [("snapshot.label", snapshot.label), ("snapshot.group", snapshot.group)]
    named += [(f"snapshot.{key}", name) for key, name in numbers.items()]
    named += [("snapshot.leave_out", name) for name in snapshot.leave_out]
    named += treatment_columns(treatment)
    for where, name in named:
        if name is not None and name not in columns:
            yield Finding(
                severity="fatal",
                check="config",
                where=where,
                message=f"snapshot.table has no column '{name}'",
                fix=f"name one that it has: {text_list(columns)}",
            )
    for key, name in numbers.items():
        if name in columns and not is_number(columns[name]):
            yield Finding(
                severity="fatal",
                check="config",
                where=f"snapshot.{key}",
                message=f"column '{name}' is {columns[name]}, not a number",
                fix="convert it in snapshot.table",
            )


def _ids(connection: duckdb.DuckDBPyConnection) -> Iterator[Finding]:
    rows, repeated = connection.execute(
        "SELECT count(*), count(customer_id) - count(DISTINCT customer_id) FROM attributes"
    ).fetchall()[0]
    if repeated:
        yield Finding(
            severity="fatal",
            check="duplicates",
            where="snapshot.customer_id",
            message=f"{repeated:,} of {rows:,} rows repeat a customer_id",
            fix="select one row per customer",
            share=repeated / rows,
        )
    if rows < FEW_CUSTOMERS:
        yield Finding(
            severity="fatal" if rows < MIN_CUSTOMERS else "warning",
            check="customers",
            where="snapshot.table",
            message=f"it has {rows:,} customers; {MIN_CUSTOMERS} are required and at least {FEW_CUSTOMERS} recommended",
            fix="add customers",
        )


def _label(connection: duckdb.DuckDBPyConnection, name: str, kind: str) -> Iterator[Finding]:
    column, where = identifier(name), f"column '{name}'"
    if not is_number(kind):
        yield _bad_label(f"{where} is {kind}, not 0 or 1", f"select ({column} = …)::INTEGER AS {name}")
        return
    rows, filled, zeros, ones = connection.execute(
        f"SELECT count(*), count({column}), count(*) FILTER ({column}::DOUBLE = 0), "
        f"count(*) FILTER ({column}::DOUBLE = 1) FROM attributes"
    ).fetchall()[0]
    other = filled - zeros - ones
    if not filled:
        yield _bad_label(f"{where} has no value in any row", "name another column, or add customers with a label")
    elif filled < rows:
        message = f"{rows - filled:,} of {rows:,} rows have no value in {where} and are not used for training"
        yield Finding(
            severity="note",
            check="no label",
            where="snapshot.label",
            message=message,
            fix="nothing to do if these are the customers to score",
            share=(rows - filled) / rows,
        )
    if other:
        message = f"{other:,} of {rows:,} rows have a value other than 0 and 1 in {where}"
        yield _bad_label(message, f"define the label in SQL: ({column} > …)::INTEGER AS {name}", other / rows)
    elif filled and min(zeros, ones) == 0:
        yield _bad_label(
            f"{where} is the same in every row", "add customers with the other label, or name another column"
        )
    elif filled and min(zeros, ones) < MIN_OUTCOMES:
        message = f"{min(zeros, ones):,} customers have the rarer label in {where}; {MIN_OUTCOMES} are required"
        yield _bad_label(message, "add customers, or name another column")


def _bad_label(message: str, fix: str, share: float | None = None) -> Finding:
    return Finding(severity="fatal", check="label", where="snapshot.label", message=message, fix=fix, share=share)
