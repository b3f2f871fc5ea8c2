"""The wide set of slots that a ``[candidates]`` section stands for, made from what the source has."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Final

from feature_store.definitions import MAX_CATEGORIES, Candidates, Feature
from feature_store.errors import InputError
from feature_store.offline.source import NUMERIC
from feature_store.offline.store import OfflineStore
from feature_store.sql import identifier
from training.config import Overdue, TrainingConfig, check_overdue

LEAST_EVENTS: Final = 100
"""An event type with fewer events than this is too rare to learn from."""

MOST_TYPES: Final = 30
LEAST_OF_A_CATEGORY: Final = 20
"""Customers who share a text before it is a category of its own."""

TEXT: Final = re.compile(r"VARCHAR|ENUM\(.*\)")
FIELDS: Final = ("amount", "duration_s")


def candidates(config: TrainingConfig, source: OfflineStore, until: float) -> list[Feature]:
    """The config's ``[[feature]]`` lines, and what its candidates add; nothing after ``until`` (unix seconds) is read.

    InputError where nothing is found.
    """
    lines = list(config.feature)
    wide = config.candidates
    if wide is None:
        return lines
    names = {line.name for line in lines}
    for feature in [*_of_events(wide, source, until), *_of_attributes(config, wide, source)]:
        name = _free(feature.name, names)
        names.add(name)
        lines.append(feature.model_copy(update={"name": name}))
    if not lines:
        raise InputError(
            f"candidates: the source has no attribute, and no event type with {LEAST_EVENTS} events: bring more data, "
            "or write [[feature]] lines"
        )
    return lines


def overdue(config: TrainingConfig, features: Sequence[Feature]) -> list[Overdue]:
    """The config's ``[[overdue]]`` lines; with candidates and without lines, one for the events that churn is about."""
    if config.overdue or config.candidates is None:
        try:
            check_overdue(config.overdue, features)
        except ValueError as error:
            raise InputError(str(error)) from error
        return list(config.overdue)
    mine = [feature for feature in features if feature.event == config.churn.event]
    latest = [feature for feature in mine if feature.aggregate == "latest"]
    counts = [feature for feature in mine if feature.aggregate == "count"]
    if not (latest and counts):
        return []
    rate = min(counts, key=lambda count: abs((count.half_life_days or 0) - config.churn.horizon_days))
    return [
        Overdue(name=_free("overdue", {feature.name for feature in features}), latest=latest[0].name, rate=rate.name)
    ]


def _of_events(wide: Candidates, source: OfflineStore, until: float) -> Iterator[Feature]:
    query = """
        SELECT event_type, count(amount) > 0, count(duration_s) > 0 FROM events WHERE t <= $until
        GROUP BY event_type HAVING count(*) >= $least ORDER BY count(*) DESC, event_type LIMIT $most"""
    found = source.connection.execute(query, {"until": until, "least": LEAST_EVENTS, "most": MOST_TYPES}).fetchall()
    days = (until - source.summary.start) / 86_400
    half_lives = [half_life for half_life in wide.half_lives_days if half_life <= days] or [min(wide.half_lives_days)]
    for event, *known in sorted(found):
        if wide.events is not None and event not in wide.events:
            continue
        stem = slug(event)
        yield Feature(name=f"{stem}_latest", aggregate="latest", event=event)
        yield Feature(name=f"{stem}_earliest", aggregate="earliest", event=event)
        for half_life in half_lives:
            span = f"{half_life:g}d".replace(".", "_")
            yield Feature(name=f"{stem}_count_{span}", aggregate="count", event=event, half_life_days=half_life)
            for field, has in zip(FIELDS, known, strict=True):
                if has:
                    yield Feature(
                        name=f"{stem}_{field}_{span}",
                        aggregate="sum",
                        event=event,
                        field=field,  # type: ignore[arg-type]  # one of FIELDS
                        half_life_days=half_life,
                    )


def _of_attributes(config: TrainingConfig, wide: Candidates, source: OfflineStore) -> Iterator[Feature]:
    taken = not_to_learn_from(config)
    for column, kind in source.attribute_columns.items():
        if column in taken or (wide.attributes is not None and column not in wide.attributes):
            continue
        feature = Feature(name=slug(column), aggregate="attribute", column=None if slug(column) == column else column)
        if NUMERIC.fullmatch(kind):
            yield feature
        elif TEXT.fullmatch(kind) and (categories := _categories(source, column)):
            yield feature.model_copy(update={"categories": categories})


def not_to_learn_from(config: TrainingConfig) -> Collection[str]:
    """Columns of the customer table that are no attributes: ids, labels, and what was not known before the label."""
    taken = {"customer_id"}
    if config.snapshot is not None:
        snapshot = config.snapshot
        taken |= {snapshot.label, *snapshot.leave_out, *(c for c in (snapshot.group, snapshot.value) if c)}
    if config.treatment is not None:
        taken |= {config.treatment.column, config.treatment.outcome, str(config.treatment.probability)}
    return taken


def cost_columns(config: TrainingConfig) -> set[str]:
    """Columns with costs of each customer's own."""
    snapshot = config.snapshot
    return {column for column in (snapshot.contact_cost, snapshot.offer_cost) if column} if snapshot else set()


def _categories(source: OfflineStore, column: str) -> tuple[str, ...]:
    """The texts that enough customers share, the most frequent ones if they are too many."""
    query = f"""
        SELECT {identifier(column)}::VARCHAR AS value, count(*) AS customers FROM attributes
        WHERE value IS NOT NULL GROUP BY value HAVING customers >= {LEAST_OF_A_CATEGORY}
        ORDER BY customers DESC, value LIMIT {MAX_CATEGORIES}"""
    return tuple(sorted(value for value, _ in source.connection.execute(query).fetchall()))


def slug(text: str) -> str:
    """A feature name for any text."""
    found = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")[:48]
    return found if found[:1].isalpha() else f"x_{found}".rstrip("_")


def _free(name: str, taken: Collection[str]) -> str:
    """A name that nothing else has."""
    found, number = name, 2
    while found in taken:
        found, number = f"{name}_{number}", number + 1
    return found
