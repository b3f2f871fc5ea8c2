"""Profit of policies: the dynamic threshold against other ways to choose the same number of customers.

Everything that a policy needs (budget price, single threshold, quintiles) is found on the calibration block; the test
rows are only used to compute the profit. The dynamic threshold decides how many customers are contacted; the other
policies contact the same number, highest first by their own ranking. No policy contacts a customer whose value is at
most the cost of the offer.

Expected profit is the gain with the model's probability, realised profit the gain with the observed outcome in its
place. Both use the model's value and the config's rates, because observational data does not show the effect of a
contact (``training.evaluation.uplift`` uses randomised data).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from feature_store.bundles.bundle import Manifest
from feature_store.state.layout import Floats
from training.config import Offer
from training.evidence import Cell, HoldoutRows, Policy
from training.graph.thresholds import CustomerOffer, Terms, budget_price, gain, threshold
from training.statistics import RESAMPLES, interval, resampled_totals

Mask = npt.NDArray[np.bool_]

BUDGETS: Final = (0.02, 0.05, 0.1, 0.2, 0.3)
UNLIMITED: Final = 1.0
FACTORS: Final = (0.25, 0.5, 1.0, 2.0, 4.0)
FALLBACK_RATES: Final = (0.0, 0.05, 0.1, 0.2, 0.4)
QUINTILES: Final = (0.2, 0.4, 0.6, 0.8)

DYNAMIC: Final = "dynamic threshold"
SINGLE: Final = "single threshold, as many contacts"
TUNED: Final = "single threshold, tuned before"
HINDSIGHT: Final = "single threshold, best in hindsight"
TIMES_VALUE: Final = "probability times value"
RFM: Final = "recency, frequency, monetary"
RECENCY: Final = "recency"
RANDOM: Final = "random"
EVERYBODY: Final = "everybody"


@dataclass(frozen=True)
class ScoredRows:
    """ScoredRows rows of a block, each array ``[n]``.

    Attributes:
        customer: Hash of the id, uint64.
        probability: Calibrated.
        value: Margin times expected spend.
        label: The observed outcome.
        recency: Days since the last purchase, NaN if unknown, None for a snapshot.
        frequency: Number of purchases, NaN if unknown, None for a snapshot.
        monetary: Spend, NaN if unknown, None for a snapshot.
        contact_cost: Per customer; None if the offer's applies to all.
        offer_cost: Per customer; None if the offer's applies to all.
    """

    customer: npt.NDArray[np.uint64]
    probability: Floats
    value: Floats
    label: Mask
    recency: Floats | None = None
    frequency: Floats | None = None
    monetary: Floats | None = None
    contact_cost: Floats | None = None
    offer_cost: Floats | None = None

    def terms(self, offer: Offer) -> Terms:
        """The offer, with the costs per customer if there are any."""
        if self.contact_cost is None and self.offer_cost is None:
            return offer
        n = len(self.probability)
        contact = np.full(n, offer.contact_cost) if self.contact_cost is None else self.contact_cost
        cost = np.full(n, offer.offer_cost) if self.offer_cost is None else self.offer_cost
        return CustomerOffer(contact, cost, offer.success_rate, offer.redemption_rate, offer.budget_share)


def terms_in(manifest: Manifest, offer: str, rows: HoldoutRows) -> CustomerOffer:
    """The offer to the customers of test rows, with the rates of a manifest."""
    success, redemption = (manifest.economics[f"{offer}.{rate}"] for rate in ("success_rate", "redemption_rate"))
    return CustomerOffer(rows.contact_cost, rows.offer_cost, success, redemption, budget_share=1.0)


def compare_policies(
    name: str,
    offer: Offer,
    calibration: ScoredRows,
    test: ScoredRows,
    *,
    threshold_min: float = 0.01,
    budgets: Sequence[float] = BUDGETS,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Policy]:
    """Profits of all policies on the test rows, at each budget, the offer's budget and without a budget (1.0).

    Args:
        name: The offer. For ``churn`` the recency policy ranks customers who were away longest first, for
            ``propensity`` last.
        offer: Costs and rates.
        calibration: Rows on which thresholds and prices are found.
        test: Rows on which profits are computed.
        threshold_min: Lower bound of the dynamic threshold.
        budgets: Shares of customers that may be contacted.
        resamples: Number of bootstrap resamples.
        seed: Of the resamples.

    Returns:
        One line per budget and policy. ``low`` and ``high`` are the interval of the realised profit; ``ahead`` is the
        realised profit of the dynamic threshold minus that of the policy.
    """
    chosen = {
        (share, policy): weight
        for share in sorted({*budgets, offer.budget_share, UNLIMITED})
        for policy, weight in _choices(name, _at(offer, share), calibration, test, threshold_min).items()
    }
    terms = test.terms(offer)
    expected, realised = gain(test.probability, test.value, terms), gain(_outcome(test), test.value, terms)
    drawn = resampled_totals(
        np.column_stack([weight * realised for weight in chosen.values()]), test.customer, resamples, seed
    )
    totals = dict(zip(chosen, drawn.T, strict=True))
    lines = []
    for (share, policy), weight in chosen.items():
        profit = float(weight @ realised)
        own, ahead = interval(totals[share, policy], profit), None
        lead = float(chosen[share, DYNAMIC] @ realised) - profit
        if policy != DYNAMIC:
            ahead = interval(totals[share, DYNAMIC] - totals[share, policy], lead)
        lines.append(
            Policy(
                offer=name,
                policy=policy,
                budget_share=share,
                contacts=float(weight.sum()),
                expected=float(weight @ expected),
                realised=profit,
                low=own.low,
                high=own.high,
                ahead=None if ahead is None else lead,
                ahead_low=None if ahead is None else ahead.low,
                ahead_high=None if ahead is None else ahead.high,
            )
        )
    return lines


def compare_over_rates(
    name: str,
    offer: Offer,
    calibration: ScoredRows,
    test: ScoredRows,
    *,
    threshold_min: float = 0.01,
    success_rates: Sequence[float] | None = None,
    redemption_rates: Sequence[float] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Cell]:
    """Dynamic against single threshold for other success and redemption rates, at the offer's budget.

    Args:
        name: The offer.
        offer: Costs and rates.
        calibration: Rows on which thresholds and prices are found.
        test: Rows on which profits are computed.
        threshold_min: Lower bound of the dynamic threshold.
        success_rates: By default multiples of the config's rate.
        redemption_rates: By default multiples of the config's rate.
        resamples: Number of bootstrap resamples.
        seed: Of the resamples.

    Returns:
        One cell per pair of rates, with differences in realised profit. ``ahead``: compared with the single threshold
        with the same number of contacts; ``tuned_ahead``: with the single threshold that is best on the calibration
        block, with any number of contacts within the budget.
    """
    cells = [
        offer.model_copy(update={"success_rate": success, "redemption_rate": redemption})
        for success in success_rates or _around(offer.success_rate)
        for redemption in redemption_rates or _around(offer.redemption_rate)
    ]
    contacts, leads = [], []
    for cell in cells:
        chosen = _thresholds(cell, calibration, test, threshold_min)
        realised = gain(_outcome(test), test.value, test.terms(cell))
        contacts.append(float(chosen[DYNAMIC].sum()))
        leads += [(chosen[DYNAMIC] - chosen[rival]) * realised for rival in (SINGLE, TUNED)]
    drawn = resampled_totals(np.column_stack(leads), test.customer, resamples, seed)
    points = [float(lead.sum()) for lead in leads]
    bounds = [interval(column, point) for column, point in zip(drawn.T, points, strict=True)]
    return [
        Cell(
            offer=name,
            success_rate=cell.success_rate,
            redemption_rate=cell.redemption_rate,
            contacts=contacts[i],
            ahead=points[2 * i],
            low=bounds[2 * i].low,
            high=bounds[2 * i].high,
            tuned_ahead=points[2 * i + 1],
            tuned_low=bounds[2 * i + 1].low,
            tuned_high=bounds[2 * i + 1].high,
        )
        for i, cell in enumerate(cells)
    ]


def best_threshold(probability: Floats, profit: Floats, max_contacts: float) -> float:
    """The threshold with the largest total profit of at most ``max_contacts`` contacts; inf for no contact."""
    order = np.argsort(-probability, kind="stable")
    ranked = probability[order]
    together = np.append(ranked[1:] < ranked[:-1], True)[
        : len(ranked)
    ]  # rows with equal probabilities are all in or all out
    ends = np.flatnonzero(together & (np.arange(1, len(ranked) + 1) <= max_contacts))
    totals = np.cumsum(profit[order])[ends]
    if not len(totals) or totals.max() <= 0:
        return np.inf
    return float(ranked[ends[np.argmax(totals)]])


def tuned_threshold(rows: ScoredRows, offer: Offer, max_contacts: float) -> float:
    """The single threshold that is best for these rows with their observed outcomes; inf for no contact."""
    terms = rows.terms(offer)
    possible = rows.value > terms.offer_cost
    profit = gain(_outcome(rows), rows.value, terms)
    return best_threshold(rows.probability[possible], profit[possible], max_contacts)


def _thresholds(offer: Offer, calibration: ScoredRows, test: ScoredRows, threshold_min: float) -> dict[str, Floats]:
    """Contacts of the dynamic and the single thresholds: 0 or 1 for each test row."""
    terms = test.terms(offer)
    possible = test.value > terms.offer_cost
    price = budget_price(calibration.probability, calibration.value, calibration.terms(offer), threshold_min)
    dynamic = possible & (test.probability >= threshold(test.value, terms, price, threshold_min))
    tuned = tuned_threshold(calibration, offer, offer.budget_share * len(calibration.probability))
    return {
        DYNAMIC: _weight(dynamic),
        SINGLE: _best(test.probability, possible, int(dynamic.sum()), test.customer),
        TUNED: _weight(possible & (test.probability >= tuned)),
    }


def _choices(
    name: str, offer: Offer, calibration: ScoredRows, test: ScoredRows, threshold_min: float
) -> dict[str, Floats]:
    """Contacts of each policy: 0 or 1 for each test row, or the probability of a contact."""
    chosen = _thresholds(offer, calibration, test, threshold_min)
    contacts, terms = int(chosen[DYNAMIC].sum()), test.terms(offer)
    possible = test.value > terms.offer_cost
    hindsight = tuned_threshold(test, offer, max(contacts, chosen[TUNED].sum()))
    chosen[HINDSIGHT] = _weight(possible & (test.probability >= hindsight))
    rankings = {TIMES_VALUE: test.probability * test.value, **_rankings(name, calibration, test)}
    chosen |= {policy: _best(by, possible, contacts, test.customer) for policy, by in rankings.items()}
    chosen[RANDOM] = _weight(possible) * (contacts / max(int(possible.sum()), 1))
    if offer.budget_share == UNLIMITED:
        chosen[EVERYBODY] = _weight(possible)
    return chosen


def _best(ranking: Floats, possible: Mask, contacts: int, customer: npt.NDArray[np.uint64]) -> Floats:
    """The highest ``contacts`` of the possible rows; ties are broken by the hash of the id, then by row."""
    order = np.lexsort((customer, -ranking))
    chosen = np.zeros(len(ranking), dtype=bool)
    chosen[order[possible[order]][:contacts]] = True
    return _weight(chosen)


def _rankings(name: str, calibration: ScoredRows, test: ScoredRows) -> dict[str, Floats]:
    """Rankings by recency and by the sum of three quintiles (with edges of the calibration block), if available."""
    sign = 1.0 if name == "churn" else -1.0
    if calibration.recency is None or test.recency is None or np.isnan(test.recency).all():
        return {}
    rankings = {RECENCY: np.nan_to_num(sign * test.recency, nan=-np.inf)}
    columns = _pairs(calibration, test)
    if len(columns) == 2:  # noqa: PLR2004 - frequency and monetary
        score = _quintile(sign * calibration.recency, sign * test.recency)
        rankings[RFM] = score + sum(_quintile(before, after) for before, after in columns)
    return rankings


def _pairs(calibration: ScoredRows, test: ScoredRows) -> list[tuple[Floats, Floats]]:
    pairs = ((calibration.frequency, test.frequency), (calibration.monetary, test.monetary))
    return [(before, after) for before, after in pairs if before is not None and after is not None]


def _quintile(before: Floats, after: Floats) -> Floats:
    """Quintiles 1 to 5, 0 for unknown values."""
    known = before[~np.isnan(before)]
    edges = np.quantile(known, QUINTILES) if len(known) else np.zeros(len(QUINTILES))
    return np.where(np.isnan(after), 0.0, 1.0 + np.searchsorted(edges, after, side="right"))


def _weight(chosen: Mask) -> Floats:
    return chosen.astype(np.float64)


def _outcome(rows: ScoredRows) -> Floats:
    return rows.label.astype(np.float64)


def _at(offer: Offer, share: float) -> Offer:
    return offer.model_copy(update={"budget_share": share})


def _around(rate: float) -> Iterable[float]:
    """Multiples of a rate, or FALLBACK_RATES if it is 0."""
    return sorted({round(min(1.0, rate * factor), 6) for factor in FACTORS}) if rate else FALLBACK_RATES
