"""Redundant binary attributes: which of them follow from others, and which the models do not need.

Rules are association rules between pairs of attributes (Agrawal et al., 1993): customers with this attribute have (do
not have) that one. All pairs are one product of the table with itself, whereas a search for item sets of any size takes
minutes on dense tables. Clusters are of correlated attributes, whether positively or negatively.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from scipy.stats import poisson

from feature_store.state.layout import Floats
from training.arrays import Bools, Index
from training.evidence import BinaryAttribute
from training.selection.one_standard_error import simplest
from training.statistics import random_rows

Losses = Callable[[list[int]], Floats]
"""From the indexes of a set of attributes to the losses ``[n]`` of a model with them, always of the same rows."""

ALL: Final = "all tags"

MIN_ATTRIBUTES: Final = 5
"""Minimum number of binary attributes for looking for redundant ones."""

MAX_ROWS: Final = 20_000
"""Rules are found on a sample of at most this number of rows."""

MIN_SUPPORT: Final = 0.005
"""An attribute that fewer customers have (or lack) is rare."""

MIN_CONFIDENCE: Final = 0.95
MAX_REMAINING_DOUBT: Final = 0.1
"""Exceptions to a rule as a share of those expected by chance: an attribute that nearly all have is implied by any."""

FALSE_RULE_RATE: Final = 0.001
"""Probability of finding any rule by chance among independent attributes."""

CLUSTER_CORRELATION: Final = 0.5
"""Absolute correlation from which attributes are in one cluster."""


@dataclass(frozen=True)
class Rules:
    """Rules between pairs of attributes, ``[attributes, attributes]`` unless stated otherwise.

    Attributes:
        support: Share of customers with the attribute, ``[attributes]``.
        confidence: Share of the customers with the row's attribute who have the column's.
        implies: Customers with the row's attribute have the column's.
        same: Each implies the other.
        opposite: Customers have exactly one of the two.
        correlation: Phi coefficient.
    """

    support: Floats
    confidence: Floats
    implies: Bools
    same: Bools
    opposite: Bools
    correlation: Floats


def binary_columns(columns: Mapping[str, npt.NDArray[Any]]) -> list[str]:
    """Names of the columns ``[n]`` with no values other than 0 and 1 (or booleans), apart from missing ones."""
    return [name for name, values in columns.items() if _is_binary(values)]


def has_enough_binary(columns: Mapping[str, npt.NDArray[Any]]) -> bool:
    """Whether there are enough binary columns to look for redundant ones."""
    return len(binary_columns(columns)) >= MIN_ATTRIBUTES


def find_redundant(
    values: Bools, names: Sequence[str], losses: Losses, customer: Index, *, seed: int = 7
) -> tuple[list[BinaryAttribute], dict[str, float]]:
    """Find the redundant ones of many binary attributes.

    Five sets are tried: all attributes, then step by step without rare ones, without duplicates and opposites of
    others, without those implied by others, and with one per cluster. The smallest set is kept whose loss is within one
    standard error of the best set's (``training.selection.one_standard_error``).

    Args:
        values: ``[n, attributes]``.
        names: Of the attributes.
        losses: Returns the losses for a set, given as indexes; it is called at most five times, never with an empty
            set.
        customer: Number of the customer of each row of the losses, from 0.
        seed: Of the sample for the rules.

    Returns:
        All attributes, with those to keep marked, and the mean loss of each set that was tried.
    """
    rules = find_rules(values, seed)
    clusters = _clusters(rules)
    every = list(range(len(names)))
    steps = {ALL: every}
    steps["without rare tags"] = kept = _without_rare(rules)
    steps["without tags that say the same"] = kept = _without(kept, rules, rules.same | rules.opposite)
    steps["without implied tags"] = kept = _without(kept, rules, rules.implies | rules.implies.T)
    steps["one tag per cluster"] = _without(kept, rules, clusters[:, np.newaxis] == clusters)

    tried: dict[str, tuple[list[int], Floats]] = {}
    before = None
    for step, indexes in steps.items():
        if indexes != before:
            tried[step] = indexes, losses(indexes)
        before = indexes
    smallest_first = list(reversed(tried.values()))
    at, _ = simplest([of_set for _, of_set in smallest_first], customer)
    chosen = smallest_first[at][0]
    costs = {step: float(of_set.mean()) for step, (_, of_set) in tried.items()}
    return [_attribute(at, names, rules, clusters, chosen) for at in every], costs


def find_rules(values: Bools, seed: int) -> Rules:
    """Rules between pairs of attributes ``[n, attributes]``, from a sample of the rows."""
    sample = values[random_rows(len(values), MAX_ROWS, seed)]
    n = len(sample)
    ones = sample.astype(np.float32)  # exact: counts stay below 2**24
    both = (ones.T @ ones).astype(np.float64)
    has = np.diag(both).copy()
    lacks = n - has
    only, neither = has[:, np.newaxis] - both, n - has[:, np.newaxis] - has + both
    implies = _holds(has, only, lacks / n)
    excludes = _holds(has, both, has / n)
    complements = _holds(lacks, neither, lacks / n)  # customers without the row's attribute have the column's
    opposite = excludes & excludes.T & complements & complements.T
    together = np.outer(has, lacks)
    spread = np.sqrt(together * together.T)
    phi = (n * both - np.outer(has, has)) / np.where(spread == 0, 1.0, spread)
    confidence = both / np.maximum(has, 1.0)[:, np.newaxis]
    return Rules(has / n, confidence, implies, implies & implies.T, opposite, phi)


def _holds(having: Floats, exceptions: Floats, other: Floats) -> Bools:
    """Which rules ``[attributes, attributes]`` hold: few exceptions, and far fewer than expected by chance.

    Args:
        having: Number of rows that the rule is about ``[attributes]``.
        exceptions: Number of those that contradict it.
        other: Share of all rows that would be exceptions ``[attributes]``.
    """
    expected = np.outer(having, other)
    holds = exceptions <= np.minimum((1 - MIN_CONFIDENCE) * having[:, np.newaxis], MAX_REMAINING_DOUBT * expected)
    holds &= poisson.cdf(exceptions, expected) <= FALSE_RULE_RATE / max(len(having) ** 2, 1)
    np.fill_diagonal(holds, val=False)
    return np.asarray(holds)


def _clusters(rules: Rules) -> npt.NDArray[np.intp]:
    """The cluster of each attribute, from 1, by average linkage on 1 - |phi|."""
    if len(rules.support) == 1:
        return np.ones(1, dtype=np.intp)
    distance = 1 - np.clip(np.abs(rules.correlation), 0, 1)
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance, checks=False), method="average")
    return np.asarray(fcluster(tree, t=1 - CLUSTER_CORRELATION, criterion="distance"), dtype=np.intp)


def _without_rare(rules: Rules) -> list[int]:
    """Attributes that are neither rare nor nearly always present; if there is none, the one closest to one half."""
    even = np.minimum(rules.support, 1 - rules.support)
    return np.flatnonzero(even >= MIN_SUPPORT).tolist() or [int(np.argmax(even))]


def _without(kept: Sequence[int], rules: Rules, redundant: Bools) -> list[int]:
    """Of attributes that make each other redundant, keep the most informative one: the closest to one half."""
    even = np.minimum(rules.support, 1 - rules.support)
    remaining: list[int] = []
    for at in sorted(kept, key=lambda i: (-round(float(even[i]), 2), i)):
        if not any(redundant[at, other] for other in remaining):
            remaining.append(at)
    return sorted(remaining)


def _attribute(
    at: int, names: Sequence[str], rules: Rules, clusters: npt.NDArray[np.intp], chosen: Sequence[int]
) -> BinaryAttribute:
    """An attribute with the attributes, or their absence, that imply it, and the highest confidence of these rules."""
    opposite = rules.opposite[:, at]
    implied_by: list[int] = np.flatnonzero(rules.implies[:, at] | opposite).tolist()
    confidence = [1 - rules.confidence[i, at] if opposite[i] else rules.confidence[i, at] for i in implied_by]
    return BinaryAttribute(
        tag=names[at],
        said_by=[f"not {names[i]}" if opposite[i] else names[i] for i in implied_by],
        support=float(rules.support[at]),
        confidence=float(max(confidence, default=0.0)),
        cluster=int(clusters[at]),
        kept=at in chosen,
    )


def _is_binary(values: npt.NDArray[Any]) -> bool:
    if values.dtype == np.bool_:
        return len(values) > 0
    if not np.issubdtype(values.dtype, np.number):
        return False
    known = values[~np.isnan(values)]
    return len(known) > 0 and bool(np.isin(known, (0, 1)).all())
