"""Backward elimination and model selection, on simulated customers."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scipy.special import expit

from feature_store.definitions import Feature
from feature_store.state.layout import Floats, StateLayout
from tests.made_rows import attributes, made_rows
from training.data.dataset import Rows
from training.data.splits import Splits, random_splits
from training.graph.features import FeatureSpec, filled_matrix
from training.selection import backward_elimination
from training.selection.backward_elimination import eliminate_backward, qualifies, subset_sizes
from training.selection.fold_losses import shuffled
from training.selection.model_selection import ChosenLearners, choose_learners, learners_of

USEFUL, USELESS = tuple(f"tells_{i}" for i in range(4)), tuple(f"noise_{i}" for i in range(8))
LAYOUT = attributes([*USELESS[:4], *USEFUL, *USELESS[4:]])


def planted(rows: int = 4000, seed: int = 0) -> tuple[Rows, FeatureSpec, dict[str, Splits]]:
    """Who leaves is told by four of twelve slots."""
    random = np.random.default_rng(seed)
    state = random.gamma(2.0, 2.0, (rows, 12))
    reported = np.log1p(state) - np.log1p(state).mean(axis=0)
    churn = (random.random(rows) < expit(3 * reported[:, 4:8].sum(axis=1))).astype(np.float64)
    made = made_rows(state, churn=churn)
    return made, FeatureSpec(LAYOUT), random_splits(made, ["churn"], folds=2, seed=7)


def test_subset_sizes_go_down_from_all_slots() -> None:
    assert subset_sizes(10, max_slots=300) == [10, 8, 6, 4, 2]
    assert subset_sizes(2, max_slots=24) == [2]
    assert subset_sizes(1, max_slots=24) == [1]
    assert subset_sizes(300, max_slots=300)[:3] == [300, 256, 128]


def test_of_sizes_above_the_limit_only_all_slots_and_the_next_one_are_tried() -> None:
    assert subset_sizes(300, max_slots=24)[:4] == [300, 36, 24, 20]
    assert subset_sizes(58, max_slots=20)[:4] == [58, 24, 20, 16]
    assert subset_sizes(30, max_slots=24)[:3] == [30, 24, 20]


def test_the_smallest_equally_good_subset_has_the_informative_slots() -> None:
    steps: list[None] = []
    rows, spec, splits = planted()
    made = eliminate_backward(rows, spec, splits, seed=7, max_slots=12, done=lambda: steps.append(None))
    subsets = made.subsets
    assert [len(subset.slots) for subset in subsets] == [12, 8, 6, 4, 2]
    assert len(steps) == 5
    (chosen,) = (subset for subset in subsets if subset.chosen)
    assert chosen.slots == list(USEFUL)
    assert chosen.behind["churn"] <= chosen.error["churn"]
    # Each subset's slots are some of those of the larger one, in the order of the layout.
    names = [feature.name for feature in LAYOUT.features]
    for above, below in pairwise(subsets):
        assert set(below.slots) < set(above.slots)
        assert below.slots == sorted(below.slots, key=names.index)
    assert [subset.state_bytes for subset in subsets] == sorted(
        {subset.state_bytes for subset in subsets}, reverse=True
    )


def test_a_needed_slot_is_not_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backward_elimination, "SHRINK", (4, 3))
    rows, spec, splits = planted()
    subsets = eliminate_backward(rows, spec, splits, seed=7, max_slots=12).subsets
    assert set(subsets[-1].slots) < set(USEFUL)
    assert subsets[-1].behind["churn"] > subsets[-1].error["churn"]
    assert [subset.slots for subset in subsets if subset.chosen] == [list(USEFUL)]


def test_no_more_slots_are_kept_than_allowed_even_where_that_costs() -> None:
    rows, spec, splits = planted()
    subsets = eliminate_backward(rows, spec, splits, seed=7, max_slots=3).subsets
    (chosen,) = (subset for subset in subsets if subset.chosen)
    assert not qualifies(chosen)
    assert len(chosen.slots) == 2
    assert set(chosen.slots) < set(USEFUL)
    assert chosen.behind["churn"] > chosen.error["churn"]


def test_the_rows_that_judge_a_subset_have_no_part_in_its_ranking() -> None:
    rows, spec, splits = planted()
    earlier, later = splits["churn"].folds[0]
    one_fold = {"churn": replace(splits["churn"], folds=[(earlier, later)])}
    honest = eliminate_backward(rows, spec, one_fold, seed=7, max_slots=12).subsets
    # In the rows that judge, noise decides. A ranking that saw them would take the noise, and lose less.
    state = rows.state.copy()
    churn = rows.churn.copy()
    churn[later] = state[later, 0] > np.median(state[later, 0])
    other = eliminate_backward(replace(rows, churn=churn), spec, one_fold, seed=7, max_slots=12).subsets
    assert other[-2].loss["churn"] > 1.5 * honest[-2].loss["churn"]
    assert other[-2].loss["churn"] > math.log(2)


def test_stability_says_how_often_slots_and_their_groups_are_chosen() -> None:
    """Two half-lives of one event are interchangeable: each is chosen about as often, one of them always."""
    random = np.random.default_rng(3)
    count = random.gamma(2.0, 2.0, 3000)
    states = [count * random.lognormal(0, 0.01, 3000), count * random.lognormal(0, 0.01, 3000)]
    noise = [random.gamma(2.0, 2.0, 3000) for _ in range(4)]
    state = np.column_stack([*noise[:2], *states, *noise[2:]])
    features = [
        Feature(name=f"{event}_{days}", aggregate="count", event=event, half_life_days=days)
        for event, days in (("a", 7), ("b", 7), ("buy", 27), ("buy", 28), ("c", 7), ("d", 7))
    ]
    spec = FeatureSpec(StateLayout(features))
    churn = (random.random(3000) < expit(4 * (np.log1p(count) - np.log1p(count).mean()))).astype(np.float64)
    rows = made_rows(state, churn=churn)
    made = eliminate_backward(rows, spec, random_splits(rows, ["churn"], folds=2, seed=7), seed=7, max_slots=2)
    lines = {line.slot: line for line in made.stability}
    (chosen,) = (subset for subset in made.subsets if subset.chosen)
    assert {line.slot for line in made.stability if line.chosen} == set(chosen.slots)
    assert lines["buy_27"].group == lines["buy_28"].group == "buy count"
    assert lines["buy_27"].group_frequency == lines["buy_28"].group_frequency == 1
    assert 0.05 < lines["buy_27"].frequency < 0.95
    assert made.stability[0].group == "buy count"


def choice(rows: Rows, spec: FeatureSpec, splits: dict[str, Splits]) -> ChosenLearners:
    return choose_learners(filled_matrix(spec, rows.state)(rows.state), rows, splits, 7)


def test_logistic_regression_is_chosen_for_linear_effects() -> None:
    rows, spec, splits = planted()
    result = choice(rows, spec, splits)
    assert result.learners["churn"].name == "logistic regression"
    assert [trial.model for trial in result.trials] == [learner.name for learner in learners_of("churn")]
    assert [trial.model for trial in result.trials if trial.chosen] == ["logistic regression"]
    assert min(trial.behind for trial in result.trials) == 0.0


def test_trees_are_chosen_for_nonlinear_effects() -> None:
    rows, spec, splits = planted()
    middle: Floats = np.log1p(rows.state[:, 4])
    churn = (np.abs(middle - np.median(middle)) < 0.3).astype(np.float64)
    result = choice(Rows(**vars(rows) | {"churn": churn}), spec, splits)
    assert "boosted trees" in result.learners["churn"].name
    line = result.trials[0]
    assert line.behind > line.error
    chosen = next(at for at, trial in enumerate(result.trials) if trial.chosen)
    # None that is simpler is within one standard error of the best.
    assert all(trial.behind > trial.error for trial in result.trials[:chosen])
    assert result.trials[chosen].behind <= result.trials[chosen].error


def test_features_of_rates_are_used_where_they_help() -> None:
    rows, spec, splits = planted(2000)
    features = filled_matrix(spec, rows.state)(rows.state)[:, [0, 1, 2, 4, 5, 6, 7]]
    helped = choose_learners(features, rows, splits, 7, without_rates=3)
    assert helped.learners["churn"].sees_rates
    assert helped.learners["churn"].without_rates == 3
    useless = choose_learners(features[:, ::-1].copy(), rows, splits, 7, without_rates=4)
    assert useless.learners["churn"].name == "logistic regression"


def test_a_shuffled_slot_has_the_same_values_in_another_order() -> None:
    state = np.arange(300.0).reshape(100, 3)
    result = shuffled(state, 1, seed=7)
    assert sorted(result[:, 1].tolist()) == state[:, 1].tolist()
    assert (result[:, 1] != state[:, 1]).mean() > 0.9
    np.testing.assert_array_equal(result[:, [0, 2]], state[:, [0, 2]])
    assert state[1, 1] == 4.0
