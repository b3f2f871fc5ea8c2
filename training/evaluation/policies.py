"""What the dynamic threshold is worth: profit on later cut-offs, against other ways to choose as many customers.

Everything a policy needs (budget price, single threshold, quintiles) is found on the calibration block; the test
cut-offs only tell what came of it. The dynamic threshold decides how many customers are contacted, the others contact
the same number, best first by their own ranking. Nobody contacts a customer whose value is at most the offer's cost.

Expected profit is the gain by the model's probability, realised profit the gain with the outcome in its place; value
and rates are the model's and the config's in both, because what a contact itself changes is not in observational data
(``training.evaluation.uplift`` is for randomised data).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from feature_store.state.layout import Floats
from training.config import Offer
from training.evidence import Cell, Policy
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
class Scored:
    """Rows of a block as the models scored them, each array ``[n]``.

    customer: uint64 hash of the id; recency (days), frequency and monetary: NaN where unknown, None where a source has
    none; contact_cost and offer_cost: each customer's own, None where the offer's figures are for all.
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
        """The offer with these customers' own costs where there are any."""
        if self.contact_cost is None and self.offer_cost is None:
            return offer
        n = len(self.probability)
        contact = np.full(n, offer.contact_cost) if self.contact_cost is None else self.contact_cost
        cost = np.full(n, offer.offer_cost) if self.offer_cost is None else self.offer_cost
        return CustomerOffer(contact, cost, offer.success_rate, offer.redemption_rate, offer.budget_share)


def policies(
    name: str,
    offer: Offer,
    calibration: Scored,
    test: Scored,
    *,
    threshold_min: float = 0.01,
    budgets: Sequence[float] = BUDGETS,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Policy]:
    """Profits of all policies at each budget, the offer's own and none (1.0), on the test's rows.

    ``name``: ``churn`` ranks who has been away longest first where it ranks by recency, ``propensity`` last. ``low``
    and ``high`` are those of the realised profit; ``ahead`` is the dynamic threshold's realised profit minus this one.
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
    found = []
    for (share, policy), weight in chosen.items():
        profit = float(weight @ realised)
        own, ahead = interval(totals[share, policy], profit), None
        lead = float(chosen[share, DYNAMIC] @ realised) - profit
        if policy != DYNAMIC:
            ahead = interval(totals[share, DYNAMIC] - totals[share, policy], lead)
        found.append(
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
    return found


def grid(
    name: str,
    offer: Offer,
    calibration: Scored,
    test: Scored,
    *,
    threshold_min: float = 0.01,
    success_rates: Sequence[float] | None = None,
    redemption_rates: Sequence[float] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Cell]:
    """The dynamic threshold against the single one for rates around and beyond the config's, at the offer's budget.

    ``ahead``: of the single threshold that makes as many contacts; ``tuned_ahead``: of the single threshold that does
    best on the calibration block and makes as many contacts as it likes within the budget. Both in realised profit.
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


def share_won(cells: Sequence[Cell]) -> dict[str, float]:
    """Shares of the cells that the dynamic threshold has won, tied and lost, at equal contacts.

    Won: the whole interval is above 0, lost: below; ``contacted``: share in which anybody was worth contacting, without
    which nobody can win.
    """
    n = max(len(cells), 1)
    won, lost = sum(cell.low > 0 for cell in cells), sum(cell.high < 0 for cell in cells)
    return {
        "won": won / n,
        "tied": (len(cells) - won - lost) / n,
        "lost": lost / n,
        "contacted": sum(cell.contacts > 0 for cell in cells) / n,
    }


def best_threshold(probability: Floats, profit: Floats, most: float) -> float:
    """The threshold on ``probability`` with the largest total ``profit`` of at most ``most`` contacts; inf: nobody."""
    order = np.argsort(-probability, kind="stable")
    ranked = probability[order]
    together = np.append(ranked[1:] < ranked[:-1], True)[: len(ranked)]  # equal probabilities are in or out together
    ends = np.flatnonzero(together & (np.arange(1, len(ranked) + 1) <= most))
    totals = np.cumsum(profit[order])[ends]
    if not len(totals) or totals.max() <= 0:
        return np.inf
    return float(ranked[ends[np.argmax(totals)]])


def tuned_threshold(rows: Scored, offer: Offer, most: float) -> float:
    """The single threshold that these rows, with the outcomes that came, would have wanted; inf: nobody."""
    terms = rows.terms(offer)
    possible = rows.value > terms.offer_cost
    profit = gain(_outcome(rows), rows.value, terms)
    return best_threshold(rows.probability[possible], profit[possible], most)


def _thresholds(offer: Offer, calibration: Scored, test: Scored, threshold_min: float) -> dict[str, Floats]:
    """Who is contacted by the dynamic threshold and by the single ones: 0 or 1 for each row of the test."""
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


def _choices(name: str, offer: Offer, calibration: Scored, test: Scored, threshold_min: float) -> dict[str, Floats]:
    """Who is contacted by each policy: 0 or 1 for each row of the test, or the chance of it."""
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
    """The ``contacts`` best of those possible; of equals who comes first by the hash of the id, then by row."""
    order = np.lexsort((customer, -ranking))
    chosen = np.zeros(len(ranking), dtype=bool)
    chosen[order[possible[order]][:contacts]] = True
    return _weight(chosen)


def _rankings(name: str, calibration: Scored, test: Scored) -> dict[str, Floats]:
    """Recency, and the sum of three quintiles (edges of the calibration block), where a source has them."""
    sign = 1.0 if name == "churn" else -1.0
    if calibration.recency is None or test.recency is None or np.isnan(test.recency).all():
        return {}
    found = {RECENCY: np.nan_to_num(sign * test.recency, nan=-np.inf)}
    columns = _pairs(calibration, test)
    if len(columns) == 2:  # noqa: PLR2004 - frequency and monetary
        score = _quintile(sign * calibration.recency, sign * test.recency)
        found[RFM] = score + sum(_quintile(before, after) for before, after in columns)
    return found


def _pairs(calibration: Scored, test: Scored) -> list[tuple[Floats, Floats]]:
    pairs = ((calibration.frequency, test.frequency), (calibration.monetary, test.monetary))
    return [(before, after) for before, after in pairs if before is not None and after is not None]


def _quintile(before: Floats, after: Floats) -> Floats:
    """1 to 5, and 0 where unknown."""
    known = before[~np.isnan(before)]
    edges = np.quantile(known, QUINTILES) if len(known) else np.zeros(len(QUINTILES))
    return np.where(np.isnan(after), 0.0, 1.0 + np.searchsorted(edges, after, side="right"))


def _weight(chosen: Mask) -> Floats:
    return chosen.astype(np.float64)


def _outcome(rows: Scored) -> Floats:
    return rows.label.astype(np.float64)


def _at(offer: Offer, share: float) -> Offer:
    return offer.model_copy(update={"budget_share": share})


def _around(rate: float) -> Iterable[float]:
    """Rates around the config's, and beyond."""
    return sorted({round(min(1.0, rate * factor), 6) for factor in FACTORS}) if rate else FALLBACK_RATES
