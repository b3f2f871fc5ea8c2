"""Calibrated probabilities of churn and propensity.

Calibration is by a sigmoid (Platt, 1999), because isotonic calibration cannot be exported exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from feature_store.state.layout import Floats
from training.arrays import Features
from training.data.splits import Split
from training.models.learners import Blend, Learner
from training.models.scores import Score

CALIBRATION_C: Final = 1e3
"""Inverse strength of the calibration's penalty, which only keeps the slope finite if a score separates the
outcomes."""


@dataclass(frozen=True)
class Probability:
    """A fitted and calibrated classifier: the probability is ``expit(slope * score + offset)``."""

    name: str
    estimator: Any
    slope: float = 1.0
    offset: float = 0.0

    def predict(self, features: Features) -> Floats:
        """Probability ``[n]``, computed with scikit-learn."""
        score = self.estimator.decision_function(features.astype(np.float64))
        return np.asarray(expit(self.slope * score + self.offset))

    def score(self) -> Score:
        """The logit of the probability, for the graph."""
        parts = self.estimator.parts if isinstance(self.estimator, Blend) else [self.estimator]
        return Score([(part, self.slope / len(parts)) for part in parts], self.offset)


def fit_probability(
    learner: Learner, features: Features, labels: Floats, split: Split, seed: int
) -> tuple[Probability, Probability]:
    """Fit on one block, calibrate on a later one, and fit again on everything with that calibration.

    The blocks must have passed :func:`training.data.splits.check_outcomes`.

    Args:
        learner: What to fit.
        features: Features ``[n, names]`` of all rows.
        labels: Labels ``[n]`` of all rows.
        split: Which rows are for what.
        seed: Of the learner.

    Returns:
        The model, and the first one, which has not been fitted on the calibration block.
    """
    first = learner.fit(features[split.fit], labels[split.fit], seed)
    score = first.decision_function(features[split.calibration].astype(np.float64))
    sigmoid = LogisticRegression(C=CALIBRATION_C, max_iter=1000).fit(score[:, np.newaxis], labels[split.calibration])
    slope, offset = float(sigmoid.coef_[0, 0]), float(sigmoid.intercept_[0])
    refitted = learner.fit(features[split.everything], labels[split.everything], seed)
    return Probability(learner.name, refitted, slope, offset), Probability(learner.name, first, slope, offset)
