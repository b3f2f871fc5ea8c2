"""Each candidate's graph says what scikit-learn says, for all of a model's own: score, blend and calibration."""

from __future__ import annotations

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
from training.models.probability import Probability, add_probabilities, fit_probability

pytestmark = pytest.mark.filterwarnings("ignore:Field onnx.AttributeProto.ints:DeprecationWarning")

COLUMNS = 5


def crowd(rows: int = 1500, seed: int = 0) -> tuple[Features, Floats]:
    """Features, one of them of little variance and one of large numbers, and an outcome that two of them tell."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(rows, COLUMNS)) * [1, 3, 0.01, 1000, 1]
    likely = expit(features[:, 0] + np.abs(features[:, 1]) - 2)
    return features.astype(np.float32), (random.random(rows) < likely).astype(np.float64)


def graph_of(*models: Probability) -> Graph:
    graph = GraphBuilder()
    graph.input("state", COLUMNS)
    features = graph.add("Cast", "state", to=graph.float32)
    whole = graph.add("Cast", add_probabilities(graph, models, features, COLUMNS), to=graph.float32)
    graph.output("probability", whole, columns=len(models))
    return Graph(graph.build("probabilities"))


def fitted(learner: Learner) -> Probability:
    features, labels = crowd()
    rows = np.arange(len(labels))
    return fit_probability(learner, features, labels, Split(rows[:900], rows[900:], rows), seed=7)


@pytest.mark.parametrize("learner", CLASSIFIERS, ids=lambda learner: learner.name)
def test_the_graph_of_each_learner_equals_scikit_learn(learner: Learner) -> None:
    model = fitted(learner)
    features, labels = crowd(3000, seed=1)
    found = graph_of(model).run(state=features.astype(np.float64))["probability"][:, 0]
    expected = model.predict(features)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert expected[labels > 0].mean() > expected[labels == 0].mean() + 0.05


def test_two_models_in_one_graph_keep_their_own_columns_and_calibrations() -> None:
    models = (fitted(CLASSIFIERS[0]), fitted(CLASSIFIERS[-1]))
    features, _ = crowd(500, seed=2)
    found = graph_of(*models).run(state=features.astype(np.float64))["probability"]
    np.testing.assert_allclose(found, np.column_stack([model.predict(features) for model in models]), atol=1e-5)


def test_a_blend_is_the_mean_of_both_scores() -> None:
    features, labels = crowd()
    blend = CLASSIFIERS[-1].fit(features, labels, 7)
    assert isinstance(blend, Blend)
    exact = features.astype(np.float64)
    parts = [CLASSIFIERS[at].fit(features, labels, 7).decision_function(exact) for at in (0, 2)]
    np.testing.assert_allclose(blend.decision_function(exact), (parts[0] + parts[1]) / 2)


def test_a_model_is_calibrated_on_rows_it_was_not_fitted_on_and_then_fitted_on_all() -> None:
    features, labels = crowd()
    rows = np.arange(len(labels))
    usual = fit_probability(CLASSIFIERS[0], features, labels, Split(rows[:900], rows[900:], rows), seed=7)
    turned = np.where(rows >= 900, 1 - labels, labels)
    wrong = fit_probability(CLASSIFIERS[0], features, turned, Split(rows[:900], rows[900:], rows[:900]), seed=7)
    assert 0.5 < usual.slope < 2
    assert wrong.slope < 0
    whole = CLASSIFIERS[0].fit(features, labels, 7)
    exact = features.astype(np.float64)
    np.testing.assert_allclose(usual.estimator.decision_function(exact), whole.decision_function(exact))


def test_too_few_outcomes_are_refused_with_the_numbers() -> None:
    with pytest.raises(
        InputError, match="churn: of 104 customers at the test cut-offs, 4 have the rarer outcome; 5 are"
    ):
        check_outcomes("churn", "test", np.repeat([0.0, 1.0], [100, 4]))
    check_outcomes("churn", "test", np.repeat([0.0, 1.0], [5, 100]))


@pytest.mark.parametrize("learner", spend.REGRESSORS, ids=lambda learner: learner.name)
def test_the_graph_of_each_spend_model_equals_scikit_learn(learner: Learner) -> None:
    features, labels = crowd()
    model = spend.fit_spend(learner, features, labels * (20 + 5 * features[:, 0].clip(0)), seed=7)
    graph = GraphBuilder()
    graph.input("state", COLUMNS)
    found = model.add_to(graph, graph.add("Cast", "state", to=graph.float32), COLUMNS)
    graph.output("spend", graph.add("Cast", found, to=graph.float32), 0)
    others, _ = crowd(3000, seed=1)
    served = Graph(graph.build("spend")).run(state=others.astype(np.float64))["spend"]
    np.testing.assert_allclose(served, model.predict(others), rtol=1e-4)


def test_without_spend_data_all_customers_have_the_same_spend() -> None:
    model = spend.same_for_all(12.5)
    graph = GraphBuilder()
    graph.input("age", 1)
    graph.output("spend", graph.add("Cast", model.add_to(graph, "", COLUMNS), to=graph.float32), 0)
    assert Graph(graph.build("spend")).run(age=np.array([[0.0], [9.0]]))["spend"].tolist() == [12.5, 12.5]
    assert model.predict(crowd(3)[0]).tolist() == [12.5] * 3
