"""The size of all boosted trees here: small ones, with many rows a leaf. What a graph costs to run follows from it."""

from __future__ import annotations

from typing import Any, Final

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
