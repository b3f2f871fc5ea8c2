"""The size of all boosted trees here: small ones, with many rows a leaf, chosen by log loss on later cut-offs."""

from __future__ import annotations

from typing import Any


def tree_parameters(seed: int) -> dict[str, Any]:
    """Parameters of scikit-learn's histogram gradient boosting. What a graph costs to run follows from them."""
    return {
        "max_iter": 100,
        "learning_rate": 0.08,
        "max_leaf_nodes": 8,
        "min_samples_leaf": 100,
        "l2_regularization": 10.0,
        "max_features": 0.5,
        "early_stopping": False,
        "random_state": seed,
    }
