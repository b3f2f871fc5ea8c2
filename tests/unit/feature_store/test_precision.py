"""Why slots are float64: what a thousand folds lose in float32, against what online and offline may differ by."""

from __future__ import annotations

from typing import Any

import numpy as np

from feature_store.loading.load import TOLERANCE

FOLDS = 1000


def worst_error(kind: type[np.floating[Any]], half_life_days: float) -> float:
    """Largest relative error of a decayed sum of a year's purchases, folded one by one in ``kind``."""
    random = np.random.default_rng(0)
    days, amounts = np.sort(random.uniform(0, 365, FOLDS)), random.lognormal(3, 0.6, FOLDS)
    folded, exact, before, worst = kind(0), np.longdouble(0), 0.0, 0.0
    for day, amount in zip(days, amounts, strict=True):
        decay = 2 ** (-(day - before) / half_life_days)
        folded = kind(folded * kind(decay) + kind(amount))
        exact = exact * np.longdouble(decay) + np.longdouble(amount)
        before, worst = day, max(worst, float(abs(folded - exact) / exact))
    return worst


def test_float32_would_leave_no_room_below_the_tolerance() -> None:
    assert max(worst_error(np.float32, half_life) for half_life in (7, 28, 112)) > TOLERANCE / 2


def test_float64_leaves_all_of_it() -> None:
    assert max(worst_error(np.float64, half_life) for half_life in (7, 28, 112)) < TOLERANCE / 1e6
