"""The evidence in the manifest: each figure on an example small enough to check by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from training.evaluation.metrics import (
    calibration_error,
    calibration_uncertainty,
    probability_metrics,
    recency_probability,
    spend_metrics,
)

LABELS = np.array([True, False, True, False])


def test_metrics_of_probabilities_measure_ranking_and_calibration() -> None:
    result = probability_metrics(LABELS, np.array([0.9, 0.2, 0.4, 0.6]))
    # Pairs in order: 0.9>0.2, 0.9>0.6, 0.4>0.2, not 0.4>0.6. Precision at the hits: 1/1 and 2/3.
    assert result["auc"] == 3 / 4
    assert result["average_precision"] == pytest.approx((1 + 2 / 3) / 2)
    assert result["brier"] == pytest.approx((0.1**2 + 0.2**2 + 0.6**2 + 0.6**2) / 4)
    assert result["log_loss"] == pytest.approx(-(math.log(0.9) + math.log(0.8) + 2 * math.log(0.4)) / 4)
    assert result["base_rate"] == 0.5


def test_calibration_error_is_zero_for_perfect_calibration() -> None:
    probability = np.repeat([0.2, 0.8], 500)
    labels = np.tile([True, False, False, False, False], 200)
    labels[500:] = ~labels[500:]
    assert calibration_error(labels, probability) == pytest.approx(0.0)
    assert calibration_error(labels, probability + 0.1) == pytest.approx(0.1)


def test_calibration_error_works_with_fewer_rows_than_bins() -> None:
    assert calibration_error(np.array([True, False]), np.array([0.75, 0.25])) == pytest.approx(0.25)


def test_the_uncertainty_of_a_calibration_error_counts_customers_and_not_rows() -> None:
    random = np.random.default_rng(0)
    probability = random.random(2000)
    labels, customer = random.random(2000) < probability, np.arange(2000)
    once = calibration_uncertainty(labels, probability, customer, resamples=200, seed=1)
    error = calibration_error(labels, probability)
    assert once["calibration_error_low"] <= error <= once["calibration_error_high"]
    # The model is calibrated: all of the error is chance, which is about sqrt(2 / pi) sqrt(p (1 - p) / 200) on average.
    expected = math.sqrt(2 / math.pi) * np.mean([math.sqrt(p * (1 - p) / 200) for p in np.arange(0.05, 1, 0.1)])
    assert once["calibration_error_by_chance"] == pytest.approx(expected, rel=0.05)
    assert error == pytest.approx(once["calibration_error_by_chance"], rel=0.6)
    five = np.repeat(customer, 5)  # each customer has five equal rows
    again = calibration_uncertainty(labels[five], probability[five], five, resamples=200, seed=1)
    assert again == pytest.approx(once, rel=0.02)
    off = calibration_uncertainty(labels, np.clip(probability - 0.2, 0, 1), customer, resamples=200, seed=1)
    assert off["calibration_error_low"] > 5 * off["calibration_error_by_chance"]


def test_recency_alone_is_a_probability_that_rises_with_the_days_away() -> None:
    random = np.random.default_rng(0)
    recency = random.uniform(0, 60, 2000)
    churn = random.random(2000) < recency / 60
    result = recency_probability(recency, churn, np.array([1.0, 20.0, 59.0]))
    assert (np.diff(result) > 0).all()
    assert ((result > 0) & (result < 1)).all()


def test_metrics_of_spend_measure_customers_and_the_total() -> None:
    result = spend_metrics(np.array([0.0, 10.0, 20.0]), np.array([2.0, 10.0, 24.0]))
    deviance = 2 * (2 + 0 + 20 * math.log(20 / 24) - 20 + 24)
    assert result == pytest.approx(
        {"mean_absolute_error": 2.0, "total_ratio": 1.2, "mean": 10.0, "poisson_deviance": deviance / 3}
    )
