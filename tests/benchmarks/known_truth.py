"""Figures from simulated shops whose truth is known: coverage of intervals, share of the oracle's profit, control."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from feature_store.bundles.bundle import OFFERS
from tests.benchmarks.setting import Bench, Measured
from tests.fitted_shops import RIVALS, FittedOffer, fitted_shop
from tests.known_truth import STEADY, Coverage, Trial, coverage

SEEDS: Final = 200
REFERENCE_CUSTOMERS: Final = 200_000
MAX_FITS: Final = 200
FITS_MINUTES: Final = 30.0
"""No whole fit begins after this time; the notes of the figures say how many there were."""
SHUFFLED: Final = 50
NOMINAL: Final = 0.95


def intervals(_bench: Bench) -> dict[str, Measured]:
    """Coverage of the report's 95 % intervals of the kind whose coverage is worst, and figures that are biased."""
    kinds: dict[str, Coverage] = {}
    for offer in OFFERS:
        trial = Trial.of(STEADY, offer, REFERENCE_CUSTOMERS)
        estimates = [trial.estimates(seed) for seed in range(SEEDS)]
        kinds |= {f"{offer} {kind}": result for kind, result in coverage(estimates).items()}
    worst = max(kinds.values(), key=lambda result: abs(result.covered - NOMINAL)).covered
    covered = ", ".join(f"{kind} {result.covered:.3f}" for kind, result in kinds.items())
    biased = ", ".join(f"{kind} {result.biased:.2f} (at most {result.bias:.1%})" for kind, result in kinds.items())
    return {
        "coverage_95": (worst, f"the worst kind, {SEEDS} seeds: {covered}"),
        "biased_estimates": (
            max(result.biased for result in kinds.values()),
            f"share of figures more than 2 standard errors from the truth, {SEEDS} seeds (largest bias): {biased}",
        ),
    }


def whole_fits(_bench: Bench) -> dict[str, Measured]:
    """Profit of the dynamic threshold over the oracle's, wins over rivals, and the control with shuffled values."""
    fits: list[Mapping[str, FittedOffer]] = []
    end = time.monotonic() + 60 * FITS_MINUTES
    while len(fits) < MAX_FITS and (not fits or time.monotonic() < end):
        fits.append(fitted_shop(len(fits)))
    return fit_figures(fits)


def fit_figures(fits: Sequence[Mapping[str, FittedOffer]]) -> dict[str, Measured]:
    """The figures of some fits."""
    shares = {offer: [fit[offer].oracle_share for fit in fits] for offer in OFFERS}
    medians = {offer: statistics.median(share) for offer, share in shares.items()}
    tenths = {offer: float(np.quantile(share, 0.1)) for offer, share in shares.items()}
    every = [(fit[offer], rival) for fit in fits for offer in OFFERS for rival in RIVALS]
    meant = [offer.wins[rival] for offer, rival in every if offer.should_win[rival]]
    by_rival = {rival: [o.wins[rival] for o, r in every if r == rival and o.should_win[rival]] for rival in RIVALS}
    won = ", ".join(f"{rival} {sum(wins)} of {len(wins)}" for rival, wins in by_rival.items())
    shuffled = [sum(fit[offer].shuffled_wins for fit in fits[:SHUFFLED]) for offer in OFFERS]
    errors = {offer: [fit[offer].profit_error for fit in fits] for offer in OFFERS}
    paid = ", ".join(
        f"{offer} {statistics.mean(error):+.3f} ± {2 * statistics.stdev(error) / len(error) ** 0.5:.3f}, covered "
        f"{statistics.mean(fit[offer].covered for fit in fits):.2f}"
        for offer, error in errors.items()
    )

    def spread(offer: str) -> str:
        return f"{offer} {min(shares[offer]):.3f} to {max(shares[offer]):.3f}"

    note = f"{len(fits)} fits, the worse offer; {', '.join(spread(offer) for offer in OFFERS)}"
    median = ", ".join(f"{offer} {value:.3f}" for offer, value in medians.items())
    tenth = ", ".join(f"{offer} {value:.3f}" for offer, value in tenths.items())
    return {
        "oracle_share": (min(medians.values()), f"median; {median}; {note}"),
        "oracle_share_decile": (min(tenths.values()), f"worst decile; {tenth}; {note}"),
        "truth_wins": (statistics.mean(meant) if meant else 1.0, f"wins that the truth implies: {won}"),
        "fitted_profit_error": (
            max(abs(statistics.mean(error)) for error in errors.values()),
            f"mean relative error of the realised profit, 95 %: {paid}",
        ),
        "shuffled_value_wins": (
            float(max(shuffled)),
            f"of {len(fits[:SHUFFLED])} fits: {', '.join(f'{o} {n}' for o, n in zip(OFFERS, shuffled, strict=True))}",
        ),
    }
