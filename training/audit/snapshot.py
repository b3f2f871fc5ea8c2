"""Checks on a snapshot: the table ``attributes`` with one row per customer and a label."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import duckdb
import numpy as np

from feature_store.config import Snapshot
from feature_store.definitions import MAX_CATEGORIES
from feature_store.sql import identifier
from training.audit.columns import audit_columns, sample_rows, treatment_columns
from training.audit.events import FEW_CUSTOMERS, MIN_CUSTOMERS
from training.config import Treatment
from training.data.columns import columns_of, is_number, is_text, text_list
from training.evidence import Finding

MIN_OUTCOMES: Final = 20
"""Minimum number of customers with the rarer label, so that every part of a split has some to test on."""

LEAK_AUC: Final = 0.98
"""No single fact about a customer predicts this well; a column that does was written when the outcome was known."""

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
        findings += [_leak(name, auc) for name, auc in leaks(connection, snapshot.label, learnt).items()]
    return findings


def leaks(connection: duckdb.DuckDBPyConnection, label: str, columns: Mapping[str, str]) -> dict[str, float]:
    """Columns that predict the label on their own, with their AUC.

    Args:
        connection: Holds the table ``attributes``.
        label: The label's column: a number or BOOLEAN without NULL.
        columns: DuckDB types of the columns to check, by name.

    Returns:
        The AUC of each column with more than LEAK_AUC, by name.
    """
    rows = connection.execute("SELECT count(*) FROM attributes").fetchall()[0][0]
    aucs = {name: _auc(connection, name, kind, label, sample_rows(rows)) for name, kind in columns.items()}
    return {name: auc for name, auc in aucs.items() if auc > LEAK_AUC}


def _leak(name: str, auc: float) -> Finding:
    return Finding(
        severity="warning",
        check="leak",
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


def _auc(connection: duckdb.DuckDBPyConnection, name: str, kind: str, label: str, table: str) -> float:
    """AUC of one column for the label, in whichever direction is better; a missing value counts as the lowest.

    Values of a text column are ranked by their rate of the label if there are at most MAX_CATEGORIES of them; otherwise
    only whether there is a value counts. The AUC is the Mann-Whitney statistic, with ties counted half.
    """
    column = identifier(name)
    if is_number(kind):
        value = f"{column}::DOUBLE"
    elif kind.startswith(("DATE", "TIMESTAMP")):
        value = f"epoch({column})"
    elif is_text(kind):
        distinct = connection.execute(f"SELECT count(DISTINCT {column}) FROM {table}").fetchall()[0][0]
        value = f"{column}::VARCHAR" if distinct <= MAX_CATEGORIES else f"({column} IS NOT NULL)"
    else:
        return 0.5
    counts = connection.execute(
        f"""SELECT count(*) AS n, sum({identifier(label)}::DOUBLE) AS ones FROM {table}
            GROUP BY {value} ORDER BY {"ones / n" if is_text(kind) else f"{value} NULLS FIRST"}"""
    ).fetchnumpy()
    ones = np.asarray(counts["ones"], dtype=np.float64)
    zeros = np.asarray(counts["n"], dtype=np.float64) - ones
    below = np.cumsum(zeros) - zeros
    auc = float(ones @ (below + zeros / 2) / max(ones.sum() * zeros.sum(), 1.0))
    return max(auc, 1 - auc)
