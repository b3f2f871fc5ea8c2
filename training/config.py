"""What a config says about training: labels, evaluation in time and economics, beside source and features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from feature_store.bundles.bundle import OFFERS
from feature_store.config import FeatureConfig
from feature_store.definitions import Feature

Days = Annotated[float, Field(gt=0, le=3650, allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Churn(_Section):
    """``[churn]``: no event of the type within the horizon, among customers who had one in the active days."""

    event: str = "purchase"
    horizon_days: Days = 28
    active_days: Days = 60


class Propensity(_Section):
    """``[propensity]``: at least one event of the type within the horizon, among the same customers."""

    event: str = "purchase"
    horizon_days: Days = 7


class Offer(_Section):
    """``[economics.churn]`` and ``[economics.propensity]``: costs and effects of acting on an alert.

    ``budget_share`` is the share of customers that may be alerted; from it training finds the price of the budget.
    """

    contact_cost: Amount
    offer_cost: Amount
    success_rate: Share
    redemption_rate: Share
    budget_share: Annotated[float, Field(gt=0, le=1)]


NEVER: Final = Offer(contact_cost=0, offer_cost=0, success_rate=0, redemption_rate=0, budget_share=1)
"""An offer that wins nobody, so that every threshold is 1."""


class Economics(_Section):
    """``[economics]``: what a customer is worth, and what it costs to act.

    ``value``: what every customer spends over the horizon, for a snapshot that has no column for it.
    """

    event: str = "purchase"
    field: Literal["amount"] = "amount"
    horizon_days: Days = 28
    margin: Share
    value: Annotated[float | None, Field(gt=0, allow_inf_nan=False)] = None
    threshold_min: Annotated[float, Field(gt=0, lt=1)] = 0.01
    churn: Offer
    propensity: Offer

    def offer(self, name: str) -> Offer:
        """The offer of that name (one of OFFERS)."""
        return {"churn": self.churn, "propensity": self.propensity}[name]

    def figures(self, budget_price: Mapping[str, float]) -> dict[str, float]:
        """The graph's economics by column name, with the prices of the budgets (lambda) found in training."""
        found = {"margin": self.margin}
        for name in OFFERS:
            offer = self.offer(name).model_dump(exclude={"budget_share"})
            offer["budget_price"] = budget_price.get(name, 0.0)
            found |= {f"{name}.{figure}": value for figure, value in offer.items()}
        return found


class Overdue(_Section):
    """``[[overdue]]``: how long a customer has been away, in units of the customer's own usual interval.

    The days since ``latest`` times the events per day that the decayed count ``rate`` stands for.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]
    latest: str
    rate: str


def check_overdue(lines: Sequence[Overdue], features: Sequence[Feature]) -> None:
    """ValueError where a line names no feature of the right kind."""
    kinds = {feature.name: feature.aggregate for feature in features}
    for line in lines:
        for key, kind in (("latest", "latest"), ("rate", "count")):
            if kinds.get(getattr(line, key)) != kind:
                raise ValueError(f"overdue '{line.name}': '{key}' must name a feature with aggregate '{kind}'")


class Evaluation(_Section):
    """``[evaluation]``: the cut-offs, counted back from the end of the data, and how much is made of them.

    ``folds``: blocks of later cut-offs by which models and features are chosen. ``most_rows`` to learn from and
    ``selection_rows`` to choose by: where there are more, customers are drawn by lot.
    """

    step_days: Days = 14
    test_cutoffs: Annotated[int, Field(ge=1, le=50)] = 3
    calibration_cutoffs: Annotated[int, Field(ge=1, le=50)] = 2
    least_cutoffs: Annotated[int, Field(ge=3)] = 12
    most_cutoffs: Annotated[int, Field(ge=3, le=1000)] = 104
    warm_up_days: Days = 60
    folds: Annotated[int, Field(ge=2, le=20)] = 3
    most_rows: Annotated[int, Field(ge=1000)] = 500_000
    selection_rows: Annotated[int, Field(ge=1000)] = 60_000
    bootstrap: Annotated[int, Field(ge=100, le=10_000)] = 500
    seed: int = 7


class Treatment(_Section):
    """``[treatment]``: an offer that was made at random, from which its effect is measured instead of assumed.

    ``column`` is 1 where the offer was made and 0 where not; ``probability`` is the chance with which it was made, a
    number or the name of a column; ``outcome`` is the column that the offer is to raise. All in the snapshot's table or
    in ``source.attributes``.
    """

    column: Annotated[str, Field(min_length=1)]
    probability: Annotated[float, Field(gt=0, lt=1)] | Annotated[str, Field(min_length=1)]
    outcome: Annotated[str, Field(min_length=1)]
    cost: Amount = 0.0


class TrainingConfig(FeatureConfig):
    """A whole config file."""

    model_config = ConfigDict(extra="forbid")

    churn: Churn = Churn()
    propensity: Propensity = Propensity()
    economics: Economics
    evaluation: Evaluation = Evaluation()
    overdue: tuple[Overdue, ...] = ()
    treatment: Treatment | None = None

    @property
    def labels(self) -> dict[str, str]:
        """What each target means, in words."""
        if self.snapshot is not None:
            return {self.snapshot.target: f"column {self.snapshot.label}"}
        churn, propensity, spend = self.churn, self.propensity, self.economics
        return {
            "population": f"customers with a {churn.event} in the {churn.active_days:g} days before",
            "churn": f"no {churn.event} in the {churn.horizon_days:g} days after",
            "propensity": f"at least one {propensity.event} in the {propensity.horizon_days:g} days after",
            "spend": f"amounts of every {spend.event} in the {spend.horizon_days:g} days after",
        }

    @model_validator(mode="before")
    @classmethod
    def _other_offer(cls, data: Any) -> Any:
        """A snapshot has a label for one offer: the other one is never made."""
        snapshot = data.get("snapshot") if isinstance(data, dict) else None
        if not isinstance(snapshot, dict) or not isinstance(data.get("economics"), dict):
            return data
        other = "churn" if snapshot.get("target") == "propensity" else "propensity"
        return data | {"economics": {other: NEVER.model_dump(), **data["economics"]}}

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.candidates is None:  # with candidates, what there is to name is known when the source is read
            check_overdue(self.overdue, self.feature)
        return self

    @model_validator(mode="after")
    def _worth(self) -> Self:
        if self.snapshot is not None and (self.snapshot.value is None) == (self.economics.value is None):
            raise ValueError(
                "snapshot.value: name the column with what a customer is worth, or give economics.value for all"
            )
        return self

    @model_validator(mode="after")
    def _shorter(self) -> Self:
        if self.propensity.horizon_days > self.churn.horizon_days:
            raise ValueError("propensity.horizon_days must not be longer than churn.horizon_days")
        return self
