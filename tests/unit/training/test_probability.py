"""Each candidate's graph says what scikit-learn says, for all of a model's own: score, blend and calibration."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit

from feature_store.bundles.onnx_session import Graph
from feature_store.errors import InputError
from feature_store.state.layout import Floats
from training.arrays import Features
from training.data.splits import Split, check_outcomes
from training.graph.builder import GraphBuilder
from training.models import spend
from training.models.learners import CLASSIFIERS, Blend, Learner
from training.models.probability import Probability, fit_probability
from training.models.scores import NO_MODEL, Score, add_scores

pytestmark = pytest.mark.filterwarnings("ignore:Field onnx.AttributeProto.ints:DeprecationWarning")

COLUMNS = 5


def crowd(rows: int = 1500, seed: int = 0) -> tuple[Features, Floats]:
    """Features, one of them of little variance and one of large numbers, and an outcome that two of them tell."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(rows, COLUMNS)) * [1, 3, 0.01, 1000, 1]
    likely = expit(features[:, 0] + np.abs(features[:, 1]) - 2)
    return features.astype(np.float32), (random.random(rows) < likely).astype(np.float64)


def graph_of(link: str, *scores: Score) -> Graph:
    graph = GraphBuilder()
    graph.input("state", COLUMNS)
    features = graph.add("Cast", "state", to=graph.float32)
    whole = graph.add("Cast", graph.add(link, add_scores(graph, scores, features, COLUMNS)), to=graph.float32)
    graph.output("predicted", whole, columns=len(scores))
    return Graph(graph.build("models"))


def served(link: str, features: Features, *scores: Score) -> Floats:
    """What the graph of these scores predicts, ``[n, scores]``."""
    return graph_of(link, *scores).run(state=features.astype(np.float64))["predicted"].astype(np.float64)


def fitted(learner: Learner) -> Probability:
    features, labels = crowd()
    rows = np.arange(len(labels))
    return fit_probability(learner, features, labels, Split(rows[:900], rows[900:], rows), seed=7)[0]


@pytest.mark.parametrize("learner", CLASSIFIERS, ids=lambda learner: learner.name)
def test_the_graph_of_each_learner_equals_scikit_learn(learner: Learner) -> None:
    model = fitted(learner)
    features, labels = crowd(3000, seed=1)
    expected = model.predict(features)
    np.testing.assert_allclose(served("Sigmoid", features, model.score())[:, 0], expected, atol=1e-5)
    assert expected[labels > 0].mean() > expected[labels == 0].mean() + 0.05


def test_two_models_in_one_graph_keep_their_own_columns_and_calibrations() -> None:
    models = (fitted(CLASSIFIERS[0]), fitted(CLASSIFIERS[-1]))
    features, _ = crowd(500, seed=2)
    result = served("Sigmoid", features, *(model.score() for model in models))
    np.testing.assert_allclose(result, np.column_stack([model.predict(features) for model in models]), atol=1e-5)


def test_a_blend_is_the_mean_of_both_scores() -> None:
    features, labels = crowd()
    blend = CLASSIFIERS[-1].fit(features, labels, 7)
    assert isinstance(blend, Blend)
    exact = features.astype(np.float64)
    parts = [part.fit(features, labels, 7).decision_function(exact) for part in CLASSIFIERS[-1].parts]
    np.testing.assert_allclose(blend.decision_function(exact), (parts[0] + parts[1]) / 2)


def test_only_parts_that_see_rates_use_the_last_features() -> None:
    features, labels = crowd()
    learner = replace(CLASSIFIERS[-1], without_rates=3)
    rows = np.arange(len(labels))
    model = fit_probability(learner, features, labels, Split(rows[:900], rows[900:], rows), seed=7)[0]
    expected = model.predict(features)
    np.testing.assert_allclose(served("Sigmoid", features, model.score())[:, 0], expected, atol=1e-5)
    linear, trees = model.estimator.parts
    other = features.astype(np.float64)
    other[:, 3:] += 500
    exact = features.astype(np.float64)
    assert np.abs(linear.decision_function(other) - linear.decision_function(exact)).min() > 0
    np.testing.assert_array_equal(trees.decision_function(other), trees.decision_function(exact))


def test_a_model_is_calibrated_on_rows_it_was_not_fitted_on_and_then_fitted_on_all() -> None:
    features, labels = crowd()
    rows = np.arange(len(labels))
    usual, first = fit_probability(CLASSIFIERS[0], features, labels, Split(rows[:900], rows[900:], rows), seed=7)
    turned = np.where(rows >= 900, 1 - labels, labels)
    wrong, _ = fit_probability(CLASSIFIERS[0], features, turned, Split(rows[:900], rows[900:], rows[:900]), seed=7)
    assert 0.5 < usual.slope < 2
    assert wrong.slope < 0
    whole = CLASSIFIERS[0].fit(features, labels, 7)
    exact = features.astype(np.float64)
    np.testing.assert_allclose(usual.estimator.decision_function(exact), whole.decision_function(exact))
    before = CLASSIFIERS[0].fit(features[:900], labels[:900], 7)
    np.testing.assert_allclose(first.estimator.decision_function(exact), before.decision_function(exact))
    assert (first.slope, first.offset) == (usual.slope, usual.offset)


