"""The two probabilities, churn and propensity: the candidates, and a chosen one with its calibration.

Sigmoid calibration, because isotonic calibration does not export exactly. What cannot be exported exactly is no
candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.special import expit
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from feature_store.errors import InputError
from feature_store.state import Floats
from training.onnx_graph import GraphBuilder
from training.splits import Split
from training.trees import tree_parameters

Features = npt.NDArray[np.float32]

LEAST_OUTCOMES: Final = 5


@dataclass(frozen=True)
class Learner:
    """A candidate: its name, and how to make one for a seed and a number of rows."""

    name: str
    make: Callable[[int, int], Any]

    def fit(self, features: Features, labels: Floats, seed: int) -> Any:
        """A fitted estimator."""
        return self.make(seed, len(features)).fit(features.astype(np.float64), labels)


def _logistic(seed: int, rows: int) -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000, random_state=seed))


def _trees(iterations: int) -> Callable[[int, int], HistGradientBoostingClassifier]:
    return lambda seed, rows: HistGradientBoostingClassifier(**tree_parameters(seed, rows, iterations))


LEARNERS: Final = (
    Learner("logistic regression", _logistic),
    Learner("boosted trees (50)", _trees(50)),
    Learner("boosted trees (100)", _trees(100)),
)
"""Simplest first."""

THOROUGH: Final = LEARNERS[-1]
"""By what features are chosen: it can use them in every way."""


@dataclass(frozen=True)
class Probability:
    """A fitted candidate, whose score becomes a probability by ``expit(slope * score + offset)``."""

    name: str
    estimator: Any
    slope: float = 1.0
    offset: float = 0.0

    def predict(self, features: Features) -> Floats:
        """Probability [n], computed with scikit-learn."""
        score = self.estimator.decision_function(features.astype(np.float64))
        return np.asarray(expit(self.slope * score + self.offset))

    def add_score(self, graph: GraphBuilder, features: str, columns: int) -> str:
        """The score as graph nodes on ``features`` (float32): the name of float64 ``[n, 1]``."""
        if isinstance(self.estimator, Pipeline):
            scaler, model = self.estimator[0], self.estimator[-1]
            weight = model.coef_[0] / scaler.scale_
            offset = model.intercept_ - weight @ scaler.mean_
            exact = graph.add("Cast", features, to=graph.float64)
            product = graph.add("MatMul", exact, graph.constant(weight[:, np.newaxis]))
            return graph.add("Add", product, graph.constant(offset))
        score = graph.columns(graph.model(self.estimator, features, columns, "probabilities"), [1])
        return graph.add("Cast", score, to=graph.float64)


def check_outcomes(name: str, block: str, labels: Floats) -> None:
    """InputError where a block has too few of one outcome to learn from it or to judge by it."""
    fewest = int(min(labels.sum(), len(labels) - labels.sum()))
    if fewest < LEAST_OUTCOMES:
        raise InputError(
            f"{name}: of {len(labels)} customers at the {block} cut-offs {fewest} have the rarer outcome, "
            f"{LEAST_OUTCOMES} are needed: bring more customers, or change {name}.event, {name}.horizon_days or "
            "churn.active_days"
        )


def fit_probability(learner: Learner, features: Features, labels: Floats, split: Split, seed: int) -> Probability:
    """Fitted on one block, calibrated on a later one, then fitted again on everything with that calibration.

    Blocks must have passed :func:`check_outcomes`.
    """
    first = learner.fit(features[split.fit], labels[split.fit], seed)
    calibrated = CalibratedClassifierCV(FrozenEstimator(first), method="sigmoid", ensemble=True)
    calibrated.fit(features[split.calibration].astype(np.float64), labels[split.calibration])
    sigmoid = calibrated.calibrated_classifiers_[0].calibrators[0]
    refitted = learner.fit(features[split.everything], labels[split.everything], seed)
    return Probability(learner.name, refitted, -float(sigmoid.a_), -float(sigmoid.b_))


def add_probabilities(graph: GraphBuilder, models: Sequence[Probability], features: str, columns: int) -> str:
    """The models as graph nodes on ``features`` (float32); returns the name of float64 ``[n, models]``.

    Calibration is a few nodes for all together: with one customer at a time it is the number of nodes that a run costs.
    """
    scores = [model.add_score(graph, features, columns) for model in models]
    score = graph.add("Concat", *scores, axis=1) if len(scores) > 1 else scores[0]
    slope, offset = (
        graph.constant(np.array([getattr(model, name) for model in models])) for name in ("slope", "offset")
    )
    return graph.add("Sigmoid", graph.add("Add", graph.add("Mul", score, slope), offset))
