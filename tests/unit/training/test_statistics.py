"""Losses by row, clustered standard errors and the one-standard-error rule, on examples worked by hand."""

from __future__ import annotations

import math
from dataclasses import astuple

import numpy as np
import pytest

from training.selection.one_standard_error import paired_loss_gap, simplest
from training.statistics import clustered_standard_error, log_losses, poisson_losses


def test_losses_equal_their_textbook_definitions() -> None:
    result = log_losses(np.array([1.0, 0.0]), np.array([0.8, 0.3]))
    assert result.tolist() == pytest.approx([-math.log(0.8), -math.log(0.7)])
    spent = poisson_losses(np.array([0.0, 3.0, 2.0]), np.array([2.0, 3.0, 1.0]))
    assert spent.tolist() == pytest.approx([4.0, 0.0, 2 * (2 * math.log(2) - 1)])


def test_a_certain_and_wrong_probability_has_a_large_finite_loss() -> None:
    result = log_losses(np.array([1.0, 0.0]), np.array([0.0, 1.0]))
    assert np.isfinite(result).all()
    assert (result > 25).all()


def test_the_standard_error_is_clustered_by_customer() -> None:
    losses, best = np.array([2.0, 2.0, 0.0, 0.0]), np.zeros(4)
    # Mean 1; two customers whose rows are 1 above it twice, and 1 below it twice: sums of 2 and -2.
    together = paired_loss_gap(losses, best, np.array([0, 0, 1, 1]))
    assert astuple(together) == pytest.approx((1.0, math.sqrt(2**2 + 2**2) / 4))
    # As if they were four customers, each 1 from the mean.
    apart = paired_loss_gap(losses, best, np.arange(4))
    assert astuple(apart) == pytest.approx((1.0, math.sqrt(4) / 4))
    # A customer who is as much above the mean as below it says nothing against it.
    assert paired_loss_gap(losses, best, np.array([0, 1, 0, 1])).error == 0.0


def test_only_the_paired_difference_counts() -> None:
    hard = np.array([0.0, 100.0, 3.0, 7000.0])
    assert astuple(paired_loss_gap(hard + 0.5, hard, np.arange(4))) == pytest.approx((0.5, 0.0), abs=1e-12)


def test_the_first_that_is_within_one_standard_error_of_the_best_is_the_simplest() -> None:
    customer, best = np.arange(4), np.zeros(4)
    clearly_worse = best + 1.0
    noisily_worse = np.array([2.0, -1.9, 2.0, -1.9])
    chosen, result = simplest([clearly_worse, noisily_worse, best], customer)
    assert chosen == 1
    assert [gap.within_one_se for gap in result] == [False, True, True]
    assert [gap.mean for gap in result] == pytest.approx([1.0, 0.05, 0.0])


def test_the_best_is_chosen_if_all_simpler_ones_are_worse_beyond_noise() -> None:
    chosen, _ = simplest([np.ones(4), np.zeros(4), np.ones(4)], np.arange(4))
    assert chosen == 1


def test_repeated_rows_of_the_same_customers_add_no_information() -> None:
    figures, customer = np.random.default_rng(1).normal(size=400), np.arange(400)
    error = clustered_standard_error(figures, customer)
    assert error == pytest.approx(figures.std() / 20)
    assert clustered_standard_error(np.tile(figures, 4), np.tile(customer, 4)) == pytest.approx(error)
    corrected = clustered_standard_error(figures, customer, small_sample=True)
    assert corrected == pytest.approx(figures.std(ddof=1) / 20)
