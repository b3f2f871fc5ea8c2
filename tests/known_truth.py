"""Rows of simulated shops as the evaluation of a fit sees them, with the truth about them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
from scipy.special import expit, logit

from feature_store.state.layout import DAY_S, Floats
from tests.made_rows import made_config, made_rows
from training.config import Offer
from training.data.dataset import Rows
from training.evaluation.policies import DYNAMIC, HINDSIGHT, UNLIMITED, compare_policies, policy_contacts
from training.evaluation.scored_rows import ScoredRows, realised_value
from training.evaluation.stayers import corrected_by_stayers
from training.evaluation.value_reliability import reliability_of
from training.evidence import Policy
from training.report.curves import BINS, reliability
from training.simulation import ShopDesign, SimulatedShop, TrueRows, simulate

PROBABILITY_ERROR: Final = 0.3
"""Standard deviation of a model's errors in log odds, the same at all moments of a customer."""
VALUE_ERROR: Final = 0.2
"""The same of the logarithm of values."""
TEST_CUTOFFS: Final = 3
STEP_DAYS: Final = 14.0
SAME_MOMENT_DAYS: Final = 1e-9
CALIBRATION_SEED: Final = 1_000_001
REFERENCE_SEED: Final = 1_000_002
MIN_LEAD: Final = 0.02
"""Leads that are a smaller share of the profit are left out: nearly the same customers are contacted."""

STEADY: Final = ShopDesign(
    customers=4000,
    active_days=42.0,
    interval_spread=0.4,
    leave_chance=0.05,
    basket_spread=0.6,
    return_share=0.0,
)
"""A shop without refunds, which may come after the horizon: the spend that is seen is all there is."""


@dataclass(frozen=True)
class Evaluated:
    """Test rows of a simulated shop, scored by an imperfect model, and the truth about them."""

    scored: ScoredRows
    truth: TrueRows


def offer_of(design: ShopDesign, name: str) -> Offer:
    """The offer of a design as a config has it."""
    terms = design.offers[name]
    return Offer(
        contact_cost=terms.contact_cost,
        offer_cost=terms.offer_cost,
        success_rate=terms.success_rate,
        redemption_rate=terms.redemption_rate,
        budget_share=terms.budget_share,
    )


def evaluated(design: ShopDesign, offer: str, seed: int, *, before_days: float = 0.0) -> Evaluated:
    """Rows of a shop at TEST_CUTOFFS moments.

    Args:
        design: How the shop works.
        offer: ``churn`` or ``propensity``.
        seed: Of the shop and of the model's errors.
        before_days: How many days before the end of the history the last horizon is over.
    """
    shop = simulate(design, seed)
    horizon = design.horizon_days if offer == "churn" else design.propensity_days
    newest = design.end_s - (before_days + horizon) * DAY_S
    cutoffs = [newest - number * STEP_DAYS * DAY_S for number in range(TEST_CUTOFFS)]
    truth = shop.at(cutoffs, offer)
    random = np.random.default_rng(seed)
    errors = random.standard_normal((2, design.customers))[:, truth.history.customer]
    exact = np.clip(truth.probability, 1e-6, 1 - 1e-3)
    probability = expit(logit(exact) + PROBABILITY_ERROR * errors[0])
    # Seen by their mean, values are right: the errors have mean 1.
    value = truth.value * np.exp(VALUE_ERROR * errors[1] - VALUE_ERROR**2 / 2)
    rows = rows_of(shop, truth, cutoffs)
    realised, stayers = realised_value(config_of(design), rows, offer), None
    if offer == "churn":
        stay_value = design.margin * rows.stay_spend
        realised, stayers = corrected_by_stayers(realised, probability, value, truth.history.label, stay_value)
    scored = ScoredRows(
        customer=truth.history.customer.astype(np.uint64),
        probability=probability,
        value=value,
        realised_value=realised,
        label=truth.history.label,
        recency=truth.history.recency_days,
        frequency=truth.history.purchases,
        monetary=truth.history.monetary,
        stayers=stayers,
    )
    return Evaluated(scored, truth)


def config_of(design: ShopDesign) -> Any:
    """A config with the horizons and the offers of a design."""
    offers = {name: offer_of(design, name).model_dump() for name in design.offers}
    economics = {"margin": design.margin, "horizon_days": design.value_days, **offers}
    return made_config(
        economics=economics,
        churn={"horizon_days": design.horizon_days, "active_days": design.active_days},
        propensity={"horizon_days": design.propensity_days},
    )


