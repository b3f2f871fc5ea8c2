"""Cut-offs: later than all training the test, one horizon before the end the last of it, and no outcome seen twice."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store.errors import InputError
from feature_store.state.layout import DAY_S
from training.config import TrainingConfig
from training.data.cutoffs import CutoffPlan, Cutoffs, lay_out, max_value_horizon_days

OFFER = {"contact_cost": 0.1, "offer_cost": 1, "success_rate": 0.1, "redemption_rate": 0.1, "budget_share": 0.1}


def config(horizon: float = 28, spend_horizon: float = 28, propensity: float = 7, **evaluation: Any) -> TrainingConfig:
    return TrainingConfig.model_validate(
        {
            "source": {"events": ""},
            "feature": [{"name": "n", "aggregate": "count", "event": "purchase", "half_life_days": 7}],
            "churn": {"horizon_days": horizon},
            "propensity": {"horizon_days": propensity},
            "economics": {"margin": 0.3, "horizon_days": spend_horizon, "churn": OFFER, "propensity": OFFER},
            "evaluation": evaluation,
        }
    )


def days(cutoffs: list[float]) -> list[float]:
    return [cutoff / DAY_S for cutoff in cutoffs]


def test_the_cutoffs_of_a_year_are_as_documented() -> None:
    result = lay_out(config(), 0.0, 365 * DAY_S).churn
    assert days(result.test) == [309, 323, 337]
    assert days(result.calibration) == [267, 281]
    assert days(result.gap) == [253]
    assert days(result.fit) == [239 - 14 * i for i in range(12, -1, -1)]
    assert len(result.training) + len(result.test) >= 12


def test_propensity_has_later_tests_and_training_on_the_same_grid() -> None:
    plan = lay_out(config(), 0.0, 365 * DAY_S)
    result = plan.propensity
    assert days(result.test) == [330, 344, 358]
    assert days(result.calibration) == [309, 323]
    assert result.gap == []
    assert days(result.fit) == [295 - 14 * i for i in range(16, -1, -1)]
    assert result.training[: len(plan.churn.training)] == plan.churn.training
    assert plan.of("propensity") == result
    assert plan.of("churn") == plan.of("spend") == plan.churn
    assert plan.newest_known == plan.churn.training[-1]


def test_a_plan_describes_all_blocks_and_lists_each_cutoff_once() -> None:
    plan = lay_out(config(), 0.0, 365 * DAY_S)
    described = plan.described()
    assert described["calibration"] == plan.churn.calibration
    assert described["propensity_test"] == plan.propensity.test
    assert plan.every == sorted({cutoff for block in described.values() for cutoff in block})


def test_folds_expand_are_purged_of_a_horizon_and_share_the_later_half() -> None:
    cutoffs = lay_out(config(), 0.0, 365 * DAY_S).churn
    result = [(days(earlier), days(later)) for earlier, later in cutoffs.folds(3)]
    # 16 cut-offs from 71 to 281: blocks of at most three from 183 on, each learnt from up to 28 days before.
    assert result == [
        ([71 + 14 * i for i in range(7)], [183, 197]),
        ([71 + 14 * i for i in range(9)], [211, 225, 239]),
        ([71 + 14 * i for i in range(12)], [253, 267, 281]),
    ]


def test_without_room_for_folds_the_calibration_block_is_the_only_fold() -> None:
    cutoffs = Cutoffs(100.0, [0.0], [50.0], [100.0], [300.0])
    assert cutoffs.folds(2) == [([0.0], [100.0])]
    # A block with nothing a horizon before it is left out, and there is no other here.
    assert Cutoffs(100.0, [0.0], [], [90.0], [300.0]).folds(2) == [([0.0], [90.0])]


def test_the_served_models_learn_from_the_test_cut_offs_as_well() -> None:
    cutoffs = lay_out(config(), 0.0, 365 * DAY_S).churn
    final = cutoffs.final()
    assert final.training == [*cutoffs.training, *cutoffs.test]
    assert final.test == []
    assert days(final.calibration) == [323, 337]
    assert days(final.fit) == [71 + 14 * i for i in range(16)]
    assert days(final.gap) == [309]


plans = st.fixed_dictionaries(
    {
        "horizon": st.floats(7, 60),
        "spend_horizon": st.floats(1, 60),
        "step_days": st.floats(1, 40),
        "warm_up_days": st.floats(1, 90),
        "test_cutoffs": st.integers(1, 5),
        "calibration_cutoffs": st.integers(1, 5),
    }
)
ends = st.floats(30, 1500)


def laid_out(plan: dict[str, Any], end: float) -> tuple[TrainingConfig, CutoffPlan] | None:
    """None where the history is too short, which another test is about."""
    settings = config(**plan)
    try:
        return settings, lay_out(settings, 0.0, end * DAY_S)
    except InputError:
        return None


@given(plans, ends, st.sampled_from(["churn", "propensity", "stay_spend"]))
def test_the_guarantees_of_cutoffs_hold_for_any_plan(plan: dict[str, Any], end: float, target: str) -> None:
    if (result := laid_out(plan, end)) is None:
        return
    settings, laid = result
    cutoffs = laid.of(target)
    churn, spend = settings.churn.horizon_days, settings.economics.horizon_days
    horizon = {"churn": churn, "propensity": settings.propensity.horizon_days, "stay_spend": max(churn, spend)}[
        target
    ] * DAY_S
    assert cutoffs.horizon_s == horizon
    # The last test cut-off lies one horizon before the end, the others 14 days apart.
    assert cutoffs.test[-1] == pytest.approx(end * DAY_S - horizon)
    assert [b - a for a, b in pairwise(cutoffs.test)] == pytest.approx([14 * DAY_S] * (len(cutoffs.test) - 1))
    assert len(cutoffs.test) == settings.evaluation.test_cutoffs
    # No label of training reaches the first test cut-off.
    assert max(cutoffs.training) + horizon <= cutoffs.test[0] + 1e-3
    # The calibrator sees no outcome that its model was fitted on.
    assert cutoffs.fit
    assert max(cutoffs.fit) + horizon <= min(cutoffs.calibration) + 1e-3
    assert len(cutoffs.calibration) == settings.evaluation.calibration_cutoffs
    # Every cut-off has a history of at least the warm-up, in steps as planned, ascending.
    assert min(cutoffs.training) >= settings.evaluation.warm_up_days * DAY_S - 1e-3
    step = settings.evaluation.step_days * DAY_S
    assert [b - a for a, b in pairwise(cutoffs.training)] == pytest.approx([step] * (len(cutoffs.training) - 1))
    if target != "stay_spend":  # a longer horizon than that of churn leaves fewer
        assert len(cutoffs.training) + len(cutoffs.test) >= settings.evaluation.least_cutoffs
    # Both kinds of training cut-offs stand on one grid.
    assert all(
        (cutoff - laid.churn.training[-1]) / step
        == pytest.approx(round((cutoff - laid.churn.training[-1]) / step), abs=1e-6)
        for cutoff in cutoffs.training
    )


@given(plans, ends, st.integers(2, 6), st.sampled_from(["churn", "propensity", "stay_spend"]))
def test_no_label_of_a_fold_reaches_its_validation_block(
    plan: dict[str, Any], end: float, most: int, target: str
) -> None:
    if (result := laid_out(plan, end)) is None:
        return
    cutoffs = result[1].of(target)
    folds = cutoffs.folds(most)
    assert 1 <= len(folds) <= most
    assert folds[-1][1][-1] == cutoffs.training[-1]
    for earlier, later in folds:
        assert earlier
        assert max(earlier) + cutoffs.horizon_s <= min(later) + 1e-3
        assert set(earlier) | set(later) <= set(cutoffs.training)
    for (before, judged), (after, judged_later) in pairwise(folds):
        assert set(before) <= set(after)
        assert max(judged) < min(judged_later)


@given(ends)
def test_too_little_time_is_refused_and_enough_is_not(end: float) -> None:
    # Worked out by hand for the plan of the contract: 9 steps of training, three test cut-offs, warm-up and horizons.
    needed = 60 + 8 * 14 + 28 + 28 + 28
    assert (laid_out({}, end) is None) == (end < needed)


def test_a_short_history_is_refused_with_numbers_and_the_fix() -> None:
    with pytest.raises(InputError, match=r"the source's 200 days give 8 cut-offs, 12 are needed: bring a longer h"):
        lay_out(config(), 0.0, 200 * DAY_S)


def test_a_plan_without_fit_cutoffs_is_refused() -> None:
    with pytest.raises(InputError) as refused:
        lay_out(config(calibration_cutoffs=50), 0.0, 365 * DAY_S)
    assert "19 cut-offs, 12 are needed" not in str(refused.value)


def test_spend_over_a_longer_horizon_has_earlier_cutoffs_and_churn_does_not() -> None:
    plan = lay_out(config(horizon=28, spend_horizon=56), 0.0, 500 * DAY_S)
    assert days(plan.churn.test)[-1] == 500 - 28
    assert days(plan.of("stay_spend").test)[-1] == days(plan.of("spend").test)[-1] == 500 - 56
    assert plan.described()["spend_test"] == plan.spend.test


def test_spend_of_a_customer_who_stays_is_known_once_the_churn_horizon_is_over() -> None:
    plan = lay_out(config(horizon=42, spend_horizon=7), 0.0, 500 * DAY_S)
    assert days(plan.spend.test)[-1] == 500 - 42
    assert plan.spend == plan.churn


@pytest.mark.parametrize("days_of_history", [280, 365, 500])
def test_a_value_horizon_that_the_history_does_not_allow_is_refused_with_one_that_it_does(
    days_of_history: int,
) -> None:
    end = days_of_history * DAY_S
    longest = max_value_horizon_days(config(), 0.0, end)
    with pytest.raises(InputError, match=rf"economics.horizon_days = 200 leaves .* allow at most {longest};"):
        lay_out(config(spend_horizon=200), 0.0, end)
    assert lay_out(config(spend_horizon=longest), 0.0, end).spend.fit
    with pytest.raises(InputError, match="leaves no cut-off to learn spend from"):
        lay_out(config(spend_horizon=longest + 1), 0.0, end)


def test_only_the_length_of_the_history_matters() -> None:
    at_first, later = lay_out(config(), 0.0, 365 * DAY_S), lay_out(config(), 1.5e9, 1.5e9 + 365 * DAY_S)
    assert [cutoff + 1.5e9 for cutoff in at_first.every] == later.every


def test_the_test_has_a_distance_of_its_own() -> None:
    plan = lay_out(config(step_days=7, test_step_days=21), 0.0, 365 * DAY_S)
    assert days(plan.churn.test) == [295, 316, 337]
    assert days(plan.churn.training)[-2:] == [260, 267]


def test_what_is_chosen_for_both_offers_knows_no_label_from_the_test_of_either() -> None:
    plan = lay_out(config(step_days=7), 0.0, 365 * DAY_S)
    before = plan.before_tests()
    first = plan.churn.test[0]
    assert first < plan.propensity.test[0]
    assert plan.propensity.training[-1] + plan.propensity.horizon_s > first
    for target in ("churn", "propensity", "spend"):
        cutoffs = before.of(target)
        assert cutoffs.test == []
        assert cutoffs.training == [t for t in plan.of(target).training if t + cutoffs.horizon_s <= first]
    assert before.churn.training == plan.churn.training
    assert all(later[-1] <= first for _, later in before.propensity.folds(3))
    assert before.every == sorted({*before.churn.training, *before.propensity.training})
