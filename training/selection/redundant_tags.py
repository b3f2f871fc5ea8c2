"""Tag tables (many 0/1 attributes): which tags say the same, and which of them the models can do without.

A rule is "who has this tag (not) has that one": rules of two tags are one product of the table with itself, where a
search for item sets, which has to find sets of any size, takes minutes on a table as dense as tags are. Clusters are of
tags that go along or exclude each other.
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
from training.arrays import Bools
from training.evidence import Tag
from training.statistics import random_rows

Loss = Callable[[list[int]], float]

LEAST_TAGS: Final = 5
ROWS: Final = 20_000
RARE: Final = 0.005
CONFIDENCE: Final = 0.95
DOUBT: Final = 0.1
"""Of the doubt about a tag, as much at most may be left by a rule: a tag that nearly all have is implied by any."""
CHANCE: Final = 0.001
"""Probability with which chance alone may find any rule at all in independent tags."""
ALIKE: Final = 0.5
"""Correlation, either way, from which tags are of one cluster."""


@dataclass(frozen=True)
class Rules:
    """Support [tags]; by pair [tags, tags] the confidence that who has the row's tag has the column's, and rules.

    says: who has the row's tag has the column's; same: and the other way round; opposite: who has the one has not the
    other, and who has not has. correlation: phi.
    """

    support: Floats
    confidence: Floats
    says: Bools
    same: Bools
    opposite: Bools
    correlation: Floats


def tag_columns(columns: Mapping[str, npt.NDArray[Any]]) -> list[str]:
    """Names of the columns [n] that hold nothing but 0 and 1 (or booleans), apart from missing values."""
    return [name for name, values in columns.items() if _is_tag(values)]


def is_tag_table(columns: Mapping[str, npt.NDArray[Any]]) -> bool:
    """Whether there are enough tags among the columns to look for those that say the same."""
    return len(tag_columns(columns)) >= LEAST_TAGS


def propose_tags(
    tags: Bools, names: Sequence[str], loss: Loss, *, allowed: float = 0.0, seed: int = 7
) -> tuple[list[Tag], dict[str, float]]:
    """The tags ``[n, tags]``, which of them to keep, and the loss of each set that was tried.

    ``loss`` is called at most five times with the indexes of a set, never an empty one: all tags, then step by step
    without rare ones, those that another one says (or its opposite), those implied one way, and all but one of each
    cluster. The smallest set whose loss is at most ``allowed`` above that of all tags is kept.
    """
    rules = find_rules(tags, seed)
    clusters = _clusters(rules)
    every = list(range(len(names)))
    steps = {"all tags": every}
    steps["without rare tags"] = kept = _without_rare(rules)
    steps["without tags that say the same"] = kept = _without(kept, rules, rules.same | rules.opposite)
    steps["without implied tags"] = kept = _without(kept, rules, rules.says | rules.says.T)
    steps["one tag per cluster"] = _without(kept, rules, clusters[:, np.newaxis] == clusters)

    costs: dict[str, float] = {}
    chosen, before = every, None
    for step, indexes in steps.items():
        if indexes == before:
            continue
        costs[step] = loss(indexes)
        if costs[step] <= costs["all tags"] + allowed:
            chosen = indexes
        before = indexes
    return [_tag(at, names, rules, clusters, chosen) for at in every], costs


def find_rules(tags: Bools, seed: int) -> Rules:
    """Rules between pairs of tags ``[n, tags]``, from a sample of the rows."""
    sample = tags[random_rows(len(tags), ROWS, seed)]
    n = len(sample)
    ones = sample.astype(np.float32)  # exact: counts stay below 2**24
    both = (ones.T @ ones).astype(np.float64)
    has = np.diag(both).copy()
    hasnt = n - has
    only, neither = has[:, np.newaxis] - both, n - has[:, np.newaxis] - has + both
    says = _counts(has, only, hasnt / n)
    denies = _counts(has, both, has / n)
    follows = _counts(hasnt, neither, hasnt / n)  # who has not the row's tag has the column's
    opposite = denies & denies.T & follows & follows.T
    together = np.outer(has, hasnt)
    spread = np.sqrt(together * together.T)
    phi = (n * both - np.outer(has, has)) / np.where(spread == 0, 1.0, spread)
    confidence = both / np.maximum(has, 1.0)[:, np.newaxis]
    return Rules(has / n, confidence, says, says & says.T, opposite, phi)


def _counts(having: Floats, exceptions: Floats, other: Floats) -> Bools:
    """Which rules [tags, tags] count: nearly without exceptions, and with far fewer than chance would have.

    having [tags]: rows that the rule is about; exceptions: those of them against it; other [tags]: the share of all
    rows that are as an exception would be.
    """
    expected = np.outer(having, other)
    found = exceptions <= np.minimum((1 - CONFIDENCE) * having[:, np.newaxis], DOUBT * expected)
    found &= poisson.cdf(exceptions, expected) <= CHANCE / max(len(having) ** 2, 1)
    np.fill_diagonal(found, val=False)
    return np.asarray(found)


def _clusters(rules: Rules) -> npt.NDArray[np.intp]:
    """The cluster of each tag, from 1."""
    if len(rules.support) == 1:
        return np.ones(1, dtype=np.intp)
    distance = 1 - np.clip(np.abs(rules.correlation), 0, 1)
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance, checks=False), method="average")
    return np.asarray(fcluster(tree, t=1 - ALIKE, criterion="distance"), dtype=np.intp)


def _without_rare(rules: Rules) -> list[int]:
    """Tags that are neither rare nor, the other way round, nearly always there; the most even one where all are."""
    even = np.minimum(rules.support, 1 - rules.support)
    return np.flatnonzero(even >= RARE).tolist() or [int(np.argmax(even))]


def _without(kept: Sequence[int], rules: Rules, redundant: Bools) -> list[int]:
    """Of tags that make each other redundant, those that tell most: the nearer to one half, the more."""
    even = np.minimum(rules.support, 1 - rules.support)
    left: list[int] = []
    for at in sorted(kept, key=lambda i: (-round(float(even[i]), 2), i)):
        if not any(redundant[at, other] for other in left):
            left.append(at)
    return sorted(left)


def _tag(at: int, names: Sequence[str], rules: Rules, clusters: npt.NDArray[np.intp], chosen: Sequence[int]) -> Tag:
    """``said_by``: the tags that say it, and those whose absence does; ``confidence``: of the surest of these rules."""
    mirrors = rules.opposite[:, at]
    sayers: list[int] = np.flatnonzero(rules.says[:, at] | mirrors).tolist()
    sure = [1 - rules.confidence[i, at] if mirrors[i] else rules.confidence[i, at] for i in sayers]
    return Tag(
        tag=names[at],
        said_by=[f"not {names[i]}" if mirrors[i] else names[i] for i in sayers],
        support=float(rules.support[at]),
        confidence=float(max(sure, default=0.0)),
        cluster=int(clusters[at]),
        kept=at in chosen,
    )


def _is_tag(values: npt.NDArray[Any]) -> bool:
    if values.dtype == np.bool_:
        return len(values) > 0
    if not np.issubdtype(values.dtype, np.number):
        return False
    known = values[~np.isnan(values)]
    return len(known) > 0 and bool(np.isin(known, (0, 1)).all())
