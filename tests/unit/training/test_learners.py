"""Scores of rows in which some columns are changed are those of the estimator, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from training.models.learners import ScoresOfChanged, tree_parameters

COLUMNS = 9


@pytest.mark.parametrize("kind", ["probability", "spend"])
@pytest.mark.parametrize("changed", [[], [0], [3], [8], [1, 5], list(range(COLUMNS))])
def test_scores_of_changed_rows_are_the_estimators_to_the_bit(kind: str, changed: list[int]) -> None:
    random = np.random.default_rng(4)
    features = random.normal(size=(600, COLUMNS))
    features[random.random(features.shape) < 0.1] = np.nan
    signal = np.nan_to_num(features[:, 0]) * np.nan_to_num(features[:, 1]) + np.nan_to_num(features[:, 2])
    parameters = tree_parameters(7, len(features))
    if kind == "probability":
        classifier = HistGradientBoostingClassifier(**parameters).fit(features, signal > 0)
        estimator, expected = classifier, classifier.decision_function
    else:
        regressor = HistGradientBoostingRegressor(loss="poisson", **parameters).fit(features, np.exp(signal))
        estimator, expected = regressor, lambda rows: np.log(regressor.predict(rows))
    scores = ScoresOfChanged(estimator, features)
    other = features.copy()
    other[:, changed] = random.permutation(features[:, changed])
    mask = np.isin(np.arange(COLUMNS), changed)
    found = scores(other, mask)
    if kind == "probability":
        np.testing.assert_array_equal(found, expected(other))
    else:
        np.testing.assert_array_equal(np.exp(found), estimator.predict(other))
        np.testing.assert_allclose(found, expected(other))
    # The rows as they were are still known.
    np.testing.assert_array_equal(scores(features, np.zeros(COLUMNS, dtype=bool)), scores(features, ~mask | mask))
