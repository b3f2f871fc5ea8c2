"""RFM: recency, frequency and monetary value as scores from 1 to 5, each a digit of one number (555 is the best).

A score is the quintile of the training rows that a customer is in. In the graph it is a single node: an ensemble with
one tree per digit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from training.arrays import Features
from training.graph.builder import GraphBuilder

Codes = npt.NDArray[np.int64]
Part = Literal["recency", "frequency", "monetary"]

PARTS: Final[tuple[Part, ...]] = ("recency", "frequency", "monetary")
WORTH: Final = {"recency": 100, "frequency": 10, "monetary": 1}
FIFTHS: Final = (0.2, 0.4, 0.6, 0.8)
MIDDLE: Final = 3
HALF: Final = 0.5
GROUPS: Final = ("champions", "loyal", "new or seldom", "needs attention", "at risk", "hibernating")


@dataclass(frozen=True)
class Score:
    """One digit: the feature column that it is computed from, and the four edges between the quintiles (float32)."""

    part: Part
    column: int
    edges: npt.NDArray[np.float32]

    @property
    def step(self) -> int:
        """Change of the number per edge passed; negative for recency, because fewer days are better."""
        return -WORTH[self.part] if self.part == "recency" else WORTH[self.part]

    @property
    def start(self) -> int:
        """Contribution of the digit to the number below the first edge."""
        return WORTH[self.part] * (5 if self.part == "recency" else 1)


@dataclass(frozen=True)
class Rfm:
    """The available scores. The digit of a missing one (in a shop without amounts, for example) is 0."""

    scores: Sequence[Score]

    def predict(self, features: Features) -> Codes:
        """RFM numbers such as 453, ``[n]``, of features float32 ``[n, names]``."""
        total = np.zeros(len(features), dtype=np.int64)
        for score in self.scores:
            total += score.start + score.step * np.searchsorted(score.edges, features[:, score.column], side="left")
        return total

    def add_to(self, graph: GraphBuilder, features: str) -> str:
        """Add the numbers as one graph node on ``features``; returns the name of float32 ``[n, 1]``."""
        trees = [(score.column, score.edges, score.step) for score in self.scores]
        return graph.add(
            "TreeEnsembleRegressor",
            features,
            domain="ai.onnx.ml",
            n_targets=1,
            base_values=[float(sum(score.start for score in self.scores))],
            **_tree_attributes(trees),
        )


def fit_rfm(features: Features, columns: Mapping[Part, int]) -> Rfm | None:
    """Learn the edges on training rows.

    Args:
        features: Float32 ``[n, names]``.
        columns: The feature columns of the days, counts and sums (or their logarithms) by part.

    Returns:
        None if recency is missing, or both of the others are.
    """
    if "recency" not in columns or len(columns) == 1:
        return None
    return Rfm([Score(part, columns[part], _edges(features[:, columns[part]])) for part in PARTS if part in columns])


def group(code: int) -> str:
    """The group (one of GROUPS) of an RFM number: by recency, and by the mean of the other two digits."""
    recency, others = code // 100, [digit for digit in (code // 10 % 10, code % 10) if digit]
    mean = sum(others) / len(others)
    high, medium = mean > MIDDLE + HALF, mean >= MIDDLE - HALF
    if recency > MIDDLE:
        return "champions" if high else "loyal" if medium else "new or seldom"
    if recency == MIDDLE:
        return "loyal" if high else "needs attention"
    return "at risk" if medium else "hibernating"


def _edges(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Edges of the quintiles, each midway between two values that occur, so that rounding does not change a score."""
    occurring = np.unique(values)
    lower = np.quantile(values, FIFTHS, method="lower")
    upper = occurring[np.minimum(np.searchsorted(occurring, lower, side="right"), len(occurring) - 1)]
    middle = ((lower.astype(np.float64) + upper) / 2).astype(np.float32)
    return np.where(middle < upper, middle, lower).astype(np.float32)


def _tree_attributes(trees: Sequence[tuple[int, npt.NDArray[np.float32], int]]) -> dict[str, list[int | float | str]]:
    """Attributes of an ensemble with one tree per digit: node i compares with edge i, leaf i has passed i edges."""
    attributes: dict[str, list[int | float | str]] = {}

    def put(**values: float | str) -> None:
        for name, value in values.items():
            attributes.setdefault(name, []).append(value)

    for tree, (column, edges, step) in enumerate(trees):
        last = len(edges)
        for at, edge in enumerate(edges):
            put(nodes_treeids=tree, nodes_nodeids=at, nodes_featureids=column, nodes_values=float(edge))
            put(nodes_modes="BRANCH_LEQ", nodes_truenodeids=last + at)
            put(nodes_falsenodeids=at + 1 if at + 1 < last else 2 * last)
        for passed in range(last + 1):
            put(nodes_treeids=tree, nodes_nodeids=last + passed, nodes_featureids=0, nodes_values=0.0)
            put(nodes_modes="LEAF", nodes_truenodeids=0, nodes_falsenodeids=0)
            put(target_treeids=tree, target_nodeids=last + passed, target_ids=0, target_weights=float(step * passed))
    return attributes
