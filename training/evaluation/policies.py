"""Profit of policies: the dynamic threshold against other ways to choose the same number of customers.

Everything that a policy needs (budget price, single threshold, quintiles) is found on the calibration block, with
scores of models that were not fitted on it; the test rows are only used to compute the profit. The dynamic threshold
decides how many customers are contacted; the other policies contact the same number, highest first by their own
ranking. No policy contacts a customer whose value is at most the cost of the offer.

That number is itself a figure of a sample: with other customers it would be another one. A policy with as many contacts
gains or loses its marginal contacts then, so its interval includes the profit at the edge of its choice
(:class:`Contacts`). The same term stands in the errors of Lorenz curves (Beach and Davidson, 1983).

Policies choose by the model's values, but are not paid with them, because then every ranking by value would win, a
worthless one as well. *Realised* profit has the observed outcome in place of the probability, and the value that came
in place of the model's (``scored_rows.realised_value``). Beside it are the same outcomes paid *at the model's own
values*, and the *expected* profit, with the model's probabilities and values.

The rates are the config's in all three, because observational data does not show the effect of a contact
(``training.evaluation.uplift`` uses randomised data).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from feature_store.state.layout import Floats
from training.arrays import Bools
from training.config import Offer
from training.evaluation.scored_rows import ScoredRows
from training.evidence import Cell, Policy
from training.graph.thresholds import budget_price, threshold
from training.statistics import total_intervals

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

EDGE_SHARE: Final = 0.1
"""The profit of a marginal contact is the mean over this share of the contacts on both sides of the edge …"""
MIN_EDGE: Final = 25
"""… and over at least this number of rows."""

PAYS: Final = "acting pays"
NOT_SHOWN: Final = "not shown"
DOES_NOT_PAY: Final = "does not pay"


@dataclass(frozen=True)
class Contacts:
    """The customers whom a policy contacts.

    Attributes:
        weight: Probability of a contact ``[n]``.
        edge: If the policy contacts as many as the dynamic threshold: weights ``[n]``, with sum 1, of the rows that it
            would contact next or leave out first. None otherwise.
    """

    weight: Floats
    edge: Floats | None = None


def verdict(low: float, high: float) -> str:
    """What the 95 % interval of a profit says in words: PAYS, NOT_SHOWN or DOES_NOT_PAY."""
    if low > 0:
        return PAYS
    return DOES_NOT_PAY if high < 0 else NOT_SHOWN


def compare_policies(
    name: str,
    offer: Offer,
    calibration: ScoredRows,
    test: ScoredRows,
    *,
    threshold_min: float = 0.01,
    budgets: Sequence[float] = BUDGETS,
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

    Returns:
        One line per budget and policy. ``low`` and ``high`` are the interval of the realised profit; ``ahead`` is the
        realised profit of the dynamic threshold minus that of the policy.
    """
    lines: list[Policy] = []
    for share in sorted({*budgets, offer.budget_share, UNLIMITED}):
        chosen = policy_contacts(name, _at(offer, share), calibration, test, threshold_min=threshold_min)
        lines += _policy_lines(name, offer, share, chosen, test)
    return lines


def _policy_lines(
    name: str, offer: Offer, share: float, chosen: Mapping[str, Contacts], test: ScoredRows
) -> list[Policy]:
    """The lines of a budget."""
    weight = np.column_stack([contacts.weight for contacts in chosen.values()])
    contributions = profit_contributions(chosen, test, offer)
    leads = contributions[:, [0]] - contributions
    profits = [np.asarray(profit @ weight) for profit in (test.expected_profit(offer), test.profit(offer))]
    at_model_values = test.profit_at_model_values(offer) @ weight
    own, ahead = total_intervals(contributions, test.customer), total_intervals(leads, test.customer)
    contacts = weight.sum(axis=0)
    hits = test.label @ weight
    return [
        Policy(
            offer=name,
            policy=policy,
            budget_share=share,
            is_own_budget=share == offer.budget_share,
            rows=len(weight),
            contacts=float(contacts[at]),
            expected=float(profits[0][at]),
            realised=float(profits[1][at]),
            at_model_values=float(at_model_values[at]),
            precision=float(hits[at] / contacts[at]) if contacts[at] else 0.0,
            low=own[at].low,
            high=own[at].high,
            ahead=None if policy == DYNAMIC else float(profits[1][0] - profits[1][at]),
            ahead_low=None if policy == DYNAMIC else ahead[at].low,
            ahead_high=None if policy == DYNAMIC else ahead[at].high,
        )
        for at, policy in enumerate(chosen)
    ]


