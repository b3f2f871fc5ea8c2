"""Metrics of probabilities and spend on the test rows."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, mean_poisson_deviance, roc_auc_score

from feature_store.state.layout import Floats
from training.arrays import Index
from training.statistics import INTERVAL, clustered_standard_error, resampled_totals

Metrics = dict[str, float]

CALIBRATION_BINS: Final = 10


def probability_metrics(labels: npt.NDArray[np.bool_], probability: Floats) -> Metrics:
    """AUC, average precision, Brier score, log loss, expected calibration error and base rate."""
    return {
        "auc": float(roc_auc_score(labels, probability)),
        "average_precision": float(average_precision_score(labels, probability)),
        "brier": float(brier_score_loss(labels, probability)),
        "log_loss": float(log_loss(labels, probability)),
        "calibration_error": calibration_error(labels, probability),
        "base_rate": float(labels.mean()),
    }


def calibration_error(labels: npt.NDArray[np.bool_], probability: Floats) -> float:
    """Expected calibration error over bins of equal size (Naeini et al., 2015).

    It is the mean absolute difference between the predicted and the observed rate.
    """
    bins = _bins(probability)
    return float(sum(abs(labels[b].mean() - probability[b].mean()) * len(b) for b in bins) / len(labels))


def calibration_uncertainty(
    labels: npt.NDArray[np.bool_], probability: Floats, customer: Index, *, resamples: int, seed: int
) -> Metrics:
    """How far chance explains a calibration error, if the rows of a customer are not independent.

    Args:
        labels: ``[n]``.
        probability: ``[n]``.
        customer: Number of the customer of each row ``[n]``.
        resamples: Number of bootstrap resamples of the customers.
        seed: Of the resamples.

    Returns:
        ``calibration_error_low`` and ``_high``, a 95 % interval by a bootstrap of customers; it is somewhat too high,
        because resampling adds noise to an error that cannot be negative. ``calibration_error_by_chance``, what a
        perfectly calibrated model would show on average with this number of customers: in each bin the mean of the
        absolute value of a normal variable with the clustered standard error.
    """
    bins, rows = _bins(probability), len(labels)
    differences = labels - probability
    columns = np.zeros((rows, len(bins)))
    for column, index in enumerate(bins):
        columns[index, column] = differences[index]
    totals = resampled_totals(columns, customer.astype(np.uint64), resamples, seed)
    low, high = np.percentile(np.abs(totals).sum(axis=1) / rows, INTERVAL)
    point = calibration_error(labels, probability)
    chance = sum(clustered_standard_error(differences[index], customer[index]) * len(index) for index in bins) / rows
    return {
        "calibration_error_low": min(float(low), point),
        "calibration_error_high": max(float(high), point),
        "calibration_error_by_chance": float(np.sqrt(2 / np.pi) * chance),
    }


def _bins(probability: Floats) -> list[Index]:
    """Indexes of the rows by bin of equal size, in ascending order of the probability; no bin is empty."""
    bins = np.array_split(np.argsort(probability, kind="stable"), CALIBRATION_BINS)
    return [index for index in bins if len(index)]


def recency_probability(recency_days: Floats, labels: npt.NDArray[np.bool_], recency_days_test: Floats) -> Floats:
    """The baseline: a logistic regression on the days since the last purchase alone."""
    model = LogisticRegression().fit(np.log1p(recency_days)[:, np.newaxis], labels)
    return np.asarray(model.predict_proba(np.log1p(recency_days_test)[:, np.newaxis])[:, 1])


def spend_metrics(spend: Floats, expected: Floats) -> Metrics:
    """Mean absolute error, Poisson deviance, ratio of predicted to actual total, and actual mean."""
    return {
        "mean_absolute_error": float(np.abs(spend - expected).mean()),
        "poisson_deviance": float(mean_poisson_deviance(spend, expected)),
        "total_ratio": float(expected.sum() / max(spend.sum(), 1e-9)),
        "mean": float(spend.mean()),
    }
