"""What may be wrong with event types: named in the config and not there, new, stopped, or no types at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import duckdb

from training.audit.columns import text_list
from training.audit.event_times import iso_day
from training.config import TrainingConfig
from training.evidence import Finding

MOST_TYPES: Final = 200
"""Kinds of things that customers do can be counted; where there are more, the column holds names or ids."""

LEAST_EVENTS: Final = 20
"""By chance none of 20 events falls into the first half of the history once in a million types."""

LATE: Final = 0.5
"""A type first seen after half of the history is missing at most cut-offs that models are fitted on."""

STOPPED: Final = 0.10
"""A type silent for the last tenth of the history, which holds the cut-offs of the test, says nothing there."""

ROBUST: Final = (0.01, 0.99)
"""Quantiles that stand for the first and the last event of a type, as one wrong time may lie anywhere."""


@dataclass(frozen=True)
class EventType:
    """A type of event: how many, with what columns, and in a sample of customers how many between which times."""

    name: str
    events: int
    filled: dict[str, int]
    negative: dict[str, int]
    sampled: int
    first: float
    last: float


def count_types(connection: duckdb.DuckDBPyConnection, config: TrainingConfig, sample: str) -> list[EventType]:
    """The MOST_TYPES most frequent types and one more, and in any case those that the config names."""
    rows = connection.execute(
        f"""SELECT event_type, count(*) AS n, count(amount), count(duration_s), count(item_id), count(event_id),
            count(*) FILTER (amount < 0), count(*) FILTER (duration_s < 0) FROM events GROUP BY event_type
            ORDER BY list_contains($named, event_type) DESC, n DESC, event_type LIMIT {MOST_TYPES + 1}""",
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
    """Everything that the types show; ``span``: first and last second of the data."""
    yield from _unknown(config, types)
    if len(types) > MOST_TYPES:
        yield Finding(
            severity="warning",
            check="event types",
            where="events.event_type",
            message=f"there are more than {MOST_TYPES} types of events",
            mend="select the kind of event here, and what it was about as item_id",
        )
    for kind in types[:MOST_TYPES]:
        yield from _out_of_time(kind, *span)


def _named(config: TrainingConfig) -> list[tuple[str, str]]:
    """Where the config names event types, and which; interests only where it says them itself."""
    named = [("churn.event", config.churn.event), ("propensity.event", config.propensity.event)]
    named.append(("economics.event", config.economics.event))
    named += [(f"feature '{feature.name}'", feature.event) for feature in config.feature if feature.event is not None]
    if config.candidates is not None:
        named += [("candidates.events", name) for name in config.candidates.events or ()]
    if "interests" in config.model_fields_set:
        said = config.interests.model_fields_set
        named += [(f"interests.{key}", getattr(config.interests, key)) for key in ("view", "purchase") if key in said]
    return named


def _unknown(config: TrainingConfig, types: Sequence[EventType]) -> Iterator[Finding]:
    known = [kind.name for kind in sorted(types, key=lambda kind: -kind.events)]
    for where, name in _named(config):
        if name not in known:
            # Nothing is learnt from interests, and a shop may look at items only in live events.
            yield Finding(
                severity="warning" if where.startswith("interests.") else "fatal",
                check="config",
                where=where,
                message=f"the source has no events of type '{name}'",
                mend=f"name one that it has: {text_list(known)}",
            )


def _out_of_time(kind: EventType, start: float, end: float) -> Iterator[Finding]:
    if kind.sampled < LEAST_EVENTS:
        return
    if kind.first > start + LATE * (end - start):
        yield Finding(
            severity="warning",
            check="late type",
            where=f"events of type '{kind.name}'",
            message=f"they begin only about {iso_day(kind.first // 86_400)}, before that nobody has any",
            mend="leave it out of the features or load its past: models take its absence for a choice of the customer",
        )
    silence = end - kind.last
    pace = kind.sampled / max(kind.last - kind.first, 1.0)
    if silence > STOPPED * (end - start) and silence * pace >= LEAST_EVENTS:
        yield Finding(
            severity="warning",
            check="stopped type",
            where=f"events of type '{kind.name}'",
            message=f"they end about {iso_day(kind.last // 86_400)}, while other types go on",
            mend="load the rest, or leave it out of the features: nobody will have any from now on",
        )
