"""What may be wrong with a snapshot, the table ``attributes`` with one row per customer and a label."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import duckdb
import numpy as np

from feature_store.config import Snapshot
from feature_store.definitions import MAX_CATEGORIES
from training.audit.columns import (
    audit_columns,
    columns_of,
    is_number,
    is_text,
    quoted,
    sample_rows,
    text_list,
    treatment_columns,
)
from training.audit.events import FEW_CUSTOMERS, LEAST_CUSTOMERS
from training.config import Treatment
from training.evidence import Finding

LEAST_OUTCOMES: Final = 20
"""Customers of the rarer label without whom no split leaves enough of them to check anything."""

LEAK_AUC: Final = 0.98
"""No single fact foretells customers so well: a column that does was written when the outcome was known."""

LEAVE_OUT: Final = "name it in snapshot.leave_out"


def audit_snapshot(
    snapshot: Snapshot, connection: duckdb.DuckDBPyConnection, treatment: Treatment | None = None
) -> list[Finding]:
    """Everything found in the connection's table ``attributes``."""
    columns = columns_of(connection)
    found = [*_named(snapshot, columns, treatment), *_ids(connection)]
    label = columns.get(snapshot.label)
    if label is not None:
        found += _label(connection, snapshot.label, label)
    not_learnt = {snapshot.label, snapshot.group, snapshot.value, *snapshot.leave_out}
    learnt = {name: kind for name, kind in columns.items() if name not in not_learnt}
    found += audit_columns(connection, learnt, "snapshot", LEAVE_OUT)
    if label is not None and not any(finding.check == "label" for finding in found):
        found += [_leak(name, auc) for name, auc in leaks(connection, snapshot.label, learnt).items()]
    return found


def leaks(connection: duckdb.DuckDBPyConnection, label: str, columns: Mapping[str, str]) -> dict[str, float]:
    """Columns that tell the label alone (a number or truth value without gaps), with their AUC."""
    rows = connection.execute("SELECT count(*) FROM attributes").fetchall()[0][0]
    found = {name: _auc(connection, name, kind, label, sample_rows(rows)) for name, kind in columns.items()}
    return {name: auc for name, auc in found.items() if auc > LEAK_AUC}


def _leak(name: str, auc: float) -> Finding:
    return Finding(
        severity="warning",
        check="leak",
        where=f"snapshot.{name}",
        message=f"it tells the label all by itself (AUC {auc:.3f}), as if it had been written afterwards",
        mend=f"{LEAVE_OUT}, unless it was known before",
    )


def _named(snapshot: Snapshot, columns: Mapping[str, str], treatment: Treatment | None) -> Iterator[Finding]:
    """Columns that the config names and the table does not have, and those that are no numbers."""
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
                mend=f"name one that it has: {text_list(columns)}",
            )
    for key, name in numbers.items():
        if name in columns and not is_number(columns[name]):
            yield Finding(
                severity="fatal",
                check="config",
                where=f"snapshot.{key}",
                message=f"column '{name}' is {columns[name]}, not a number",
                mend="convert it in snapshot.table",
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
            mend="select one row per customer",
            share=repeated / rows,
        )
    if rows < FEW_CUSTOMERS:
        yield Finding(
            severity="fatal" if rows < LEAST_CUSTOMERS else "warning",
            check="customers",
            where="snapshot.table",
            message=f"it has {rows:,} customers, at least {LEAST_CUSTOMERS} are needed and {FEW_CUSTOMERS} make sense",
            mend="bring more customers",
        )


def _label(connection: duckdb.DuckDBPyConnection, name: str, kind: str) -> Iterator[Finding]:
    column, where = quoted(name), f"column '{name}'"
    if not is_number(kind):
        yield _bad_label(f"{where} is {kind}, not 0 or 1", f"select ({column} = …)::INTEGER AS {name}")
        return
    rows, filled, zeros, ones = connection.execute(
        f"SELECT count(*), count({column}), count(*) FILTER ({column}::DOUBLE = 0), "
        f"count(*) FILTER ({column}::DOUBLE = 1) FROM attributes"
    ).fetchall()[0]
    other = filled - zeros - ones
    if not filled:
        yield _bad_label(f"{where} has no value in any row", "name another column, or bring customers with a label")
    elif filled < rows:
        message = f"{rows - filled:,} of {rows:,} rows have no value in {where}: nothing is learnt from them"
        yield Finding(
            severity="note",
            check="no label",
            where="snapshot.label",
            message=message,
            mend="nothing to do where these are the customers to score",
            share=(rows - filled) / rows,
        )
    if other:
        message = f"{other:,} of {rows:,} rows have another value than 0 and 1 in {where}"
        yield _bad_label(message, f"say in SQL which count: ({column} > …)::INTEGER AS {name}", other / rows)
    elif filled and min(zeros, ones) == 0:
        yield _bad_label(f"{where} is the same in every row", "bring customers of both kinds, or name another column")
    elif filled and min(zeros, ones) < LEAST_OUTCOMES:
        message = f"{min(zeros, ones):,} customers have the rarer label in {where}, {LEAST_OUTCOMES} are needed"
        yield _bad_label(message, "bring more customers, or name another column")


def _bad_label(message: str, mend: str, share: float | None = None) -> Finding:
    return Finding(severity="fatal", check="label", where="snapshot.label", message=message, mend=mend, share=share)


def _auc(connection: duckdb.DuckDBPyConnection, name: str, kind: str, label: str, table: str) -> float:
    """AUC of one column for the label, whichever way it points; missing counts as the lowest value.

    A text counts by how often its value goes with the label, if it has few values, else only whether it is there.
    """
    column = quoted(name)
    if is_number(kind):
        value = f"{column}::DOUBLE"
    elif kind.startswith(("DATE", "TIMESTAMP")):
        value = f"epoch({column})"
    elif is_text(kind):
        distinct = connection.execute(f"SELECT count(DISTINCT {column}) FROM {table}").fetchall()[0][0]
        value = f"{column}::VARCHAR" if distinct <= MAX_CATEGORIES else f"({column} IS NOT NULL)"
    else:
        return 0.5
    found = connection.execute(
        f"""SELECT count(*) AS n, sum({quoted(label)}::DOUBLE) AS ones FROM {table}
            GROUP BY {value} ORDER BY {"ones / n" if is_text(kind) else f"{value} NULLS FIRST"}"""
    ).fetchnumpy()
    ones = np.asarray(found["ones"], dtype=np.float64)
    zeros = np.asarray(found["n"], dtype=np.float64) - ones
    below = np.cumsum(zeros) - zeros
    auc = float(ones @ (below + zeros / 2) / max(ones.sum() * zeros.sum(), 1.0))
    return max(auc, 1 - auc)