def rows_of(shop: SimulatedShop, truth: TrueRows, cutoffs: Sequence[float]) -> Rows:
    """The rows that training would build of the shop's tables, without states."""
    history = truth.history
    windows, tenure = spans(shop, cutoffs)
    at = np.searchsorted(np.unique(cutoffs), history.cutoff)
    buys = history.label if truth.offer == "propensity" else ~history.label
    spend = np.maximum(history.spend, 0.0)
    return made_rows(
        np.zeros((len(truth), 1)),
        cutoff=history.cutoff,
        customer_id=history.customer_id,
        spend=spend,
        stay_spend=np.where(buys, spend, np.nan),
        purchase_amount=np.where(buys, spend / np.maximum(history.purchases_within, 1), np.nan),
        kept_windows=windows[at, history.customer],
        tenure_days=tenure[at, history.customer],
        recency_days=history.recency_days,
        frequency=history.purchases,
        monetary=history.monetary,
        **{truth.offer: history.label.astype(np.float64)},
    )


def spans(shop: SimulatedShop, cutoffs: Sequence[float]) -> tuple[Floats, Floats]:
    """Spans of one churn horizon with a purchase, counted back from each moment, and days since the first purchase.

    Returns:
        Two arrays ``[moments, customers]``, moments ascending.
    """
    design, bought = shop.design, shop.purchases
    windows, tenure = [], []
    for cutoff in np.unique(cutoffs):
        ago = (cutoff - design.start_s) / DAY_S + SAME_MOMENT_DAYS - bought.day
        past = ago >= 0
        number = (ago[past] // design.horizon_days).astype(np.int64)
        span = np.unique(bought.customer[past] * (number.max() + 1) + number)
        windows.append(np.bincount(span // (number.max() + 1), minlength=design.customers))
        tenure.append((cutoff - design.start_s) / DAY_S - shop.customers.joined_day)
    return np.array(windows, dtype=np.float64), np.array(tenure)


# --- estimates beside the truth ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A figure of the report for one seed, and the truth.

    Attributes:
        kind: ``profit``, ``lead``, ``value ratio`` or ``reliability``.
        name: Which figure of the kind.
        estimate: As the report prints it.
        low: Lower end of its 95 % interval.
        high: Upper end.
        truth: What it is an estimate of, for all shops of the design.
        same_rows: The truth about the very rows of this shop, which is less affected by chance.
    """

    kind: str
    name: str
    estimate: float
    low: float
    high: float
    truth: float
    same_rows: float

    @property
    def covers(self) -> bool:
        """Whether the interval contains the truth."""
        return self.low <= self.truth <= self.high


@dataclass(frozen=True)
class Trial:
    """Estimates of the same figures from shops of many seeds, all with the policies of one calibration block.

    The truth of totals is that of a customer of a very large shop, so intervals must cover what the choice of the
    customers, their behaviour and their spend add.
    """

    design: ShopDesign
    offer: str
    calibration: ScoredRows
    reference: Evaluated

    @classmethod
    def of(cls, design: ShopDesign, offer: str, reference_customers: int) -> Trial:
        """Prepare the calibration block and the large shop."""
        before = design.horizon_days + TEST_CUTOFFS * STEP_DAYS
        large = replace(design, customers=reference_customers)
        calibration = evaluated(design, offer, CALIBRATION_SEED, before_days=before).scored
        return cls(design, offer, calibration, evaluated(large, offer, REFERENCE_SEED))

    def estimates(self, seed: int, resamples: int = 500) -> list[Estimate]:
        """Figures of the report for the shop of a seed."""
        rows = evaluated(self.design, self.offer, seed)
        customers = len(np.unique(rows.scored.customer))
        profits, values = self._profits(rows, customers), self._values(rows, seed, resamples)
        return [*profits, *values, *self._reliability(rows)]

    @cached_property
    def _per_customer(self) -> dict[tuple[float, str], float]:
        """True profit per customer, by budget and policy."""
        rows = self.reference
        customers = len(np.unique(rows.scored.customer))
        return {key: rows.truth.profit(weight) / customers for key, weight in self._contacts(rows).items()}

    def _contacts(self, rows: Evaluated) -> dict[tuple[float, str], Floats]:
        """Contacts ``[n]`` by budget and policy."""
        offer = offer_of(self.design, self.offer)
        return {
            (share, policy): contacts.weight
            for share in (offer.budget_share, UNLIMITED)
            for policy, contacts in policy_contacts(
                self.offer, offer.model_copy(update={"budget_share": share}), self.calibration, rows.scored
            ).items()
            if policy != HINDSIGHT  # tuned on the outcomes that pay it, so it has no truth
        }

    def _true_profit(self, line: Policy, customers: int) -> float:
        """True profit of a policy in a shop with this number of customers."""
        return self._per_customer[line.budget_share, line.policy] * customers

    def _profits(self, rows: Evaluated, customers: int) -> Iterator[Estimate]:
        offer = offer_of(self.design, self.offer)
        lines = compare_policies(self.offer, offer, self.calibration, rows.scored, budgets=())
        lines = [line for line in lines if (line.budget_share, line.policy) in self._per_customer]
        own = {key: rows.truth.profit(weight) for key, weight in self._contacts(rows).items()}
        dynamic = {line.budget_share: self._true_profit(line, customers) for line in lines if line.policy == DYNAMIC}
        for line in lines:
            truth = self._true_profit(line, customers)
            name = f"{self.offer}, {line.policy}, {line.budget_share:.0%}"
            same = own[line.budget_share, line.policy]
            yield Estimate("profit", name, line.realised, line.low, line.high, truth, same)
            lead = dynamic[line.budget_share] - truth
            # Policies that contact nearly the same customers differ by next to nothing.
            if line.ahead is not None and abs(lead) > MIN_LEAD * abs(truth):
                bounds = line.ahead_low or 0.0, line.ahead_high or 0.0
                yield Estimate("lead", name, line.ahead, *bounds, lead, own[line.budget_share, DYNAMIC] - same)

    @cached_property
    def _true_value_ratio(self) -> float:
        truth, scored = self.reference.truth, self.reference.scored
        wins = truth.probability if self.offer == "propensity" else 1 - truth.probability
        return float(wins @ scored.value / (wins @ truth.value))

    def _values(self, rows: Evaluated, seed: int, resamples: int) -> Iterator[Estimate]:
        won = rows.truth.history.label == (self.offer == "propensity")
        history, margin = rows.truth.history, self.design.margin
        brought = np.maximum(history.spend, 0.0) / (
            1 if self.offer == "churn" else np.maximum(history.purchases_within, 1)
        )
        table = reliability_of(
            self.offer,
            rows.scored.value[won],
            margin * brought[won],
            np.zeros(int(won.sum()), dtype=np.bool_),
            rows.scored.customer[won],
            resamples=resamples,
            seed=seed,
        )
        assert table.total is not None
        total = table.total
        truth = self._true_value_ratio
        yield Estimate("value ratio", self.offer, total.ratio, total.low, total.high, truth, truth)

    def _reliability(self, rows: Evaluated) -> Iterator[Estimate]:
        """Observed rates of the bins; the truth is the mean of the true probabilities of the very same rows."""
        truth, scored = rows.truth.probability, rows.scored
        curve = reliability(scored.label, scored.probability, scored.customer)
        bins = [b for b in np.array_split(np.argsort(scored.probability, kind="stable"), BINS) if len(b)]
        for number, index in enumerate(bins):
            observed, error = float(curve.observed[number]), float(curve.error[number])
            name = f"{self.offer}, bin {number + 1}"
            right = float(truth[index].mean())
            yield Estimate("reliability", name, observed, observed - error, observed + error, right, right)


@dataclass(frozen=True)
class Coverage:
    """What the estimates of many seeds say about a kind of figure.

    Attributes:
        intervals: Number of intervals.
        covered: Share that contains the truth.
        biased: Share of the figures whose mean over the seeds is more than two standard errors away from the truth.
        bias: The largest difference of a mean from the truth, as a share of the truth.
    """

    intervals: int
    covered: float
    biased: float
    bias: float


def coverage(estimates: Sequence[Sequence[Estimate]]) -> dict[str, Coverage]:
    """Coverage and bias by kind, from the estimates of each seed."""
    lines = [line for each in estimates for line in each]
    results = {}
    for kind in sorted({line.kind for line in lines}):
        of_kind = [line for line in lines if line.kind == kind]
        errors = {
            name: np.array([[line.estimate - line.same_rows, line.same_rows] for line in of_kind if line.name == name])
            for name in {line.name for line in of_kind}
        }
        z = [abs(e[:, 0].mean()) * np.sqrt(len(e)) / max(e[:, 0].std(ddof=1), 1e-12) for e in errors.values()]
        relative = [abs(e[:, 0].mean() / e[:, 1].mean()) for e in errors.values()]
        results[kind] = Coverage(
            intervals=len(of_kind),
            covered=float(np.mean([line.covers for line in of_kind])),
            biased=float(np.mean([each > 2 for each in z])),
            bias=float(max(relative)),
        )
    return results
