"""Ranking slots by backward elimination in a linear model, in closed form.

The order of elimination is that of stepwise regression (Efroymson, 1960): the slot is removed whose removal costs the
least explained variance, given all slots that are still there. Half-lives of one event are nearly collinear: as long as
others of the group are there, the removal of one costs next to nothing, and the last of a group costs what the group is
worth. Permutation importance does not see that: it shuffles one slot at a time and finds each of them dispensable.

The regressors are the features and their squares. Trees are fitted only to judge the subsets, not to find them, so the
ranking can be repeated for every fold, and on resamples.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from feature_store.bundles.bundle import OFFERS
from feature_store.definitions import Feature
from feature_store.state.layout import Floats
from training.arrays import Features, Index
from training.graph.features import FeatureSpec
from training.statistics import random_rows

RIDGE: Final = 1e-3
"""Added to the correlations of the regressors with themselves, because some are exactly collinear."""

MAX_PRODUCTS: Final = 1e9
"""Rows are sampled if the correlations would take more multiplications than this, which is about a second."""

MIN_ROWS: Final = 2_000
"""Minimum number of sampled rows."""

MIN_EXPLAINED: Final = 1e-12

PAIRS: Final = 10
"""Pairs of complementary half-samples of the customers for the stability of the selection."""

MAX_HALVES_BYTES: Final = 2**28
"""There are fewer pairs if the correlations of all halves would take more memory than this."""


@dataclass(frozen=True)
class Correlations:
    """Of the regressors with each other ``[q, q]``, with RIDGE on the diagonal, and with the outcome ``[q]``."""

    regressors: Floats
    outcome: Floats


def slots_of_columns(spec: FeatureSpec) -> list[frozenset[int]]:
    """The slots that each feature, in order of ``spec.names``, is made of."""
    place = {feature.name: slot for slot, feature in enumerate(spec.layout.features)}
    single = [*spec.numbers, *spec.attributes, *(slot for slot, _ in spec.codes)]
    of_two = [frozenset([place[line.latest], place[line.rate]]) for line in spec.overdue]
    overdue = [frozenset([slot, place[spec.rates.latest]]) for slot in spec.counts] if spec.rates else []
    chances = [frozenset([slot]) for slot in spec.counts]
    return [*(frozenset([slot]) for slot in single), *of_two, *overdue, *chances]


def group_of(feature: Feature) -> str:
    """The group of a slot: decayed sums of the same event and field with different half-lives are one group."""
    if not feature.decayed:
        return feature.name
    return " ".join(filter(None, [feature.event, feature.field, feature.aggregate]))


def correlations(target: str, features: Features, labels: Floats, seed: int) -> Correlations:
    """Correlations of the regressors with each other and with the outcome.

    Args:
        target: The outcome is the label of an offer, or the logarithm of spend.
        features: ``[n, names]``.
        labels: ``[n]``.
        seed: Of the sample of rows, if there are too many.
    """
    rows = random_rows(len(labels), _max_rows(features.shape[1]), seed)
    joined = _standardised(target, features[rows], labels[rows])
    return _correlations(joined.T @ joined, joined.sum(axis=0), len(joined))


def half_sample_correlations(
    target: str, features: Features, labels: Floats, customer: Index, customers: int, seed: int
) -> list[Correlations]:
    """The same for up to PAIRS random halves of the customers, each followed by the other half.

    Args:
        target: As above.
        features: ``[n, names]``.
        labels: ``[n]``.
        customer: Number of the customer of each row ``[n]``.
        customers: Number of customers; the same number and seed give the same halves for every target.
        seed: Of the halves.
    """
    rows = random_rows(len(labels), _max_rows(features.shape[1]), seed)
    joined, customer = _standardised(target, features[rows], labels[rows]), customer[rows]
    total, sums = joined.T @ joined, joined.sum(axis=0)
    random, halves = np.random.default_rng(seed), []
    for _ in range(max(1, min(PAIRS, MAX_HALVES_BYTES // (2 * total.nbytes)))):
        inside = joined[random.random(customers)[customer] < 0.5]  # noqa: PLR2004 - a half
        products, inside_sums = inside.T @ inside, inside.sum(axis=0)
        halves.append(_correlations(products, inside_sums, len(inside)))
        halves.append(_correlations(total - products, sums - inside_sums, len(joined) - len(inside)))
    return halves


def rank_slots(
    by_target: Sequence[Correlations], owners: Sequence[frozenset[int]], slots: int, keep: Collection[int] = ()
) -> list[int]:
    """Eliminate slots one by one, each time the one whose removal costs the smallest share of explained variance.

    Args:
        by_target: Correlations of each target; the shares are added up.
        owners: The slots that each feature is made of; a feature goes with the first of them.
        slots: Number of slots.
        keep: Slots that are not eliminated.

    Returns:
        All slots, the most important first: those that are kept, then the others against the order of elimination.
    """
    owned = np.array([[slot in owner for owner in owners] * 2 for slot in range(slots)]).reshape(slots, -1)
    inverses: list[Floats] = [np.linalg.inv(target.regressors).astype(np.float64) for target in by_target]
    outcomes = [target.outcome for target in by_target]
    remaining = [slot for slot in range(slots) if slot not in keep]
    eliminated: list[int] = []
    while remaining:
        of_slot = [np.flatnonzero(owned[slot]) for slot in remaining]
        pairs = zip(inverses, outcomes, strict=True)
        costs = np.sum([_costs(inverse, outcome, of_slot) for inverse, outcome in pairs], axis=0)
        at = int(np.argmin(costs))
        eliminated.append(remaining.pop(at))
        left = np.setdiff1d(np.arange(owned.shape[1]), of_slot[at])
        inverses = [_without(inverse, left, of_slot[at]) for inverse in inverses]
        outcomes = [outcome[left] for outcome in outcomes]
        owned = owned[:, left]
    return [*sorted(keep), *reversed(eliminated)]


def _costs(inverse: Floats, outcome: Floats, blocks: Sequence[Index]) -> Floats:
    """Share of the explained variance that is lost without each block of regressors."""
    weights = inverse @ outcome
    explained = max(float(outcome @ weights), MIN_EXPLAINED)
    sizes = np.array([len(block) for block in blocks])
    costs = np.zeros(len(blocks))
    for size in np.unique(sizes[sizes > 0]):
        at = np.flatnonzero(sizes == size)
        index = np.stack([blocks[i] for i in at.tolist()])
        part = weights[index]
        solved = np.linalg.solve(inverse[index[:, :, np.newaxis], index[:, np.newaxis, :]], part[..., np.newaxis])
        costs[at] = (part * solved[..., 0]).sum(axis=1) / explained
    return costs


def _max_rows(columns: int) -> int:
    return max(MIN_ROWS, int(MAX_PRODUCTS / (2 * columns + 1) ** 2))


def _standardised(target: str, features: Features, labels: Floats) -> Floats:
    """Regressors and outcome ``[n, q + 1]``, each with mean 0 and variance 1, or 0 if it is constant."""
    outcome = labels if target in OFFERS else np.log1p(labels)
    scaled = _scaled(features.astype(np.float64))
    return np.column_stack([scaled, _scaled(scaled**2), _scaled(outcome[:, np.newaxis])])


def _scaled(columns: Floats) -> Floats:
    spread = columns.std(axis=0)
    return np.asarray((columns - columns.mean(axis=0)) / np.where(spread > 0, spread, 1.0))


def _correlations(products: Floats, sums: Floats, rows: int) -> Correlations:
    """From the sums of products ``[q + 1, q + 1]`` and of values ``[q + 1]``; the outcome is the last column."""
    covariance = products / max(rows, 1) - np.outer(sums, sums) / max(rows, 1) ** 2
    spread = np.sqrt(np.maximum(np.diag(covariance), 0))
    spread = np.where(spread > 0, spread, 1.0)
    matrix = covariance / np.outer(spread, spread)
    return Correlations(matrix[:-1, :-1] + RIDGE * np.eye(len(matrix) - 1), matrix[:-1, -1])


def _without(inverse: Floats, left: Index, removed: Index) -> Floats:
    """The inverse of the matrix without some rows and columns, from its inverse."""
    across = inverse[np.ix_(left, removed)]
    return np.asarray(
        inverse[np.ix_(left, left)] - across @ np.linalg.solve(inverse[np.ix_(removed, removed)], across.T)
    )
