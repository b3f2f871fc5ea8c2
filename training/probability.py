"""The two probabilities, churn and propensity: gradient boosted trees, calibrated on later cut-offs.

Sigmoid calibration, because isotonic calibration does not export exactly. Trees rather than a linear model, because
they are as good on later data here and need no hand-made interactions on a shop nobody has seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.frozen import FrozenEstimator

from feature_store.errors import InputError
from training.onnx_graph import GraphBuilder
from training.trees import tree_parameters

Features = npt.NDArray[np.float32]
Labels = npt.NDArray[np.bool_]
Block = tuple[Features, Labels]

LEAST_OUTCOMES: Final = 5


def check_outcomes(name: str, block: str, labels: Labels) -> None:
    """InputError where a block has too few of one outcome to learn from it or to judge by it."""
    fewest = int(min(labels.sum(), len(labels) - labels.sum()))
    if fewest < LEAST_OUTCOMES:
        raise InputError(
            f"{name}: of {len(labels)} customers at the {block} cut-offs {fewest} have the rarer outcome, "
            f"{LEAST_OUTCOMES} are needed: bring more customers, or change {name}.event, {name}.horizon_days or "
            "churn.active_days"
        )


def fit_probability(fit: Block, calibration: Block, everything: Block, seed: int) -> CalibratedClassifierCV:
    """Trees fitted on one block, calibrated on a later one, then fitted again on everything with that calibration.

    Blocks must have passed :func:`check_outcomes`.
    """
    frozen = FrozenEstimator(HistGradientBoostingClassifier(**tree_parameters(seed)).fit(*fit))
    calibrated = CalibratedClassifierCV(frozen, method="sigmoid").fit(*calibration)
    refitted = HistGradientBoostingClassifier(**tree_parameters(seed)).fit(*everything)
    # Not frozen again, because skl2onnx has no converter for that.
    calibrated.estimator = calibrated.calibrated_classifiers_[0].estimator = refitted
    return calibrated


def add_probabilities(
    graph: GraphBuilder, classifiers: Sequence[CalibratedClassifierCV], features: str, columns: int
) -> str:
    """The classifiers as graph nodes on ``features`` (float32); returns the name of float64 ``[n, classifiers]``.

    Only the trees are converted. Their calibration is four nodes for all together, where a converted one is twenty for
    each: with one customer at a time it is the number of nodes that a run costs.
    """
    fitted = [classifier.calibrated_classifiers_[0] for classifier in classifiers]
    scores = [graph.columns(graph.model(one.estimator, features, columns, "probabilities"), [1]) for one in fitted]
    score = graph.add("Cast", graph.add("Concat", *scores, axis=1), to=graph.float64)
    slope, offset = (
        graph.constant(-np.array([getattr(one.calibrators[0], name) for one in fitted])) for name in ("a_", "b_")
    )
    return graph.add("Sigmoid", graph.add("Add", graph.add("Mul", score, slope), offset))
