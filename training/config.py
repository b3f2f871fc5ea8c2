"""The sections of a config that concern training: labels, economics, evaluation and treatment."""

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
    """``[churn]``: a customer churns who has no event of the type within the horizon.

    Only customers with such an event in the ``active_days`` before are considered.

    Attributes:
        event: The event type, usually that of purchases.
        horizon_days: Days after a cut-off in which a customer who stays has such an event.
        active_days: Days before a cut-off in which a customer must have such an event to be considered.
    """

    event: str = "purchase"
    horizon_days: Days = 28
    active_days: Days = 60


class Propensity(_Section):
    """``[propensity]``: at least one event of the type within the horizon, for the same customers as churn.

    Attributes:
        event: The event type, usually that of purchases.
        horizon_days: Days after a cut-off that are counted. They must not be more than those of churn.
    """

    event: str = "purchase"
    horizon_days: Days = 7


class Offer(_Section):
    """``[economics.churn]`` and ``[economics.propensity]``: costs and effects of acting on an alert.

    Attributes:
        contact_cost: Cost of contacting one customer.
        offer_cost: Cost of the offer if the customer takes it.
        success_rate: Share of the targeted customers (churners; buyers) whom the offer wins.
        redemption_rate: Share of the other customers who redeem the offer as well.
        budget_share: Share of customers that may be alerted; training derives the price of the budget from it.
    """

    contact_cost: Amount
    offer_cost: Amount
    success_rate: Share
    redemption_rate: Share
    budget_share: Annotated[float, Field(gt=0, le=1)]


NEVER: Final = Offer(contact_cost=0, offer_cost=0, success_rate=0, redemption_rate=0, budget_share=1)
"""An offer that never succeeds, so that every threshold is 1 (never)."""


class Economics(_Section):
    """``[economics]``: the value of a customer, and the costs of acting.

    Attributes:
        event: The event type whose amounts are spend.
        horizon_days: The value horizon: for how many days the spend of a customer who stays is counted. It may be
            longer than the horizon of churn.
        margin: Share of spend that is profit.
        value: Spend of every customer who is won, for a snapshot without a column of it.
        threshold_min: Lower bound of all thresholds.
        churn: The offer that is meant to keep a customer.
        propensity: The offer that is meant to win one more purchase.
    """

    event: str = "purchase"
    field: Annotated[Literal["amount"], Field(description="The field of these events that is spend.")] = "amount"
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
        """The graph's economics by column name, with the price of each offer's budget as found in training."""
        figures = {"margin": self.margin}
        for name in OFFERS:
            offer = self.offer(name).model_dump(exclude={"budget_share"})
            offer["budget_price"] = budget_price.get(name, 0.0)
            figures |= {f"{name}.{figure}": value for figure, value in offer.items()}
        return figures


