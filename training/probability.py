"""The two probabilities, churn and propensity: gradient boosted trees, calibrated on later cut-offs.

Sigmoid calibration, because isotonic calibration does not export exactly. Trees rather than a linear model, because
they are as good on later data here and need no hand-made interactions on a shop nobody has seen.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.frozen import FrozenEstimator

from feature_store.errors import InputError

Features = npt.NDArray[np.float32]
Labels = npt.NDArray[np.bool_]
Block = tuple[Features, Labels]


def fit_probability(name: str, fit: Block, calibration: Block, everything: Block, seed: int) -> CalibratedClassifierCV:
    """Trees fitted on one block, calibrated on a later one, then fitted again on everything with that calibration.

    InputError where a block has one outcome only.
    """
    for block, (_, labels) in (("fit", fit), ("calibration", calibration)):
        if labels.all() or not labels.any():
            raise InputError(
                f"{name}: all {len(labels)} customers of the {block} cut-offs have the same outcome: "
                f"change {name}.event, {name}.horizon_days or churn.active_days"
            )
    frozen = FrozenEstimator(_trees(seed).fit(*fit))
    calibrated = CalibratedClassifierCV(frozen, method="sigmoid").fit(*calibration)
    # Also because skl2onnx has no converter for FrozenEstimator.
    calibrated.estimator = calibrated.calibrated_classifiers_[0].estimator = _trees(seed).fit(*everything)
    return calibrated


def _trees(seed: int) -> HistGradientBoostingClassifier:
    """Small trees, many rows a leaf: chosen by log loss on later cut-offs of the sample."""
    return HistGradientBoostingClassifier(
        max_iter=100,
        learning_rate=0.08,
        max_leaf_nodes=8,
        min_samples_leaf=100,
        l2_regularization=10.0,
        max_features=0.5,
        early_stopping=False,
        random_state=seed,
    )