def test_an_offer_without_a_model_has_probability_and_spend_zero() -> None:
    features, _ = crowd(10)
    assert served("Sigmoid", features, NO_MODEL, fitted(CLASSIFIERS[0]).score())[:, 0].tolist() == [0.0] * 10
    assert served("Exp", features, NO_MODEL)[:, 0].tolist() == [0.0] * 10


def test_too_few_outcomes_are_refused_with_the_numbers() -> None:
    with pytest.raises(
        InputError, match="churn: of 104 customers at the test cut-offs, 4 have the rarer outcome; 5 are"
    ):
        check_outcomes("churn", "test", np.repeat([0.0, 1.0], [100, 4]))
    check_outcomes("churn", "test", np.repeat([0.0, 1.0], [5, 100]))


def spending() -> tuple[Features, Floats]:
    features, labels = crowd()
    return features, labels * (20 + 5 * features[:, 0].clip(0))


@pytest.mark.parametrize("learner", spend.REGRESSORS, ids=lambda learner: learner.name)
def test_the_graph_of_each_spend_model_equals_scikit_learn(learner: Learner) -> None:
    features, amounts = spending()
    rows = np.arange(len(amounts))
    split = Split(rows[:900], rows[900:], rows)
    model, _ = spend.fit_spend(learner, features, amounts, split, seed=7, with_power=True)
    assert model.slope != 1.0
    others, _ = crowd(3000, seed=1)
    np.testing.assert_allclose(served("Exp", others, model.score())[:, 0], model.predict(others), rtol=1e-4)


def test_the_total_of_spend_is_calibrated_on_rows_that_the_model_was_not_fitted_on() -> None:
    features, amounts = spending()
    rows = np.arange(len(amounts))
    dearer = np.where(rows >= 900, 1.5 * amounts, amounts)  # prices rise before the calibration block
    model, first = spend.fit_spend(
        spend.REGRESSORS[0], features, dearer, Split(rows[:900], rows[900:], rows[:900]), seed=7
    )
    assert (first.scale, first.slope) == (model.scale, model.slope)
    uncalibrated = spend.SpendModel(first.name, first.regressor).predict(features[900:])
    assert first.predict(features[900:]).sum() == pytest.approx(1.5 * uncalibrated.sum(), rel=0.1)
    assert first.predict(features[900:]).sum() == pytest.approx(dearer[900:].sum())


def test_calibration_corrects_large_and_small_values_that_are_drawn_towards_the_mean() -> None:
    predicted = np.exp(np.linspace(0, 3, 20_000))
    scale, slope = spend.calibration(predicted, 2 * predicted**1.2, with_power=True)
    assert (scale, slope) == pytest.approx((2, 1.2), rel=0.01)
    assert scale * predicted**slope == pytest.approx(2 * predicted**1.2, rel=0.01)


def test_without_a_power_only_the_total_is_calibrated() -> None:
    predicted = np.array([1.0, 2.0, 5.0])
    assert spend.calibration(predicted, np.array([1.0, 2.0, 13.0]), with_power=False) == (2.0, 1.0)


def test_a_few_rows_hardly_change_the_slope_of_the_calibration() -> None:
    predicted = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    actual = np.array([0.0, 0.0, 9.0, 0.0, 21.0])
    scale, slope = spend.calibration(predicted, actual, with_power=True)
    assert slope == pytest.approx(1.0, abs=0.1)
    assert (scale * predicted**slope).sum() == pytest.approx(30.0)


def test_predictions_that_are_all_equal_have_a_factor_only() -> None:
    assert spend.calibration(np.full(8, 2.0), np.arange(8.0), with_power=True) == pytest.approx((1.75, 1.0))
    assert spend.calibration(np.full(8, 2.0), np.zeros(8), with_power=True) == (1.0, 1.0)


def test_without_a_calibration_block_spend_is_not_scaled() -> None:
    features, amounts = spending()
    rows = np.arange(len(amounts))
    model, _ = spend.fit_spend(spend.REGRESSORS[0], features, amounts, Split(rows, rows[:0], rows), seed=7)
    assert (model.scale, model.slope) == (1.0, 1.0)


def test_without_spend_data_all_customers_have_the_same_spend() -> None:
    model = spend.same_for_all(12.5)
    features, _ = crowd(3)
    assert served("Exp", features, model.score())[:, 0].tolist() == [12.5] * 3
    assert model.predict(features).tolist() == [12.5] * 3