class Overdue(_Section):
    """``[[overdue]]``: time since a customer's last event, in units of the usual interval of that customer.

    It is the number of days since ``latest``, multiplied by the events per day that the decayed count ``rate`` implies.

    Attributes:
        name: Name of the feature.
        latest: A feature with the aggregate ``latest``: the time of the last event.
        rate: A feature with the aggregate ``count`` of the same events.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]
    latest: str
    rate: str


def check_overdue(lines: Sequence[Overdue], features: Sequence[Feature]) -> None:
    """ValueError if a line names no feature of the right kind."""
    kinds = {feature.name: feature.aggregate for feature in features}
    for line in lines:
        for key, kind in (("latest", "latest"), ("rate", "count")):
            if kinds.get(getattr(line, key)) != kind:
                raise ValueError(f"overdue '{line.name}': '{key}' must name a feature with aggregate '{kind}'")


class Evaluation(_Section):
    """``[evaluation]``: cut-offs, counted back from the end of the data, and sizes of samples.

    Attributes:
        step_days: Distance between training cut-offs.
        test_cutoffs: Number of cut-offs for the test, the latest ones.
        test_step_days: Distance between test cut-offs. It is not ``step_days``, so that a denser training grid does not
            shorten the time that the test covers, and bundles with different grids can be compared on the same rows.
        calibration_cutoffs: Number of cut-offs before the test for calibrating probabilities.
        least_cutoffs: Minimum number of training cut-offs.
        most_cutoffs: Maximum number of training cut-offs.
        warm_up_days: Days at the beginning of the history without cut-offs.
        folds: Number of cross-validation folds in time, for choosing models and features.
        most_rows: Maximum number of rows for fitting; above it, customers are sampled at random.
        selection_rows: Maximum number of rows for selecting models and features.
        bootstrap: Number of bootstrap resamples.
        seed: Seed of all random numbers.
    """

    step_days: Days = 14
    test_cutoffs: Annotated[int, Field(ge=1, le=50)] = 3
    test_step_days: Days = 14
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
    """``[treatment]``: a randomised offer, from which the effect is measured instead of assumed.

    All columns are in the snapshot's table or in ``source.attributes``.

    Attributes:
        column: The column that is 1 if the offer was made, 0 if it was withheld, and NULL for customers who were not
            part of the experiment.
        time: The column with the time of the offer, also for customers from whom it was withheld: TIMESTAMP, DATE or
            unix seconds. Required with events, where customers are described as of then; a snapshot must be of then.
        probability: The probability with which it was made: a number, or a column.
        outcome: The column that the offer is meant to raise.
        cost: Cost of one offer.
    """

    column: Annotated[str, Field(min_length=1)]
    probability: Annotated[float, Field(gt=0, lt=1)] | Annotated[str, Field(min_length=1)]
    outcome: Annotated[str, Field(min_length=1)]
    time: Annotated[str | None, Field(min_length=1)] = None
    cost: Amount = 0.0


class TrainingConfig(FeatureConfig):
    """A complete config file.

    Attributes:
        churn: What churn means.
        propensity: What a purchase propensity is about.
        economics: What customers are worth, and what acting costs.
        evaluation: How models are trained and tested.
        overdue: Features that compare the time since the last event with the customer's usual interval.
        treatment: A randomised offer, if there was one.
    """

    model_config = ConfigDict(extra="forbid")

    churn: Churn = Churn()
    propensity: Propensity = Propensity()
    economics: Economics
    evaluation: Evaluation = Evaluation()
    overdue: tuple[Overdue, ...] = ()
    treatment: Treatment | None = None

    @property
    def labels(self) -> dict[str, str]:
        """The definition of each target, as text."""
        if self.snapshot is not None:
            target = self.snapshot.target
            won = "column " + self.snapshot.value if self.snapshot.value else f"{self.economics.value:g} for everybody"
            return {target: f"column {self.snapshot.label}", f"{target} value if won": f"margin times {won}"}
        churn, propensity, spend = self.churn, self.propensity, self.economics
        return {
            "population": f"customers with a {churn.event} in the {churn.active_days:g} days before",
            "churn": f"no {churn.event} in the {churn.horizon_days:g} days after",
            "propensity": f"at least one {propensity.event} in the {propensity.horizon_days:g} days after",
            "spend": f"amounts of every {spend.event} in the {spend.horizon_days:g} days after",
            "churn value if won": f"margin times spend in the {spend.horizon_days:g} days after of customers who stay",
            "propensity value if won": f"margin times the mean amount of a {spend.event} in the "
            f"{propensity.horizon_days:g} days after of customers with a {propensity.event}",
        }

    @property
    def spend_follows(self) -> bool:
        """Whether expected spend follows from the probability of churn: who churns spends nothing in the horizon.

        Otherwise expected spend needs a model: if spend is counted for longer than churn or comes from other events, or
        in a snapshot, whose column of spend may have any definition.
        """
        if self.snapshot is not None:
            return self.snapshot.value is None
        same_event = self.economics.event == self.churn.event
        return same_event and self.economics.horizon_days <= self.churn.horizon_days

    @property
    def test_rows(self) -> str:
        """How the test rows are chosen, as the end of a sentence."""
        if self.snapshot is None:
            return "by time"
        group = self.snapshot.group
        return f"at random, all rows of one {group} together" if group else "at random"

    @model_validator(mode="before")
    @classmethod
    def _other_offer(cls, data: Any) -> Any:
        """A snapshot has a label for one offer only: disable the other one."""
        snapshot = data.get("snapshot") if isinstance(data, dict) else None
        if not isinstance(snapshot, dict) or not isinstance(data.get("economics"), dict):
            return data
        other = "churn" if snapshot.get("target") == "propensity" else "propensity"
        return data | {"economics": {other: NEVER.model_dump(), **data["economics"]}}

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.candidates is None:  # with candidates, the features are known only once the source is read
            check_overdue(self.overdue, self.feature)
        return self

    @model_validator(mode="after")
    def _worth(self) -> Self:
        if self.snapshot is not None and (self.snapshot.value is None) == (self.economics.value is None):
            raise ValueError(
                "snapshot.value: name the column with the value of a customer, or give economics.value for all "
                "customers"
            )
        return self

    @model_validator(mode="after")
    def _offer_has_time(self) -> Self:
        if self.treatment is None:
            return self
        if self.snapshot is None and self.treatment.time is None:
            raise ValueError(
                "treatment.time: name the column with the time of the offer: customers must be described as they were "
                "then, because what they did afterwards may be an effect of the offer"
            )
        if self.snapshot is not None and self.treatment.time is not None:
            raise ValueError(
                "treatment.time: a snapshot has no events from which customers could be described as of a time: remove "
                "the key, and let the table hold what was known before the offer"
            )
        return self

    @model_validator(mode="after")
    def _shorter(self) -> Self:
        if self.propensity.horizon_days > self.churn.horizon_days:
            raise ValueError("propensity.horizon_days must not be longer than churn.horizon_days")
        return self
