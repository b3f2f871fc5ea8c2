"""Checks on the values of events: partly filled columns, negative values and outliers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import duckdb

from training.audit.event_types import MAX_TYPES, EventType
from training.evidence import Finding

FILLED: Final = (0.01, 0.99)
"""An event type either has a column or does not. A share of filled values in between suggests that some were lost."""

NO_AMOUNT_SHARE: Final = 0.05
"""Purchases without an amount count as zero spend: above this share expected spend is noticeably too low."""

NEGATIVE_SHARE: Final = 0.5
"""Returns are rarer than purchases: if most amounts are negative, the sign is reversed."""

OUTLIER_FACTOR: Final = 4
"""An outlier is this many (logarithmic) interquartile ranges above the upper quartile: for a lognormal amount that is
6 standard deviations, one in a billion."""

MIN_RATIO: Final = 1.5
"""Lower bound for the ratio of the quartiles, for data in which most prices are equal."""

OUTLIER_SHARE: Final = 0.05
"""Outliers with more than this share of the sum dominate the fit of expected spend."""

FIELDS: Final = ("amount", "duration_s")


def audit_values(
    connection: duckdb.DuckDBPyConnection, purchase: str, types: Sequence[EventType], sample: str
) -> Iterator[Finding]:
    """Check the values of events.

    Args:
        connection: Holds the view ``events``.
        purchase: The event type whose amounts are the spend.
        types: Counts by event type.
        sample: SQL for the events of a sample of customers.

    Yields:
        The findings.
    """
    for kind in types[:MAX_TYPES]:
        for column in kind.filled:
            if kind.name == purchase and column == "amount":
                yield from _amounts(kind)
            else:
                yield from _partly_filled(kind, column)
        yield from _negative(kind)
    yield from _outliers(connection, [kind.name for kind in types[:MAX_TYPES]], sample)


def _amounts(kind: EventType) -> Iterator[Finding]:
    missing = kind.events - kind.filled["amount"]
    if missing:
        yield Finding(
            severity="warning" if missing > NO_AMOUNT_SHARE * kind.events else "note",
            check="completeness",
            where="events.amount",
            message=f"{missing:,} of {kind.events:,} events of type '{kind.name}' ({missing / kind.events:.1%}) have "
            "no amount and count as zero spend",
            fix="select what was paid, or 1 AS amount if it is not known: value is then a number of purchases",
            share=missing / kind.events,
        )


def _partly_filled(kind: EventType, column: str) -> Iterator[Finding]:
    share = kind.filled[column] / kind.events
    if FILLED[0] < share < FILLED[1]:
        yield Finding(
            severity="note",
            check="completeness",
            where=f"events.{column}",
            message=f"{share:.0%} of the events of type '{kind.name}' have a value, the others have none",
            fix="check whether values are lost in one channel or since some day",
            share=1 - share,
        )


def _negative(kind: EventType) -> Iterator[Finding]:
    if amounts := kind.negative["amount"]:
        share = amounts / kind.filled["amount"]
        yield Finding(
            severity="warning" if share > NEGATIVE_SHARE else "note",
            check="negative values",
            where="events.amount",
            message=f"{amounts:,} amounts of events of type '{kind.name}' ({share:.1%}) are negative",
            fix="nothing to do if these are returns, which reduce the spend; give returns their own event type if "
            "features should use them",
            share=share,
        )
    if durations := kind.negative["duration_s"]:
        yield Finding(
            severity="warning",
            check="negative values",
            where="events.duration_s",
            message=f"{durations:,} durations of events of type '{kind.name}' are negative",
            fix="check how they are computed; select NULL where the duration is not known",
            share=durations / kind.filled["duration_s"],
        )


def _outliers(connection: duckdb.DuckDBPyConnection, types: Sequence[str], sample: str) -> Iterator[Finding]:
    """Values far above the others of their type, on a logarithmic scale."""
    quartiles = ", ".join(f"approx_quantile({field}, [0.25, 0.75]) FILTER ({field} > 0)" for field in FIELDS)
    rows = connection.execute(
        f"SELECT event_type, {quartiles} FROM {sample} WHERE list_contains($types, event_type) GROUP BY event_type",
        {"types": list(types)},
    ).fetchall()
    limits = {kind: [_limit(quartile) for quartile in columns] for kind, *columns in rows}
    beyond = ", ".join(
        f"count(*) FILTER ({field} > {field}_limit), sum({field}) FILTER ({field} > {field}_limit), "
        f"count(*) FILTER ({field} > 0), sum({field}) FILTER ({field} > 0)"
        for field in FIELDS
    )
    limit_columns = ", ".join(f"unnest(${field}::DOUBLE[]) AS {field}_limit" for field in FIELDS)
    counts = connection.execute(
        f"""SELECT event_type, {beyond} FROM {sample} JOIN (SELECT unnest($types::VARCHAR[]) AS event_type,
            {limit_columns}) USING (event_type) GROUP BY event_type ORDER BY event_type""",
        {"types": list(limits)} | {field: [limit[i] for limit in limits.values()] for i, field in enumerate(FIELDS)},
    ).fetchall()
    for kind, *columns in counts:
        for i, field in enumerate(FIELDS):
            outliers, outlier_sum, values, total = columns[4 * i : 4 * i + 4]
            if outliers:
                yield _outlier(f"events.{field}", kind, limits[kind][i] or 0.0, outliers / values, outlier_sum / total)


def _limit(quartiles: Sequence[float] | None) -> float | None:
    """The value above which a value is an outlier; None if there are no values."""
    if not quartiles:
        return None
    low, high = quartiles
    return float(high * max(high / low, MIN_RATIO) ** OUTLIER_FACTOR)


def _outlier(where: str, kind: str, limit: float, share: float, sum_share: float) -> Finding:
    return Finding(
        severity="warning" if sum_share > OUTLIER_SHARE else "note",
        check="outliers",
        where=where,
        message=f"{share:.2%} of the events of type '{kind}' are above {limit:,.4g}, far from the others, and make "
        f"up {sum_share:.1%} of the sum",
        fix="check units, currencies and test orders; if they are real, training clips them so that they do not "
        "dominate a feature",
        share=share,
    )
