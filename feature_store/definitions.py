"""Feature definitions: which numbers are kept for every customer. A feature is data, not a function.

Every ``[[feature]]`` section of a config becomes one *slot* of the customer state. The definitions are part of the
model bundle, and their fingerprint is part of every stored state, so a model never reads a state of other features.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Aggregate = Literal["count", "sum", "latest", "earliest", "attribute"]
EventField = Literal["amount", "duration_s"]

MAX_ID_BYTES = 256
"""Longest customer id in UTF-8, both in the source and in requests."""

MAX_NAME_BYTES = 64
"""Longest event type and channel in UTF-8."""

MAX_CATEGORIES = 64
"""Maximum number of distinct values of a text attribute; all others count as one."""

STATE_FORMAT = 4
"""Version of the packed state. It is part of the fingerprint, so another format is another layout."""


class Feature(BaseModel):
    """One slot of the state.

    ``count`` and ``sum`` are exponentially decayed sums: an event of weight ``v`` at time ``t`` counts
    ``v * 2**(-(now - t) / half_life)``. ``latest`` and ``earliest`` keep a time. ``attribute`` is a value from the
    customer table.

    Attributes:
        name: Name of the slot.
        aggregate: How events, or an attribute, become a number.
        event: Type of the events.
        field: Field of the events that a ``sum`` adds up.
        half_life_days: Half-life of a decayed sum.
        clip: Largest absolute value that a ``sum`` takes from one event; learnt in training if a config leaves it out.
        categories: Values of a text attribute, learnt in training. The slot holds the index of the customer's value, or
            the number of categories for any other value.
        column: Column of the customer table that an attribute is read from; by default the one called ``name``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]
    aggregate: Aggregate
    event: Annotated[str | None, Field(min_length=1, max_length=64)] = None
    field: EventField | None = None
    half_life_days: Annotated[float | None, Field(gt=0, le=3650, allow_inf_nan=False)] = None
    clip: Annotated[float | None, Field(gt=0, allow_inf_nan=False)] = None
    categories: Annotated[tuple[str, ...] | None, Field(min_length=1, max_length=MAX_CATEGORIES)] = None
    column: Annotated[str | None, Field(min_length=1)] = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        needs = {
            "event": self.aggregate != "attribute",
            "half_life_days": self.aggregate in ("count", "sum"),
            "field": self.aggregate == "sum",
        }
        for key, needed in needs.items():
            given = getattr(self, key) is not None
            if needed and not given:
                raise ValueError(f"aggregate '{self.aggregate}' needs '{key}'")
            if given and not needed:
                raise ValueError(f"aggregate '{self.aggregate}' does not use '{key}': remove it")
        if self.clip is not None and self.aggregate != "sum":
            raise ValueError(f"aggregate '{self.aggregate}' does not use 'clip': remove it")
        for key in ("categories", "column"):
            if getattr(self, key) is not None and self.aggregate != "attribute":
                raise ValueError(f"aggregate '{self.aggregate}' does not use '{key}': remove it")
        return self

    @property
    def source_column(self) -> str:
        """The column of the customer table that an attribute is read from."""
        return self.column or self.name

    @property
    def decayed(self) -> bool:
        """Whether the slot is a decayed sum."""
        return self.half_life_days is not None


class Candidates(BaseModel):
    """``[candidates]``: many slots, from which training selects the fewest that predict as well as all of them.

    The candidates are, for each event type, the latest and the earliest time, and for each half-life a count and a sum
    of each field that its events have; and each attribute. ``[[feature]]`` sections are candidates as well.

    Attributes:
        half_lives_days: Half-lives of counts and sums.
        events: Event types to try; without it, all types of the source that are not rare.
        attributes: Attributes to try; without it, all columns of the source that can be used.
        most_slots: Maximum number of slots to select.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    half_lives_days: Annotated[
        tuple[Annotated[float, Field(gt=0, le=3650, allow_inf_nan=False)], ...], Field(min_length=1, max_length=16)
    ] = (3.5, 7.0, 14.0, 28.0, 56.0, 112.0)
    events: tuple[Annotated[str, Field(min_length=1, max_length=MAX_NAME_BYTES)], ...] | None = None
    attributes: tuple[Annotated[str, Field(min_length=1)], ...] | None = None
    most_slots: Annotated[int, Field(ge=1, le=512)] = 24

    def include(self, feature: Feature) -> bool:
        """Whether a slot is one of the candidates."""
        if feature.aggregate == "attribute":
            return self.attributes is None or feature.source_column in self.attributes
        if self.events is not None and feature.event not in self.events:
            return False
        return feature.half_life_days is None or feature.half_life_days in self.half_lives_days


class Interests(BaseModel):
    """``[interests]``: which events are views and purchases of items, and when views count as repeated.

    For each customer the items that were viewed most, with decay, are kept. An alert reports the top item if it was
    viewed repeatedly and not bought.

    Attributes:
        view: Type of the events that are views.
        purchase: Type of the events that are purchases.
        half_life_days: Half-life of views.
        keep: Number of items to keep per customer.
        repeated_views: Number of views of the top item that an alert reports.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    view: Annotated[str, Field(min_length=1, max_length=MAX_NAME_BYTES)] = "view"
    purchase: Annotated[str, Field(min_length=1, max_length=MAX_NAME_BYTES)] = "purchase"
    half_life_days: Annotated[float, Field(gt=0, le=3650, allow_inf_nan=False)] = 7.0
    keep: Annotated[int, Field(ge=0, le=32)] = 4
    repeated_views: Annotated[int, Field(ge=1, le=1000)] = 3

    @property
    def half_life_s(self) -> float:
        """Half-life of views in seconds."""
        return self.half_life_days * 86_400


def features_match(
    configured: Sequence[Feature], fitted: Sequence[Feature], candidates: Candidates | None = None
) -> bool:
    """Whether a bundle's features are those of a config.

    Args:
        configured: Features of the config, which may leave clips to training.
        fitted: Features of the bundle.
        candidates: Candidates of the config, from which training selected; each fitted feature must be one of them.
    """
    if candidates is not None:
        return all(
            candidates.include(feature) or any(features_match([line], [feature]) for line in configured)
            for feature in fitted
        )
    if len(configured) != len(fitted):
        return False
    return all(
        (line if line.clip is not None else line.model_copy(update={"clip": feature.clip})) == feature
        for line, feature in zip(configured, fitted, strict=True)
    )


def check_unique_names(features: Sequence[Feature]) -> None:
    """Raise ValueError if two features have the same name."""
    seen: set[str] = set()
    for feature in features:
        if feature.name in seen:
            raise ValueError(f"feature '{feature.name}' is defined twice: give one of them another name")
        seen.add(feature.name)


def fingerprint(features: Sequence[Feature]) -> str:
    """Identity of a state layout: 8 hex digits of a hash of the state format and the features in order."""
    lines = [feature.model_dump(exclude_none=True) for feature in features]
    canonical = json.dumps([STATE_FORMAT, lines], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:8]
