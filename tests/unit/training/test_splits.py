"""Temporal and random splits: what is known at which cut-off, and rows of a group stay together."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from feature_store.state.layout import DAY_S
from tests.made_rows import made_config, made_rows
from training.arrays import Index
from training.data.cutoffs import TARGETS, CutoffPlan, lay_out
from training.data.dataset import Rows
from training.data.splits import Split, random_splits, rows_for_medians, temporal_splits

PLAN = lay_out(made_config(), 0.0, 365 * DAY_S)


def timed() -> Rows:
    """Four customers at each cut-off; a label is known where its horizon ends with the data."""
    cutoff = np.repeat(PLAN.every, 4)
    label = np.tile([0.0, 1.0, 0.0, 1.0], len(PLAN.every))
    month, week = (np.where(cutoff + days * DAY_S <= 365 * DAY_S, label, np.nan) for days in (28, 7))
    labels = {"churn": month, "stay_spend": month, "spend": month, "propensity": week, "purchase_amount": week}
    return made_rows(np.zeros((len(cutoff), 1)), cutoff=cutoff, **labels)


def cutoffs_of(rows: Rows, index: Index) -> list[float]:
    return sorted(set(rows.cutoff[index].tolist()))


@pytest.mark.parametrize("target", TARGETS)
def test_temporal_splits_follow_the_cutoffs_of_the_plan(target: str) -> None:
    rows, plan = timed(), PLAN.of(target)
    result = temporal_splits(rows, PLAN, folds=3)[target]
    assert cutoffs_of(rows, result.evaluation.fit) == plan.fit
    assert cutoffs_of(rows, result.evaluation.calibration) == plan.calibration
    assert cutoffs_of(rows, result.evaluation.everything) == plan.training
    assert cutoffs_of(rows, result.test) == plan.test
    assert len(result.test) == 4 * len(plan.test)
    folds = [(cutoffs_of(rows, earlier), cutoffs_of(rows, later)) for earlier, later in result.folds]
    assert folds == plan.folds(3)
    final = plan.final()
    assert cutoffs_of(rows, result.final.everything) == [*plan.training, *plan.test]
    assert cutoffs_of(rows, result.final.calibration) == final.calibration


def test_rows_with_unknown_labels_are_in_no_split() -> None:
    rows = timed()
    rows = Rows(**vars(rows) | {"churn": np.where(np.arange(len(rows)) % 3 == 0, np.nan, rows.churn)})
    result = temporal_splits(rows, CutoffPlan(PLAN.churn, PLAN.propensity, PLAN.spend), folds=3)
    used = np.concatenate([result["churn"].final.everything, *(np.concatenate(pair) for pair in result["churn"].folds)])
    assert np.isfinite(rows.churn[used]).all()
    assert len(result["churn"].test) < len(result["spend"].test)


def parted(split: Split) -> list[Index]:
    return [split.fit, split.calibration]


def test_random_splits_use_every_row_once_and_a_fifth_for_the_test() -> None:
    rows = made_rows(np.zeros((1000, 1)), churn=np.zeros(1000))
    split = random_splits(rows, ["churn"], folds=4, seed=7)["churn"]
    both = np.concatenate([split.evaluation.everything, split.test])
    assert sorted(both.tolist()) == list(range(1000))
    assert len(split.test) == 200
    assert sorted(np.concatenate(parted(split.evaluation)).tolist()) == split.evaluation.everything.tolist()
    assert sorted(np.concatenate(parted(split.final)).tolist()) == list(range(1000))
    # Each row outside the test is judged in one fold.
    judged = np.concatenate([later for _, later in split.folds])
    assert sorted(judged.tolist()) == split.evaluation.everything.tolist()
    assert len(split.folds) == 4


def test_random_splits_keep_the_rows_of_a_group_together() -> None:
    random = np.random.default_rng(0)
    rows = made_rows(np.zeros((600, 1)), churn=np.zeros(600), group=random.integers(0, 150, 600))
    split = random_splits(rows, ["churn"], folds=3, seed=7)["churn"]
    apart = [[split.evaluation.everything, split.test], parted(split.evaluation), parted(split.final)]
    for parts in [*apart, *split.folds]:
        for item, other in combinations(parts, 2):
            assert len(item)
            assert len(other)
            assert not set(rows.group[item]) & set(rows.group[other])


def test_random_splits_depend_on_the_seed_only() -> None:
    rows = made_rows(np.zeros((500, 1)), churn=np.zeros(500))
    first, again, other = (random_splits(rows, ["churn"], 3, seed)["churn"].test.tolist() for seed in (7, 7, 8))
    assert first == again != other


@pytest.mark.parametrize("group_size", [1, 3])
def test_random_splits_have_the_same_share_of_outcomes_in_every_part(group_size: int) -> None:
    n = 1200
    random = np.random.default_rng(1)
    churn = (random.random(n) < 0.05).astype(np.float64)
    rows = made_rows(np.zeros((n, 1)), churn=churn, group=np.arange(n) // group_size)
    split = random_splits(rows, ["churn"], folds=4, seed=7)["churn"]
    parts = [split.test, *parted(split.evaluation), *parted(split.final), *(later for _, later in split.folds)]
    for index in parts:
        assert churn[index].sum() == pytest.approx(churn.mean() * len(index), abs=2)


def test_an_outcome_that_is_rarer_than_the_parts_is_divided_at_random() -> None:
    rows = made_rows(np.zeros((100, 1)), churn=(np.arange(100) == 3).astype(np.float64))
    split = random_splits(rows, ["churn"], folds=4, seed=7)["churn"]
    assert len(split.test) == 20


def test_medians_are_learnt_from_rows_that_no_target_tests_on() -> None:
    cutoff = np.repeat([1.0, 2.0, 3.0, 4.0], 5)
    rows = made_rows(np.zeros((20, 1)), cutoff=cutoff)
    early, late = np.flatnonzero(cutoff <= 2), np.flatnonzero(cutoff <= 3)
    nothing = early[:0]
    parts = [Split(early, nothing, early), Split(late, nothing, late)]
    assert rows_for_medians(rows, parts).tolist() == early.tolist()
    assert rows_for_medians(rows, parts[1:]).tolist() == late.tolist()


def test_random_splits_are_the_same_for_all_targets_where_these_are_known() -> None:
    left = np.arange(1000) % 3 == 0
    rows = made_rows(np.zeros((1000, 1)), churn=left.astype(np.float64), stay_spend=np.where(left, np.nan, 20.0))
    result = random_splits(rows, ["churn", "stay_spend"], folds=4, seed=7)
    whole, stayed = result["churn"], result["stay_spend"]
    assert stayed.test.tolist() == [row for row in whole.test.tolist() if not left[row]]
    assert stayed.final.fit.tolist() == [row for row in whole.final.fit.tolist() if not left[row]]
    assert [later.tolist() for _, later in stayed.folds] == [
        [row for row in later.tolist() if not left[row]] for _, later in whole.folds
    ]
