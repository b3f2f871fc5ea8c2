"""Boosted trees: their size, small with many rows a leaf, which decides what a graph costs to run, and their scores."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from feature_store.state.layout import Floats

LEAVES: Final = 12
MOST_ROWS_A_LEAF: Final = 100


def tree_parameters(seed: int, rows: int, iterations: int = 100) -> dict[str, Any]:
    """Parameters of scikit-learn's histogram gradient boosting, for so many rows to learn from."""
    return {
        "max_iter": iterations,
        "learning_rate": 6 / iterations,
        "max_leaf_nodes": LEAVES,
        "min_samples_leaf": min(MOST_ROWS_A_LEAF, max(10, rows // 100)),
        "l2_regularization": 10.0,
        "max_features": 0.5,
        "early_stopping": False,
        "random_state": seed,
    }


class ScoresOfChanged:
    """Scores of rows in which a few columns have changed, equal to the estimator's to the last bit.

    Only the trees that split on a changed column are evaluated again; the outputs of all trees are added in the
    estimator's own order. Permutation importance of 24 to 58 features evaluates a third to a fifth of the trees that
    way. scikit-learn has no public access to single trees; skl2onnx reads the same attributes.
    """

    def __init__(self, estimator: Any, features: Floats) -> None:
        """Keep the output of each tree for the unchanged rows.

        Args:
            estimator: A fitted HistGradientBoosting estimator with one output.
            features: The unchanged rows ``[n, features]``, float64.
        """
        self._baseline: Final = estimator._baseline_prediction.item()  # noqa: SLF001
        self._bitsets: Final = estimator._bin_mapper.make_known_categories_bitsets()  # noqa: SLF001
        self._trees: Final = [tree for (tree,) in estimator._predictors]  # noqa: SLF001
        self._columns: Final = [np.unique(t.nodes["feature_idx"][t.nodes["is_leaf"] == 0]) for t in self._trees]
        self._outputs: Final = [self._output(tree, features) for tree in self._trees]

    def __call__(self, features: Floats, changed: npt.NDArray[np.bool_]) -> Floats:
        """Scores before any link.

        Args:
            features: The rows ``[n, features]``, float64.
            changed: Which columns ``[features]`` may differ from the unchanged rows.

        Returns:
            Scores ``[n]``.
        """
        scores = np.full(len(features), self._baseline)
        for tree, columns, output in zip(self._trees, self._columns, self._outputs, strict=True):
            scores += self._output(tree, features) if changed[columns].any() else output
        return scores

    def _output(self, tree: Any, features: Floats) -> Floats:
        return np.asarray(tree.predict(features, *self._bitsets, n_threads=1))
