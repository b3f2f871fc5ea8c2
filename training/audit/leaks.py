"""Leaks: columns of the customer table that predict a label on their own, as if they had been written afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import duckdb
import numpy as np

from feature_store.bundles.bundle import OFFERS
from feature_store.definitions import MAX_CATEGORIES, Feature
from feature_store.errors import InputError
from feature_store.offline.source import VALID_FROM
from feature_store.offline.store import OfflineStore
from feature_store.sql import fill_table, identifier
from feature_store.state.layout import StateLayout
from feature_store.timestamps import utc_date
from training.audit.columns import sample_rows
from training.config import TrainingConfig
from training.data.columns import is_number, is_text, text_list
from training.data.cutoffs import lay_out
from training.data.dataset import build_rows
from training.evidence import LEAK, WITHOUT_TIMES, Finding

LEAK_AUC: Final = 0.98
"""No single fact about a customer predicts this well; a column that does was written when the outcome was known."""

OUTCOME: Final = "tidemark_outcome"
"""Column of the label in a temporary table; a name that no attribute has."""


def find_leaks(
    connection: duckdb.DuckDBPyConnection, label: str, columns: Mapping[str, str], table: str = "attributes"
) -> dict[str, float]:
    """Columns that predict the label on their own, with their AUC.

    Args:
        connection: Holds the table.
        label: The label's column: a number or BOOLEAN without NULL.
        columns: DuckDB types of the columns to check, by name.
        table: Has customer_id, the label and the columns.

    Returns:
        The AUC of each column with more than LEAK_AUC, by name.
    """
    rows = connection.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0]
    aucs = {name: _auc(connection, name, kind, label, sample_rows(rows, table)) for name, kind in columns.items()}
    return {name: auc for name, auc in aucs.items() if auc > LEAK_AUC}


def audit_attribute_times(
    config: TrainingConfig, source: OfflineStore, columns: Mapping[str, str]
) -> Iterator[Finding]:
    """Check attributes beside events: whether they have times, and whether one predicts what came after a cut-off.

    Args:
        config: The config.
        source: The open source.
        columns: DuckDB types of the attributes that are learnt from, by name.

    Yields:
        A warning if the attributes have no times, and one for each leak.
    """
    if not columns:
        return
    if not source.attributes_have_times:
        yield Finding(
            severity="warning",
            check=WITHOUT_TIMES,
            where="source.attributes",
            message=f"{text_list(columns)}: these are today's values, used at every past cut-off; an attribute that "
            "changed after a cut-off may tell what happened then, and quality on past data is too optimistic",
            fix=f"select the time from which each row is valid AS {VALID_FROM}, with one row per change; otherwise "
            "keep only what never changes, such as the year of birth",
        )
    yield from _leaks(config, source, columns)


def _leaks(config: TrainingConfig, source: OfflineStore, columns: Mapping[str, str]) -> Iterator[Finding]:
    """Leaks into the labels at the newest training cut-off, on the attributes that held then."""
    try:
        cutoff = lay_out(config, source.summary.start, source.summary.end).newest_known
    except InputError:
        return  # the history is too short, which is a finding of its own
    layout = StateLayout([Feature(name="latest", aggregate="latest", event=config.churn.event)])
    rows = build_rows(source, layout, config, [cutoff])
    for offer in OFFERS:
        known = np.isfinite(rows.label(offer))
        labels = list(zip(rows.customer_id[known].tolist(), rows.label(offer)[known].tolist(), strict=True))
        fill_table(source.connection, "leak_labels", {"customer_id": "VARCHAR", OUTCOME: "DOUBLE"}, labels)
        source.connection.execute(
            f"CREATE OR REPLACE TABLE leak_rows AS FROM {source.attributes_at(cutoff)} "
            "JOIN leak_labels USING (customer_id)"
        )
        for name, auc in find_leaks(source.connection, OUTCOME, columns, "leak_rows").items():
            yield Finding(
                severity="warning",
                check=LEAK,
                where=f"attributes.{name}",
                message=f"it predicts {offer} after {utc_date(cutoff)} almost perfectly (AUC {auc:.3f}), as if it had "
                "been written afterwards",
                fix=f"do not select it, or give it its time ({VALID_FROM})",
            )


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
    pairs = ones.sum() * zeros.sum()
    auc = float(ones @ (below + zeros / 2) / pairs) if pairs else 0.5
    return max(auc, 1 - auc)
