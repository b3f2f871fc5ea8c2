"""Whole fits of simulated shops, compared with the truth."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from feature_store.bundles.bundle import OFFERS
from feature_store.config import load_config
from feature_store.offline.store import OfflineStore
from feature_store.state.layout import Floats
from training.config import Offer, TrainingConfig
from training.evaluation.negative_control import run_negative_control
from training.evaluation.policies import (
    DYNAMIC,
    RECENCY,
    RFM,
    SINGLE,
    TIMES_VALUE,
    compare_policies,
    policy_contacts,
)
from training.evaluation.scored_rows import ScoredRows
from training.evaluation.scorer import EvaluationScorer
from training.fit import fit
from training.simulation import OfferDesign, ShopDesign, SimulatedShop, TrueRows, simulate, write_shop

RIVALS: Final = (SINGLE, TIMES_VALUE, RFM, RECENCY)
CLEARLY: Final = 1.05
"""The truth says that the dynamic threshold should win if it earns this many times as much with perfect scores."""
CORRELATIONS: Final = (0.0, -0.6, 0.6)


@dataclass(frozen=True)
class FittedOffer:
    """An offer of a fitted shop, beside the truth.

    Attributes:
        oracle_share: True profit of the served alerts over that of the best policy with as many contacts as the budget
            allows, or as were alerted, whichever is more.
        should_win: By rival, whether the truth says that the dynamic threshold should earn more at equal contacts.
        wins: By rival, whether it does, in true profit.
        shuffled_wins: Whether the report shows the dynamic threshold ahead if values are shuffled among customers.
        profit_error: Realised profit of the dynamic threshold, as the report prints it, minus the true profit of the
            same contacts, over the true profit.
        covered: Whether the interval of the realised profit contains the true profit of the same contacts.
    """

    oracle_share: float
    should_win: dict[str, bool]
    wins: dict[str, bool]
    shuffled_wins: bool
    profit_error: float
    covered: bool


def design_of(seed: int) -> ShopDesign:
    """The design of a seed: risk and value are uncorrelated, negatively and positively correlated in turn.

    Attributes show how customers behave, so that what the oracle knows can be learnt. Success drifts by a fifth a year.
    """
    return ShopDesign(
        customers=3000,
        attribute_noise=0.0,
        risk_value_correlation=CORRELATIONS[seed % len(CORRELATIONS)],
        offers={
            "churn": OfferDesign(0.10, 3.00, 0.20, 0.10, 0.10, success_drift=-0.2),
            "propensity": OfferDesign(0.05, 1.00, 0.20, 0.05, 0.20, success_drift=-0.2),
        },
    )


def fitted_shop(seed: int, design: ShopDesign | None = None) -> Mapping[str, FittedOffer]:
    """Fit the shop of a seed, and compare both offers with the truth."""
    shop = simulate(design_of(seed) if design is None else design, seed)
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(TrainingConfig, str(write_shop(shop, Path(folder))))
        with OfflineStore(config.source) as source:
            scorer = fit(config, "shop", source, no_progress).scorer
    return {offer: _compared(scorer, shop, offer, seed) for offer in OFFERS}


def no_progress(_step: str, _parts: int) -> Callable[[], None]:
    """Shows nothing."""
    return lambda: None


def _compared(scorer: EvaluationScorer, shop: SimulatedShop, offer: str, seed: int) -> FittedOffer:
    terms, minimum = scorer.config.economics.offer(offer), scorer.config.economics.threshold_min
    calibration, test = scorer.calibration_rows(offer), scorer.test_rows(offer)
    truth = _true_rows(scorer, shop, offer)
    served = scorer.run(scorer.table.rows.state[scorer.table.splits[offer].test])
    alerts = served[f"{offer}_probability"] >= served[f"{offer}_threshold"]
    chosen = policy_contacts(offer, terms, calibration, test, threshold_min=minimum)
    contacts = {policy: of_policy.weight for policy, of_policy in chosen.items()}
    best = truth.oracle(max(alerts.sum(), round(terms.budget_share * len(truth))))
    profit = {policy: truth.profit(weight) for policy, weight in contacts.items()}
    ideal = _with_perfect_scores(offer, terms, test, truth, int(contacts[DYNAMIC].sum()))
    control = run_negative_control(offer, terms, calibration, test, threshold_min=minimum, shuffles=1, seed=seed)
    lines = compare_policies(offer, terms, calibration, test, threshold_min=minimum, budgets=())
    line = next(line for line in lines if line.policy == DYNAMIC and line.budget_share == terms.budget_share)
    # What the report cannot know: the success rate has drifted since it was measured.
    at_config_rates = _profit_at(truth, terms, contacts[DYNAMIC])
    return FittedOffer(
        oracle_share=truth.profit(alerts) / truth.profit(best),
        should_win={rival: ideal[DYNAMIC] > CLEARLY * ideal[rival] for rival in RIVALS},
        wins={rival: profit[DYNAMIC] > profit[rival] for rival in RIVALS},
        shuffled_wins=control.shown_ahead > 0,
        profit_error=line.realised / at_config_rates - 1,
        covered=line.low <= at_config_rates <= line.high,
    )


def _true_rows(scorer: EvaluationScorer, shop: SimulatedShop, offer: str) -> TrueRows:
    """The truth about the test rows, in their order."""
    rows = scorer.table.rows.take(scorer.table.splits[offer].test)
    truth = shop.at(sorted(set(rows.cutoff.tolist())), offer)
    keys = zip(truth.history.cutoff.tolist(), truth.history.customer_id.tolist(), strict=True)
    place = {key: number for number, key in enumerate(keys)}
    wanted = zip(rows.cutoff.tolist(), rows.customer_id.tolist(), strict=True)
    return truth.take(np.array([place[key] for key in wanted], dtype=np.intp))


def _profit_at(truth: TrueRows, terms: Offer, weight: Floats) -> float:
    """True profit of contacts if the config's rates were right."""
    won = truth.probability * terms.success_rate * (truth.value - terms.offer_cost)
    given_away = (1 - truth.probability) * terms.redemption_rate * terms.offer_cost
    return float(weight @ (won - given_away - terms.contact_cost))


def _with_perfect_scores(
    offer: str, terms: Offer, test: ScoredRows, truth: TrueRows, contacts: int
) -> dict[str, float]:
    """True profit of each policy if it knew the true probabilities and values, with as many contacts."""
    sign = 1.0 if offer == "churn" else -1.0
    assert test.recency is not None
    assert test.frequency is not None
    assert test.monetary is not None
    quintiles = [_fifths(column) for column in (sign * test.recency, test.frequency, test.monetary)]
    rankings = {
        SINGLE: truth.probability,
        TIMES_VALUE: truth.probability * truth.value,
        RFM: np.sum(quintiles, axis=0),
        RECENCY: sign * test.recency,
    }
    worth = truth.value > terms.offer_cost
    profit = {DYNAMIC: truth.profit(truth.oracle(contacts))}
    for rival, ranking in rankings.items():
        chosen = np.zeros(len(truth), dtype=bool)
        order = np.lexsort((test.customer, -ranking))
        chosen[order[worth[order]][:contacts]] = True
        profit[rival] = truth.profit(chosen)
    return profit


def _fifths(column: Floats) -> Floats:
    return np.searchsorted(np.quantile(column, (0.2, 0.4, 0.6, 0.8)), column, side="right").astype(np.float64)
