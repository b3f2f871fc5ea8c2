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
from training.data.cutoffs import VALUE_TARGETS
from training.data.dataset import Rows
from training.data.splits import Split, Splits, rows_for_medians
from training.graph.features import FeatureMatrix, FeatureSpec, filled_matrix
from training.models.learners import Learner
from training.models.probability import Probability, fit_probability
from training.models.segments import Segments, fit_segments
from training.models.spend import MIN_SPEND, SpendModel, fit_spend, same_for_all

EVALUATION: Final = "evaluation"
FINAL: Final = "final"


@dataclass(frozen=True)
class HeldOut:
    """Predictions for the calibration rows of an offer by models that were not fitted on them, each ``[n]``.

    The price of the budget and rival thresholds are found on them, because models are too sure of rows that they were
    fitted on.

    Attributes:
        probability: Calibrated probability.
        spend: Spend if the offer wins.
    """

    probability: Floats
    spend: Floats


@dataclass(frozen=True)
class Predictors:
    """Fitted models of outcomes and spend.

    Attributes:
        matrix: Makes features from states.
        probability: Calibrated probability, by offer that has labels.
        spend_if_won: Spend of a customer whom the offer wins, by the same offers.
        spend: Spend in any case; None if it follows from the first offer.
    """

    matrix: FeatureMatrix
    probability: Mapping[str, Probability]
    spend_if_won: Mapping[str, SpendModel]
    spend: SpendModel | None

    def predict(self, offer: str, features: Features) -> Floats:
        """Probability ``[n]``; 0 for an offer without a model."""
        model = self.probability.get(offer)
        return np.zeros(len(features)) if model is None else model.predict(features)

    def predict_spend_if_won(self, offer: str, features: Features) -> Floats:
        """Spend ``[n]`` of customers if the offer wins; MIN_SPEND for an offer without a model."""
        model = self.spend_if_won.get(offer)
        return np.full(len(features), MIN_SPEND) if model is None else model.predict(features)

    @property
    def first_offer(self) -> str:
        """Churn, or the only offer that has labels."""
        return next(iter(self.probability))

    def expected_spend(self, features: Features) -> Floats:
        """Expected spend ``[n]``, whether or not a customer leaves or buys."""
        if self.spend is not None:
            return self.spend.predict(features)
        offer = self.first_offer
        probability = self.predict(offer, features)
        share = 1 - probability if offer == "churn" else probability
        return share * self.predict_spend_if_won(offer, features)

    @property
    def names(self) -> dict[str, str]:
        """Names of the models by what they predict: an offer, ``OFFER value``, or ``spend``."""
        names = {offer: model.name for offer, model in self.probability.items()}
        names |= {f"{offer} value": model.name for offer, model in self.spend_if_won.items()}
        follows = f"follows from {self.first_offer} and its value"
        return names | {"spend": follows if self.spend is None else self.spend.name}


@dataclass(frozen=True)
class Models(Predictors):
    """All models of a bundle, and predictions for the calibration rows by offer."""

    segments: Segments
    held_out: Mapping[str, HeldOut]


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
        learners: By target that has a model.
        stage: EVALUATION, which uses no test row, or FINAL, for the models that are served.
    """
    parts: dict[str, Split] = {target: getattr(split, stage) for target, split in splits.items()}
    matrix = filled_matrix(spec, rows.state[rows_for_medians(rows, parts.values())])
    features, seed = matrix(rows.state), config.evaluation.seed

    def fit_target(target: str) -> tuple[SpendModel, SpendModel]:
        with_power = target == "purchase_amount"
        return fit_spend(learners[target], features, rows.label(target), parts[target], seed, with_power=with_power)

    probability: dict[str, Probability] = {}
    spend_if_won: dict[str, SpendModel] = {}
    held_out: dict[str, HeldOut] = {}
    for offer in (offer for offer in OFFERS if offer in parts):
        probability[offer], first = fit_probability(learners[offer], features, rows.label(offer), parts[offer], seed)
        constant = same_for_all(config.economics.value or 0.0)
        target = VALUE_TARGETS[offer]
        spend_if_won[offer], first_spend = fit_target(target) if target in learners else (constant, constant)
        unseen = features[parts[offer].calibration]
        held_out[offer] = HeldOut(first.predict(unseen), first_spend.predict(unseen))
    spend = fit_target("spend")[0] if "spend" in learners else None
    predictors = Predictors(matrix, probability, spend_if_won, spend)
    return Models(**vars(predictors), segments=_segments(config, predictors, features, parts), held_out=held_out)


def _segments(config: TrainingConfig, models: Predictors, features: Features, parts: Mapping[str, Split]) -> Segments:
    """Segments describe customers as they are now, so they are fitted on the newest rows that may be used."""
    offer = models.first_offer
    newest = features[parts[offer].calibration]
    predicted = models.predict(offer, newest)
    return fit_segments(
        newest,
        models.matrix.spec,
        config.churn.event,
        value=models.expected_spend(newest),
        risk=predicted if offer == "churn" else 1 - predicted,
        seed=config.evaluation.seed,
    )
