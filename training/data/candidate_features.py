"""Candidate features: what a section ``[candidates]`` stands for, given the data of the source."""

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
from training.graph.features import Rates

MIN_EVENTS: Final = 100
"""Minimum number of events of a type; rarer types give no candidates."""

MAX_TYPES: Final = 30
MIN_CATEGORY_CUSTOMERS: Final = 20
"""Minimum number of customers with a text for it to become a category."""

TEXT: Final = re.compile(r"VARCHAR|ENUM\(.*\)")
FIELDS: Final = ("amount", "duration_s")


def candidates(config: TrainingConfig, source: OfflineStore, until: float) -> list[Feature]:
    """The config's ``[[feature]]`` lines, followed by the candidates.

    Args:
        config: With or without ``[candidates]``.
        source: The open source.
        until: Unix seconds; later events, and later attributes if they have times, are not read.

    Raises:
        InputError: If there is no feature at all.
    """
    lines = list(config.feature)
    wide = config.candidates
    if wide is None:
        return lines
    names = {line.name for line in lines}
    for feature in [*_of_events(wide, source, until), *_of_attributes(config, wide, source, until)]:
        name = _unique(feature.name, names)
        names.add(name)
        lines.append(feature.model_copy(update={"name": name}))
    if not lines:
        raise InputError(
            f"candidates: the source has no attribute, and no event type with {MIN_EVENTS} events: add data, or "
            "write [[feature]] lines"
        )
    return lines


def overdue(config: TrainingConfig, features: Sequence[Feature]) -> list[Overdue]:
    """The config's ``[[overdue]]`` lines; with candidates and no such line, one for the churn event."""
    if config.overdue or config.candidates is None:
        try:
            check_overdue(config.overdue, features)
        except ValueError as error:
            raise InputError(str(error)) from error
        return list(config.overdue)
    churn_features = [feature for feature in features if feature.event == config.churn.event]
    latest = [feature for feature in churn_features if feature.aggregate == "latest"]
    counts = [feature for feature in churn_features if feature.aggregate == "count"]
    if not (latest and counts):
        return []
    rate = min(counts, key=lambda count: abs((count.half_life_days or 0) - config.churn.horizon_days))
    return [
        Overdue(name=_unique("overdue", {feature.name for feature in features}), latest=latest[0].name, rate=rate.name)
    ]


def rates(config: TrainingConfig, features: Sequence[Feature]) -> Rates | None:
    """With candidates: the features of rates, from the time of the last churn event, if that is a feature."""
    latest = [f.name for f in features if f.aggregate == "latest" and f.event == config.churn.event]
    if config.candidates is None or not latest:
        return None
    return Rates(latest[0], config.churn.horizon_days)


def _of_events(wide: Candidates, source: OfflineStore, until: float) -> Iterator[Feature]:
    query = """
        SELECT event_type, count(amount) > 0, count(duration_s) > 0 FROM events WHERE t <= $until
        GROUP BY event_type HAVING count(*) >= $least ORDER BY count(*) DESC, event_type LIMIT $most"""
    types = source.connection.execute(query, {"until": until, "least": MIN_EVENTS, "most": MAX_TYPES}).fetchall()
    days = (until - source.summary.start) / 86_400
    half_lives = [half_life for half_life in wide.half_lives_days if half_life <= days] or [min(wide.half_lives_days)]
    for event, *has_field in sorted(types):
        if wide.events is not None and event not in wide.events:
            continue
        stem = slug(event)
        yield Feature(name=f"{stem}_latest", aggregate="latest", event=event)
        yield Feature(name=f"{stem}_earliest", aggregate="earliest", event=event)
        for half_life in half_lives:
            span = f"{half_life:g}d".replace(".", "_")
            yield Feature(name=f"{stem}_count_{span}", aggregate="count", event=event, half_life_days=half_life)
            for field, exists in zip(FIELDS, has_field, strict=True):
                if exists:
                    yield Feature(
                        name=f"{stem}_{field}_{span}",
                        aggregate="sum",
                        event=event,
                        field=field,  # type: ignore[arg-type]  # one of FIELDS
                        half_life_days=half_life,
                    )


def _of_attributes(config: TrainingConfig, wide: Candidates, source: OfflineStore, until: float) -> Iterator[Feature]:
    taken = excluded_columns(config)
    for column, kind in source.attribute_columns.items():
        if column in taken or (wide.attributes is not None and column not in wide.attributes):
            continue
        feature = Feature(name=slug(column), aggregate="attribute", column=None if slug(column) == column else column)
        if NUMERIC.fullmatch(kind):
            yield feature
        elif TEXT.fullmatch(kind) and (categories := _categories(source, column, until)):
            yield feature.model_copy(update={"categories": categories})


def excluded_columns(config: TrainingConfig) -> Collection[str]:
    """Columns of the customer table that must not be features: ids, labels, and what was not known before the label."""
    taken = {"customer_id"}
    if config.snapshot is not None:
        snapshot = config.snapshot
        taken |= {snapshot.label, *snapshot.leave_out, *(c for c in (snapshot.group, snapshot.value) if c)}
    if config.treatment is not None:
        treatment = config.treatment
        taken |= {treatment.column, treatment.outcome, str(treatment.probability), treatment.time or treatment.column}
    return taken


def cost_columns(config: TrainingConfig) -> set[str]:
    """Columns with the costs of each customer."""
    snapshot = config.snapshot
    return {column for column in (snapshot.contact_cost, snapshot.offer_cost) if column} if snapshot else set()


def _categories(source: OfflineStore, column: str, until: float) -> tuple[str, ...]:
    """The texts that enough customers have, at most MAX_CATEGORIES of them, the most frequent ones.

    Without times of the attributes, the texts are those of the newest values, whatever ``until``.
    """
    query = f"""
        SELECT {identifier(column)}::VARCHAR AS value, count(*) AS customers FROM {source.attributes_at(until)}
        WHERE value IS NOT NULL GROUP BY value HAVING customers >= {MIN_CATEGORY_CUSTOMERS}
        ORDER BY customers DESC, value LIMIT {MAX_CATEGORIES}"""
    return tuple(sorted(value for value, _ in source.connection.execute(query).fetchall()))


def slug(text: str) -> str:
    """A valid feature name for any text."""
    name = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")[:48]
    return name if name[:1].isalpha() else f"x_{name}".rstrip("_")


def _unique(name: str, taken: Collection[str]) -> str:
    """The name, with a number appended if it is taken."""
    unique, number = name, 2
    while unique in taken:
        unique, number = f"{name}_{number}", number + 1
    return unique
