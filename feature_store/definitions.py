"""Feature definitions: which numbers are kept for every customer. A feature is a line of data, not a function.

Every ``[[feature]]`` line of a config becomes one *slot* of the customer state. The lines travel inside the model
bundle, and their fingerprint stands in every stored state, so that a model never reads a state it was not trained on.
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
"""Longest customer id, in UTF-8: what the source loads and what the server takes."""

MAX_NAME_BYTES = 64
"""Longest event type and channel, in UTF-8."""

MAX_CATEGORIES = 64
"""Most values of an attribute of text that are told apart."""

STATE_FORMAT = 3
"""Version of the packed state. It is part of the fingerprint: another format is another state."""


class Feature(BaseModel):
    """One slot of the state.

    ``count`` and ``sum`` are exponentially decayed sums: an event of weight ``v`` at time ``t`` counts
    ``v * 2**(-(now - t) / half_life)``. ``latest`` and ``earliest`` keep a time. ``attribute`` is a number from the
    customer table. A ``sum`` takes no more than ``clip`` from one event, either way; where a config does not say it,
    training learns it. An attribute of text is kept as the index of its value among the ``categories`` that training
    learnt, or as their number where it is another one. Its ``column`` in the customer table is that of its name where
    none is given.
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
                raise ValueError(f"aggregate '{self.aggregate}' has no use for '{key}': remove it")
        if self.clip is not None and self.aggregate != "sum":
            raise ValueError(f"aggregate '{self.aggregate}' has no use for 'clip': remove it")
        for key in ("categories", "column"):
            if getattr(self, key) is not None and self.aggregate != "attribute":
                raise ValueError(f"aggregate '{self.aggregate}' has no use for '{key}': remove it")
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
    """``[candidates]``: a wide set of slots, of which training keeps the fewest that do as well.

    For each event type a latest and an earliest time, and for each half-life a count and a sum of each field that its
    events have; for each attribute its value. ``events`` and ``attributes`` name those to try (None: all that the
    source has, except the rare). ``[[feature]]`` lines are candidates too.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    half_lives_days: Annotated[
        tuple[Annotated[float, Field(gt=0, le=3650, allow_inf_nan=False)], ...], Field(min_length=1, max_length=16)
    ] = (3.5, 7.0, 14.0, 28.0, 56.0, 112.0)
    events: tuple[Annotated[str, Field(min_length=1, max_length=MAX_NAME_BYTES)], ...] | None = None
    attributes: tuple[Annotated[str, Field(min_length=1)], ...] | None = None
    most_slots: Annotated[int, Field(ge=1, le=512)] = 24

    def include(self, feature: Feature) -> bool:
        """Whether a slot is one of these."""
        if feature.aggregate == "attribute":
            return self.attributes is None or feature.source_column in self.attributes
        if self.events is not None and feature.event not in self.events:
            return False
        return feature.half_life_days is None or feature.half_life_days in self.half_lives_days


class Interests(BaseModel):
    """``[interests]``: what counts as looking at an item and as buying it, and when a look has become a repeated one.

    For each customer the ``keep`` items looked at most are kept, with decay; ``repeated_views`` views of the first of
    them without a purchase are told with the alert.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    view: Annotated[str, Field(min_length=1, max_length=MAX_NAME_BYTES)] = "view"
    purchase: Annotated[str, Field(min_length=1, max_length=MAX_NAME_BYTES)] = "purchase"
    half_life_days: Annotated[float, Field(gt=0, le=3650, allow_inf_nan=False)] = 7.0
    keep: Annotated[int, Field(ge=0, le=32)] = 4
    repeated_views: Annotated[int, Field(ge=1, le=1000)] = 3

    @property
    def half_life_s(self) -> float:
        """Seconds in which a view comes to count half."""
        return self.half_life_days * 86_400


def matches(configured: Sequence[Feature], fitted: Sequence[Feature], candidates: Candidates | None = None) -> bool:
    """Whether a bundle's features are those of a config, which may leave the clips of its sums to training.

    With candidates, training chose them: each must be one that it could choose.
    """
    if candidates is not None:
        return all(any(matches([line], [mine]) for line in configured) or candidates.include(mine) for mine in fitted)
    if len(configured) != len(fitted):
        return False
    return all(
        (mine if mine.clip is not None else mine.model_copy(update={"clip": theirs.clip})) == theirs
        for mine, theirs in zip(configured, fitted, strict=True)
    )


def check_unique_names(features: Sequence[Feature]) -> None:
    """Raise ValueError where two feature lines share a name."""
    seen: set[str] = set()
    for feature in features:
        if feature.name in seen:
            raise ValueError(f"feature '{feature.name}' is defined twice: give one of them another name")
        seen.add(feature.name)


def fingerprint(features: Sequence[Feature]) -> str:
    """Identity of a state layout: 8 hex digits over the state format and the ordered feature lines."""
    lines = [feature.model_dump(exclude_none=True) for feature in features]
    canonical = json.dumps([STATE_FORMAT, lines], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:8]
