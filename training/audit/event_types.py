"""Checks on event types: missing from the source, too many, appearing late, or stopped before the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import duckdb

from feature_store.state.event_types import similar_type
from training.audit.event_times import iso_day
from training.config import TrainingConfig
from training.data.columns import text_list
from training.evidence import Finding

MAX_TYPES: Final = 200
"""A shop has few kinds of events; a column with more distinct values holds names or ids."""

MIN_EVENTS: Final = 20
"""With 20 events, the probability that none is in the first half of the history by chance is one in a million."""

LATE: Final = 0.5
"""A type that first appears after half of the history is missing at most of the cut-offs for fitting."""

STOPPED: Final = 0.10
"""A type without events in the last tenth of the history carries no information at the test cut-offs, which are
there."""

ROBUST: Final = (0.01, 0.99)
"""Quantiles used instead of the first and last time of a type, so that single wrong times do not matter."""


@dataclass(frozen=True)
class EventType:
    """Counts of one event type.

    Attributes:
        name: The type.
        events: Number of events.
        filled: Number of events that have a value, by column.
        negative: Number of events with a negative value, by column.
        sampled: Number of events in the sample of customers.
        first: About the time of the first event in the sample, unix seconds (the ROBUST quantile).
        last: About the time of the last one.
    """

    name: str
    events: int
    filled: dict[str, int]
    negative: dict[str, int]
    sampled: int
    first: float
    last: float


def count_types(connection: duckdb.DuckDBPyConnection, config: TrainingConfig, sample: str) -> list[EventType]:
    """Count events by type: those that the config names, then the most frequent ones, MAX_TYPES + 1 in all."""
    rows = connection.execute(
        f"""SELECT event_type, count(*) AS n, count(amount), count(duration_s), count(item_id), count(event_id),
            count(*) FILTER (amount < 0), count(*) FILTER (duration_s < 0) FROM events GROUP BY event_type
            ORDER BY list_contains($named, event_type) DESC, n DESC, event_type LIMIT {MAX_TYPES + 1}""",
        {"named": sorted({name for _, name in _named(config)})},
    ).fetchall()
    times = {
        name: (events, *span)
        for name, events, span in connection.execute(
            f"SELECT event_type, count(*), approx_quantile(t, {list(ROBUST)}) FROM {sample} "
            "WHERE list_contains($types, event_type) GROUP BY event_type",
            {"types": [row[0] for row in rows]},
        ).fetchall()
    }
    return [
        EventType(
            row[0],
            row[1],
            dict(zip(("amount", "duration_s", "item_id", "event_id"), row[2:6], strict=True)),
            dict(zip(("amount", "duration_s"), row[6:], strict=True)),
            *times.get(row[0], (0, 0.0, 0.0)),
        )
        for row in rows
    ]


def audit_types(config: TrainingConfig, types: Sequence[EventType], span: tuple[float, float]) -> Iterator[Finding]:
    """Check the event types; ``span``: first and last second of the data."""
    yield from _unknown(config, types)
    yield from _unread(config, types)
    if len(types) > MAX_TYPES:
        yield Finding(
            severity="warning",
            check="event types",
            where="events.event_type",
            message=f"there are more than {MAX_TYPES} event types",
            fix="select the kind of event as event_type, and the thing that it was about as item_id",
        )
    for kind in types[:MAX_TYPES]:
        yield from _out_of_time(kind, *span)


def _named(config: TrainingConfig) -> list[tuple[str, str]]:
    """Event types that the config names, ``interests`` only if set explicitly: pairs of the config key and the type."""
    named = [("churn.event", config.churn.event), ("propensity.event", config.propensity.event)]
    named.append(("economics.event", config.economics.event))
    named += [(f"feature '{feature.name}'", feature.event) for feature in config.feature if feature.event is not None]
    if config.candidates is not None:
        named += [("candidates.events", name) for name in config.candidates.events or ()]
    if "interests" in config.model_fields_set:
        keys = config.interests.model_fields_set
        named += [(f"interests.{key}", getattr(config.interests, key)) for key in ("view", "purchase") if key in keys]
    return named


def _unknown(config: TrainingConfig, types: Sequence[EventType]) -> Iterator[Finding]:
    existing = [kind.name for kind in sorted(types, key=lambda kind: -kind.events)]
    for where, name in _named(config):
        if name not in existing:
            # Nothing is learnt from interests, and views may exist only in live events.
            yield Finding(
                severity="warning" if where.startswith("interests.") else "fatal",
                check="config",
                where=where,
                message=f"the source has no events of type '{name}'",
                fix=f"name one that it has: {text_list(existing)}",
            )


def _unread(config: TrainingConfig, types: Sequence[EventType]) -> Iterator[Finding]:
    """Types that are probably spellings of one that the config names, and the others that no feature reads."""
    named = {name for _, name in _named(config)}
    others = [kind for kind in types[:MAX_TYPES] if kind.name not in named]
    similar = {kind.name: meant for kind in others if (meant := similar_type(kind.name, named)) is not None}
    for kind in others:
        if kind.name in similar:
            yield Finding(
                severity="warning",
                check="unread type",
                where=f"events of type '{kind.name}'",
                message=f"{kind.events:,} events have this type, and the config names '{similar[kind.name]}'",
                fix="give them one name in SQL if they are the same; a server compares types letter by letter",
            )
    if config.candidates is not None and config.candidates.events is None:
        return  # features are selected from all types
    unread = [kind for kind in others if kind.name not in similar]
    if unread:
        events = sum(kind.events for kind in unread)
        yield Finding(
            severity="note",
            check="unread type",
            where="events.event_type",
            message=f"{events:,} events have types that no feature reads: {text_list([kind.name for kind in unread])}",
            fix="add features of these types, or [candidates], which tries all of them",
        )


def _out_of_time(kind: EventType, start: float, end: float) -> Iterator[Finding]:
    if kind.sampled < MIN_EVENTS:
        return
    if kind.first > start + LATE * (end - start):
        yield Finding(
            severity="warning",
            check="late type",
            where=f"events of type '{kind.name}'",
            message=f"they begin around {iso_day(kind.first // 86_400)}, after more than half of the history",
            fix="leave the type out of the features, or load its past: models would take its absence as behaviour",
        )
    silence = end - kind.last
    pace = kind.sampled / max(kind.last - kind.first, 1.0)
    if silence > STOPPED * (end - start) and silence * pace >= MIN_EVENTS:
        yield Finding(
            severity="warning",
            check="stopped type",
            where=f"events of type '{kind.name}'",
            message=f"they end around {iso_day(kind.last // 86_400)}, while other types continue",
            fix="load the rest, or leave the type out of the features: no customer will have any from now on",
        )
