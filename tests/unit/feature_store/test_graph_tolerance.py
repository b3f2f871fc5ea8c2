"""How far a graph may be off: probabilities and thresholds absolutely, spend relatively, and never not a number."""

from __future__ import annotations

import numpy as np
import pytest

from feature_store.bundles.bundle import Arrays
from feature_store.bundles.onnx_session import beyond_tolerance, largest_differences


def of(name: str, *values: float) -> Arrays:
    return {name: np.array(values, dtype=np.float64)}


def test_probabilities_are_compared_absolutely() -> None:
    worst = largest_differences(of("churn_probability", 0.5, 0.2), of("churn_probability", 0.5, 0.25))
    assert worst["churn_probability"] == pytest.approx(0.05)


def test_spend_is_compared_relatively() -> None:
    worst = largest_differences(of("expected_spend", 1.0, 1010.0), of("expected_spend", 1.0, 1000.0))
    assert worst["expected_spend"] == pytest.approx(0.01)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_infinitely_far_off_on_either_side(odd: float) -> None:
    for result, expected in ((odd, 0.5), (0.5, odd), (odd, np.nan)):
        worst = largest_differences(of("churn_probability", result), of("churn_probability", expected))
        assert worst == {"churn_probability": np.inf}
        assert beyond_tolerance(worst) == "churn_probability is off by inf"


@pytest.mark.parametrize(
    ("name", "within", "beyond"),
    [
        ("churn_probability", 0.99e-5, 1.01e-5),
        ("propensity_threshold", 0.99e-5, 1.01e-5),
        ("expected_spend", 0.99e-4, 1.01e-4),
    ],
)
def test_the_tolerances_are_those_of_the_contract(name: str, within: float, beyond: float) -> None:
    assert beyond_tolerance({name: within}) is None
    assert beyond_tolerance({name: beyond}) is not None


def test_every_output_that_is_too_far_off_is_named() -> None:
    problem = beyond_tolerance({"churn_probability": 0.16, "expected_spend": 0.0, "churn_threshold": 2.0})
    assert problem == "churn_probability is off by 0.16, churn_threshold is off by 2"


def test_every_expected_output_must_be_there() -> None:
    with pytest.raises(KeyError, match="expected_spend"):
        largest_differences(of("churn_probability", 0.5), of("expected_spend", 1.0))