def profit_contributions(chosen: Mapping[str, Contacts], test: ScoredRows, offer: Offer) -> Floats:
    """Contribution of each row to the realised profit of each policy ``[n, policies]``.

    A policy with as many contacts as the dynamic threshold has a marginal contact more for each one that the dynamic
    threshold has more, at the profit of the rows at its edge.

    Args:
        chosen: By policy, that of the dynamic threshold first.
        test: The rows.
        offer: Costs and rates.
    """
    weight = np.column_stack([contacts.weight for contacts in chosen.values()])
    profit = test.profit(offer)
    marginal = [0.0 if contacts.edge is None else float(contacts.edge @ profit) for contacts in chosen.values()]
    return np.asarray(test.contributions(weight, offer) + marginal * (weight[:, [0]] - weight))


def compare_over_rates(
    name: str,
    offer: Offer,
    calibration: ScoredRows,
    test: ScoredRows,
    *,
    threshold_min: float = 0.01,
    success_rates: Sequence[float] | None = None,
    redemption_rates: Sequence[float] | None = None,
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
    contacts, points, bounds = [], [], []
    for cell in cells:
        chosen = threshold_contacts(cell, calibration, test, threshold_min)
        contributions = profit_contributions(chosen, test, cell)
        leads = contributions[:, [0]] - contributions[:, 1:]
        contacts.append(float(chosen[DYNAMIC].weight.sum()))
        points += leads.sum(axis=0).tolist()
        bounds += total_intervals(leads, test.customer)
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
    """The single threshold with the largest realised profit on these rows; inf for no contact."""
    possible, profit = rows.value > rows.terms(offer).offer_cost, rows.profit(offer)
    return best_threshold(rows.probability[possible], profit[possible], max_contacts)


def threshold_contacts(
    offer: Offer, calibration: ScoredRows, test: ScoredRows, threshold_min: float
) -> dict[str, Contacts]:
    """Contacts of the dynamic and the single thresholds, that of the dynamic one first."""
    terms = test.terms(offer)
    possible = test.value > terms.offer_cost
    price = budget_price(calibration.probability, calibration.value, calibration.terms(offer), threshold_min)
    dynamic = possible & (test.probability >= threshold(test.value, terms, price, threshold_min))
    tuned = tuned_threshold(calibration, offer, offer.budget_share * len(calibration.probability))
    return {
        DYNAMIC: Contacts(_weight(dynamic)),
        SINGLE: _best(test.probability, possible, int(dynamic.sum()), test.customer),
        TUNED: Contacts(_weight(possible & (test.probability >= tuned))),
    }


def policy_contacts(
    name: str, offer: Offer, calibration: ScoredRows, test: ScoredRows, *, threshold_min: float = 0.01
) -> dict[str, Contacts]:
    """Contacts of each policy, that of the dynamic threshold first.

    Arguments are those of :func:`compare_policies`; the budget is the offer's.
    """
    chosen = threshold_contacts(offer, calibration, test, threshold_min)
    contacts, terms = int(chosen[DYNAMIC].weight.sum()), test.terms(offer)
    possible = test.value > terms.offer_cost
    hindsight = tuned_threshold(test, offer, max(contacts, chosen[TUNED].weight.sum()))
    chosen[HINDSIGHT] = Contacts(_weight(possible & (test.probability >= hindsight)))
    rankings = {TIMES_VALUE: test.probability * test.value, **_rankings(name, calibration, test)}
    chosen |= {policy: _best(by, possible, contacts, test.customer) for policy, by in rankings.items()}
    equally = _weight(possible) / max(int(possible.sum()), 1)
    chosen[RANDOM] = Contacts(equally * contacts, equally)
    if offer.budget_share == UNLIMITED:
        chosen[EVERYBODY] = Contacts(_weight(possible))
    return chosen


def _best(ranking: Floats, possible: Bools, contacts: int, customer: npt.NDArray[np.uint64]) -> Contacts:
    """The highest ``contacts`` of the possible rows; ties are broken by the hash of the id, then by row."""
    order = np.lexsort((customer, -ranking))
    order = order[possible[order]]
    chosen, edge = np.zeros((2, len(ranking)))
    chosen[order[:contacts]] = 1.0
    width = max(MIN_EDGE, round(EDGE_SHARE * contacts))
    marginal = order[max(contacts - width, 0) : contacts + width]
    edge[marginal] = 1.0 / max(len(marginal), 1)
    return Contacts(chosen, edge)


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


def _weight(chosen: Bools) -> Floats:
    return chosen.astype(np.float64)


def _at(offer: Offer, share: float) -> Offer:
    return offer.model_copy(update={"budget_share": share})


def _around(rate: float) -> Iterable[float]:
    """Multiples of a rate, or FALLBACK_RATES if it is 0."""
    return sorted({round(min(1.0, rate * factor), 6) for factor in FACTORS}) if rate else FALLBACK_RATES
