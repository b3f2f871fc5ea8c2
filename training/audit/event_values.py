"""What may be wrong with what events hold: columns filled here and there, negative values, values out of proportion."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import duckdb

from training.audit.event_types import MOST_TYPES, EventType
from training.evidence import Finding

FILLED: Final = (0.01, 0.99)
"""A type of event has a column or it has not; filled in between, it has been lost somewhere."""

NO_AMOUNT_SHARE: Final = 0.05
"""Purchases without an amount count as no spend, so beyond this expected spend is too small by as much."""

NEGATIVE_SHARE: Final = 0.5
"""Returns are rarer than purchases: if most amounts are negative, they are written the other way round."""

OUTLIER_FACTOR: Final = 4
"""Times the (logarithmic) distance between the quartiles above the upper one. A lognormal amount lies beyond that once
in a billion, 6 standard deviations away."""

LEAST_RATIO: Final = 1.5
"""Least ratio of the quartiles to reckon with, where most prices are one and the same."""

OUTLIER_SHARE: Final = 0.05
"""Outliers that hold more than this of the whole decide what expected spend is fitted to."""

FIELDS: Final = ("amount", "duration_s")


def audit_values(
    connection: duckdb.DuckDBPyConnection, purchase: str, types: Sequence[EventType], sample: str
) -> Iterator[Finding]:
    """Everything that the columns of events show; ``purchase`` is the type whose amounts are the spend."""
    for kind in types[:MOST_TYPES]:
        for column in kind.filled:
            if kind.name == purchase and column == "amount":
                yield from _amounts(kind)
            else:
                yield from _partly_filled(kind, column)
        yield from _negative(kind)
    yield from _outliers(connection, [kind.name for kind in types[:MOST_TYPES]], sample)


def _amounts(kind: EventType) -> Iterator[Finding]:
    missing = kind.events - kind.filled["amount"]
    if missing:
        yield Finding(
            severity="warning" if missing > NO_AMOUNT_SHARE * kind.events else "note",
            check="completeness",
            where="events.amount",
            message=f"{missing:,} of {kind.events:,} events of type '{kind.name}' ({missing / kind.events:.1%}) have "
            "no amount and count as no spend",
            mend="select what was paid, or 1 AS amount where it is not known: then value is a number of purchases",
            share=missing / kind.events,
        )


def _partly_filled(kind: EventType, column: str) -> Iterator[Finding]:
    share = kind.filled[column] / kind.events
    if FILLED[0] < share < FILLED[1]:
        yield Finding(
            severity="note",
            check="completeness",
            where=f"events.{column}",
            message=f"{share:.0%} of the events of type '{kind.name}' have it, the others not",
            mend="look whether it gets lost from some channel or since some day",
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
            mend="fine for returns, which reduce the spend; give them a type of their own if they are to be a feature",
            share=share,
        )
    if durations := kind.negative["duration_s"]:
        yield Finding(
            severity="warning",
            check="negative values",
            where="events.duration_s",
            message=f"{durations:,} durations of events of type '{kind.name}' are negative",
            mend="look how they are computed; select NULL where they are not known",
            share=durations / kind.filled["duration_s"],
        )


def _outliers(connection: duckdb.DuckDBPyConnection, types: Sequence[str], sample: str) -> Iterator[Finding]:
    """Values far above the others of their type, on a logarithmic scale."""
    quartiles = ", ".join(f"approx_quantile({field}, [0.25, 0.75]) FILTER ({field} > 0)" for field in FIELDS)
    rows = connection.execute(
        f"SELECT event_type, {quartiles} FROM {sample} WHERE list_contains($types, event_type) GROUP BY event_type",
        {"types": list(types)},
    ).fetchall()
    limits = {kind: [_limit(found) for found in columns] for kind, *columns in rows}
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
            number, held, every, whole = columns[4 * i : 4 * i + 4]
            if number:
                yield _outlier(f"events.{field}", kind, limits[kind][i] or 0.0, number / every, held / whole)


def _limit(quartiles: Sequence[float] | None) -> float | None:
    """The value from which on one is an outlier, None where there is no value."""
    if not quartiles:
        return None
    low, high = quartiles
    return float(high * max(high / low, LEAST_RATIO) ** OUTLIER_FACTOR)


def _outlier(where: str, kind: str, limit: float, share: float, held: float) -> Finding:
    return Finding(
        severity="warning" if held > OUTLIER_SHARE else "note",
        check="outliers",
        where=where,
        message=f"{share:.2%} of the events of type '{kind}' are above {limit:,.4g}, far from the others, and hold "
        f"{held:.1%} of the sum",
        mend="look at units, currencies and test orders; if they are real, the clip that training learns keeps them "
        "from ruling a feature",
        share=share,
    )
