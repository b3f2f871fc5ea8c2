"""All models of a bundle: fitting them, and their predictions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from feature_store.bundles.bundle import OFFERS
from feature_store.state.layout import Floats
from training.arrays import Features
from training.config import TrainingConfig
from training.data.dataset import Rows
from training.data.splits import Split, Splits, rows_for_medians
from training.graph.features import FeatureMatrix, FeatureSpec, filled_matrix
from training.models import spend
from training.models.learners import Learner
from training.models.probability import Probability, fit_probability
from training.models.segments import Segments, fit_segments

EVALUATION: Final = "evaluation"
FINAL: Final = "final"


@dataclass(frozen=True)
class Models:
    """Fitted models: a calibrated probability per offer that has labels, expected spend, and segments."""

    matrix: FeatureMatrix
    probability: Mapping[str, Probability]
    spend: spend.SpendModel
    segments: Segments

    def predict(self, offer: str, features: Features) -> Floats:
        """Probability ``[n]``; 0 for an offer without a model."""
        model = self.probability.get(offer)
        return np.zeros(len(features)) if model is None else model.predict(features)


def fit_models(
    config: TrainingConfig,
    spec: FeatureSpec,
    rows: Rows,
    splits: Mapping[str, Splits],
    learners: Mapping[str, Learner],
    stage: str,
) -> Models:
    """Fit the chosen learners.

    Args:
        config: For the constant spend, the churn event and the seed.
        spec: Features to make of a state.
        rows: All rows; only those of the splits are used.
        splits: By target.
        learners: By target.
        stage: EVALUATION, which uses no test row, or FINAL, for the models that are served.
    """
    parts: dict[str, Split] = {target: getattr(split, stage) for target, split in splits.items()}
    matrix = filled_matrix(spec, rows.state[rows_for_medians(rows, parts.values())])
    features, seed = matrix(rows.state), config.evaluation.seed
    probability: dict[str, Probability] = {
        offer: fit_probability(learners[offer], features, rows.label(offer), parts[offer], seed)
        for offer in OFFERS
        if offer in parts
    }
    if "spend" in parts:
        index = parts["spend"].everything
        spends = spend.fit_spend(learners["spend"], features[index], rows.spend[index], seed)
    else:
        spends = spend.same_for_all(config.economics.value or 0.0)
    # Segments describe customers as they are now, so they are fitted on the newest rows that may be used.
    offer = next(iter(probability))
    newest = features[parts[offer].calibration]
    predicted = probability[offer].predict(newest)
    segments = fit_segments(
        newest,
        matrix.spec,
        config.churn.event,
        value=spends.predict(newest),
        risk=predicted if offer == "churn" else 1 - predicted,
        seed=seed,
    )
    return Models(matrix, probability, spends, segments)
