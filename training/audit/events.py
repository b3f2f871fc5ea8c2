"""Checks on a source of events: rows left out, duplicates, too few customers, and what does not fit the config."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Final

import duckdb

from feature_store.errors import InputError
from feature_store.offline.store import OfflineStore
from training.audit.columns import audit_columns, treatment_columns
from training.audit.event_times import Days, audit_times, count_days
from training.audit.event_types import audit_types, count_types
from training.audit.event_values import audit_values
from training.audit.leaks import audit_attribute_times
from training.config import TrainingConfig
from training.data.candidate_features import excluded_columns
from training.data.columns import columns_of, text_list
from training.data.cutoffs import lay_out
from training.evidence import Finding

SAMPLE_EVENTS: Final = 2_000_000
"""Maximum number of events (all events of a sample of customers) in which duplicates and quantiles are computed."""

MISSING_SHARE: Final = 0.05
"""Up to this share, rows that are left out hardly change a rate; above it, the remaining rows may be a biased
sample."""

DUPLICATE_SHARE: Final = 0.01
"""A few equal rows are equal purchases on one day; one in a hundred is a load or a join that ran twice."""

MIN_CUSTOMERS: Final = 50
"""With fewer customers, no block of cut-offs has enough of both outcomes to fit and test a model."""

FEW_CUSTOMERS: Final = 200
"""With fewer customers, the AUC on later data is uncertain by 0.1 or more, so models cannot be compared."""

HEAVY_SHARE: Final = 0.01
HEAVY_FACTOR: Final = 50
"""A customer with 1 % of all events and 50 times the average is a bot, or an account that many people share."""

ONE_PURCHASE_SHARES: Final = (0.5, 0.9)
"""Shares of one-time buyers: above the first there is a note (usual in shops); above the second nearly everybody is a
churner by definition."""

LEFT_OUT: Final = {
    "without a usable customer_id": (
        "events.customer_id",
        "no usable customer_id",
        "join visitors to customers where the shop knows them: models learn nothing from the other rows",
    ),
    "without an event_time": (
        "events.event_time",
        "no event_time",
        "check whether every row has a time in a format that is read",
    ),
    "without an event_type": ("events.event_type", "no event_type", "give them one in SQL, such as 'other'"),
    "in the future": (
        "events.event_time",
        "a time more than a day in the future",
        "check whether day and month, or seconds and milliseconds, are swapped",
    ),
}
"""By the reason for which the source leaves out rows: where, what they have, and the fix."""


def audit_events(config: TrainingConfig, source: OfflineStore) -> list[Finding]:
    """Check the events and attributes of a source."""
    connection, summary = source.connection, source.summary
    sample = sample_of_customers(summary.events)
    days = count_days(connection)
    types = count_types(connection, config, sample)
    return list(
        chain(
            _history(config, summary.start, summary.end),
            audit_types(config, types, _span(days)),
            _customers(connection, config.churn.event),
            _left_out(connection, summary.left_out),
            _duplicates(connection, sample),
            audit_times(days),
            audit_values(connection, config.economics.event, types, sample),
            _attributes(config, source),
        )
    )


def sample_of_customers(events: int) -> str:
    """SQL for the view ``events`` of ``events`` rows, or for all events of a deterministic sample of customers.

    The sample has about SAMPLE_EVENTS events.
    """
    parts = -(-events // SAMPLE_EVENTS)
    return "events" if parts <= 1 else f"(FROM events WHERE hash(customer_id) % {parts} = 0)"


def _span(days: Days) -> tuple[float, float]:
    """First and last second of the days with events, without isolated events."""
    day = days.day[days.body()]
    return (float(day[0]) * 86_400, float(day[-1] + 1) * 86_400) if len(day) else (0.0, 0.0)


def _history(config: TrainingConfig, start: float, end: float) -> Iterator[Finding]:
    try:
        lay_out(config, start, end)
    except InputError as error:
        message, _, fix = str(error).partition(": ")
        yield Finding(severity="fatal", check="history", where="evaluation", message=message, fix=fix)


def _left_out(connection: duckdb.DuckDBPyConnection, left_out: dict[str, int]) -> Iterator[Finding]:
    rows = connection.execute("SELECT count(*) FROM read").fetchall()[0][0]
    for reason, number in left_out.items():
        where, what, fix = LEFT_OUT.get(reason, ("source.events", reason, "find out why"))
        yield Finding(
            severity="warning" if number > MISSING_SHARE * rows else "note",
            check="completeness",
            where=where,
            message=f"{number:,} of {rows:,} rows ({number / rows:.1%}) have {what} and are left out",
            fix=fix,
            share=number / rows,
        )


def _duplicates(connection: duckdb.DuckDBPyConnection, sample: str) -> Iterator[Finding]:
    rows, copies, with_id, repeated = connection.execute(
        f"""SELECT count(*), count(*) - count(DISTINCT hash(customer_id, t, event_type, amount, duration_s, item_id,
            event_id)), count(event_id), count(event_id) - count(DISTINCT hash(customer_id, event_id))
            FILTER (event_id IS NOT NULL) FROM {sample}"""
    ).fetchall()[0]
    if copies:
        yield Finding(
            severity="warning" if copies > DUPLICATE_SHARE * rows else "note",
            check="duplicates",
            where="source.events",
            message=f"{copies / rows:.2%} of the events repeat another one in every column",
            fix="use SELECT DISTINCT if a load or a join ran twice; nothing to do if customers did the same thing "
            "twice",
            share=copies / rows,
        )
    if repeated:
        yield Finding(
            severity="warning",
            check="duplicates",
            where="events.event_id",
            message=f"{repeated / with_id:.2%} of the event_ids of a customer repeat another one",
            fix="make it unique (for lines of an order, sum them up or append the line number): the server counts "
            "events with the same id once, so its features would differ from those in training",
            share=repeated / with_id,
        )


def _customers(connection: duckdb.DuckDBPyConnection, purchase: str) -> Iterator[Finding]:
    customers, heaviest, events, buyers, once = connection.execute(
        """SELECT count(*), max(events), sum(events), count(*) FILTER (bought > 0), count(*) FILTER (bought = 1)
            FROM (SELECT customer_id, count(*) AS events, count(*) FILTER (event_type = $purchase) AS bought
                FROM events GROUP BY customer_id)""",
        {"purchase": purchase},
    ).fetchall()[0]
    if 0 < buyers < FEW_CUSTOMERS:
        yield Finding(
            severity="fatal" if buyers < MIN_CUSTOMERS else "warning",
            check="customers",
            where="source.events",
            message=f"{buyers:,} customers have a '{purchase}'; {MIN_CUSTOMERS} are required and at least "
            f"{FEW_CUSTOMERS} recommended",
            fix="add customers, or change churn.event",
        )
    if heaviest > max(HEAVY_SHARE * events, HEAVY_FACTOR * events / customers):
        yield Finding(
            severity="warning",
            check="heavy customer",
            where="events.customer_id",
            message=f"one customer has {heaviest / events:.1%} of all events, {heaviest / (events / customers):,.0f} "
            "times the average",
            fix="leave out bots, test accounts and the account that guests share (WHERE customer_id <> …)",
            share=float(heaviest / events),
        )
    noted, nearly_all = ONE_PURCHASE_SHARES
    if buyers and once > noted * buyers:
        yield Finding(
            severity="warning" if once > nearly_all * buyers else "note",
            check="one purchase",
            where=f"events of type '{purchase}'",
            message=f"{once / buyers:.0%} of the customers with a '{purchase}' have only one",
            fix="check whether ids change with the device or the order; if not, a longer history shows more returning "
            "customers",
            share=once / buyers,
        )


def _attributes(config: TrainingConfig, source: OfflineStore) -> Iterator[Finding]:
    connection = source.connection
    learnt = {feature.source_column for feature in config.feature if feature.aggregate == "attribute"}
    candidates = () if config.candidates is None else config.candidates.attributes or ()
    named = [(f"feature '{name}'", name) for name in sorted(learnt)]
    named += [("candidates.attributes", name) for name in candidates]
    named += treatment_columns(config.treatment)
    columns = {} if config.source.attributes is None else columns_of(connection)
    for where, name in named:
        if name not in columns:
            yield Finding(
                severity="fatal",
                check="config",
                where=where,
                message=f"source.attributes has no column '{name}'",
                fix=f"select it there; it has {text_list(columns)}",
            )
    if not columns:
        return
    yield from _without_attributes(connection)
    if config.candidates is not None:
        learnt |= set(candidates or columns) - set(excluded_columns(config))
    learnt_columns = {name: columns[name] for name in columns if name in learnt}
    yield from audit_columns(connection, learnt_columns, "attributes")
    yield from audit_attribute_times(config, source, learnt_columns)


def _without_attributes(connection: duckdb.DuckDBPyConnection) -> Iterator[Finding]:
    customers, without = connection.execute(
        """SELECT count(*), count(*) FILTER (attributes.customer_id IS NULL)
            FROM (SELECT DISTINCT customer_id FROM events) LEFT JOIN attributes USING (customer_id)"""
    ).fetchall()[0]
    if without:
        yield Finding(
            severity="warning" if without > MISSING_SHARE * customers else "note",
            check="completeness",
            where="source.attributes",
            message=f"{without:,} of {customers:,} customers with events ({without / customers:.1%}) are not in it",
            fix="check whether both tables write ids the same way (leading zeros, upper case), and how old the table "
            "is",
            share=without / customers,
        )
