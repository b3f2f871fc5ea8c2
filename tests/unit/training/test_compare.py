"""Comparison of two bundles: what differs beyond chance, what does not, and what cannot be compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from feature_store.bundles.bundle import OFFERS
from feature_store.errors import InputError
from feature_store.state.layout import Floats
from tests.made_evidence import CUTOFFS, OFFER, logistic, made_manifest, made_rows
from training.evaluation.compare import Comparison, compare_rows
from training.evaluation.paired_bootstrap import Pairs, Statistics
from training.evidence import HoldoutRows, hashed_ids

Rows = dict[str, HoldoutRows]


@pytest.fixture(scope="module")
def rows() -> Rows:
    return {offer: made_rows(offer, customers=400) for offer in OFFERS}


def compared(a: Rows, b: Rows, resamples: int = 200) -> Comparison:
    manifest_a, manifest_b = made_manifest(a), made_manifest(b).model_copy(update={"version": "second"})
    return compare_rows(manifest_a, a, manifest_b, b, resamples)


def changed(rows: Rows, how: Callable[[Floats], Floats]) -> Rows:
    return {offer: replace(test, probability=how(test.probability)) for offer, test in rows.items()}


def noisy(probability: Floats) -> Floats:
    noise = np.random.default_rng(3).normal(0, 1.0, len(probability))
    return logistic(np.log(probability / (1 - probability)) + noise)


def taken(rows: Rows, at: Callable[[HoldoutRows], object]) -> Rows:
    return {
        offer: HoldoutRows(**{name: column[at(test)] for name, column in vars(test).items()})
        for offer, test in rows.items()
    }


def test_noisier_predictions_are_worse_and_less_noisy_ones_better(rows: Rows) -> None:
    there, back = compared(rows, changed(rows, noisy)), compared(changed(rows, noisy), rows)
    assert (there.verdict, back.verdict) == ("worse", "better")
    for offer in OFFERS:
        assert (there.offers[offer].verdict, back.offers[offer].verdict) == ("worse", "better")
        lost = there.offers[offer].measures
        assert lost["log_loss"].low > 0
        assert lost["brier"].low > 0
        assert lost["auc"].high < 0
        assert lost["log_loss"].difference == pytest.approx(-back.offers[offer].measures["log_loss"].difference)
    assert there.sentence().startswith("verdict: second is worse than 2026")


def test_the_same_bundle_twice_shows_no_difference(rows: Rows) -> None:
    result = compared(rows, rows)
    assert result.verdict == "no difference shown"
    for offer in result.offers.values():
        assert offer.verdict == "no difference shown"
        for measure in offer.measures.values():
            assert (measure.difference, measure.low, measure.high) == (0, 0, 0)


def test_a_significant_but_irrelevant_change_is_no_difference(rows: Rows) -> None:
    label = {offer: test.label for offer, test in rows.items()}
    better = {
        offer: replace(test, probability=test.probability + 1e-6 * (2.0 * label[offer] - 1))
        for offer, test in rows.items()
    }
    result = compared(rows, better)
    assert result.log_loss.high < 0, "it is better on every row"
    assert result.verdict == "no difference shown"


# 5 % alarms are 3 of 60 and 10 of 200; more than 8 and more than 18 come once in 400 and in 150 runs of such tests.
@pytest.mark.parametrize(("trials", "at_most"), [(60, 8), pytest.param(200, 18, marks=pytest.mark.full)])
def test_equally_good_models_seldom_differ(trials: int, at_most: int) -> None:
    """Both have noise of their own, the same for all rows of a customer: rows alone would cry wolf."""
    random, customers, alarms = np.random.default_rng(1), 150, 0
    who = np.repeat(np.arange(customers), 4)
    nothing = np.zeros(len(who))
    for _ in range(trials):
        logit = random.normal(0, 1.5, customers)[who]
        a, b = (logistic(logit + random.normal(0, 0.7, customers)[who]) for _ in "ab")
        base = HoldoutRows(
            customer=hashed_ids([str(n) for n in range(customers)])[who],
            cutoff=np.tile(np.arange(1.0, 5.0), customers),
            label=random.random(customers)[who] < logistic(logit),
            probability=a,
            threshold=nothing,
            value=nothing,
            realised_value=nothing,
            value_correction=nothing,
            contact_cost=nothing,
            offer_cost=nothing,
            recency_days=nothing,
            baseline=nothing,
            random=nothing,
        )
        alarms += compared({"churn": base}, {"churn": replace(base, probability=b)}).verdict != "no difference shown"
    assert alarms <= at_most


@pytest.mark.parametrize("digits", [6, 1], ids=["hardly a tie", "many ties"])
def test_measures_of_a_resample_equal_those_of_repeated_rows(rows: Rows, digits: int) -> None:
    a = replace(rows["churn"], probability=np.clip(rows["churn"].probability.round(digits), 0.01, 0.99))
    b = replace(a, probability=np.clip(noisy(a.probability).round(digits), 0.01, 0.99))
    customers, owner = np.unique(a.customer, return_inverse=True)
    weight = np.random.default_rng(1).integers(0, 4, len(customers)).astype(float)
    result = Statistics(Pairs(a, b, owner), len(customers), OFFER).differences(weight)
    for name, score in (("log_loss", log_loss), ("brier", brier_score_loss), ("auc", roc_auc_score)):
        expected = (score(a.label, item.probability, sample_weight=weight[owner]) for item in (a, b))
        assert result[name] == pytest.approx(-np.subtract(*expected), abs=1e-12), name


def test_profit_is_the_realised_profit_of_the_alerts(rows: Rows) -> None:
    result = compared(rows, changed(rows, noisy))
    for offer, test in rows.items():
        alerts = test.probability >= test.threshold
        won = 0.2 * (test.realised_value - 3.0) - 0.1  # with the rates and costs of OFFER
        expected = np.where(test.label, won, -0.1 * 3.0 - 0.1)[alerts].sum()
        assert result.offers[offer].measures["profit"].a == pytest.approx(expected)


def test_profit_includes_what_customers_who_stayed_say_of_those_who_left(rows: Rows) -> None:
    correction = np.random.default_rng(4).normal(0, 2, len(rows["churn"].label))
    corrected = rows | {"churn": replace(rows["churn"], value_correction=correction)}
    before, after = (
        compared(each, changed(each, noisy)).offers["churn"].measures["profit"] for each in (rows, corrected)
    )
    alerts, others = (each["churn"].probability >= each["churn"].threshold for each in (rows, changed(rows, noisy)))
    assert after.a - before.a == pytest.approx(0.2 * correction[alerts].sum())
    assert after.b - before.b == pytest.approx(0.2 * correction[others].sum())
    assert after.low != before.low


def test_different_economics_are_noted(rows: Rows) -> None:
    manifest = made_manifest(rows)
    dear = manifest.model_copy(update={"economics": manifest.economics | {"churn.offer_cost": 9.0}})
    result = compare_rows(manifest, rows, dear, rows, 20)
    assert "churn.offer_cost" in result.offers["churn"].note
    assert result.offers["propensity"].note == ""


def test_only_rows_that_both_have_are_compared(rows: Rows) -> None:
    first = taken(rows, lambda test: test.cutoff < CUTOFFS[2])
    shuffled = np.random.default_rng(2).permutation(1200)
    second = taken(taken(rows, lambda _: shuffled), lambda test: (test.cutoff > CUTOFFS[0]) & (test.customer % 2 == 0))
    result = compared(first, second)
    even = int((rows["churn"].customer[:400] % 2 == 0).sum())
    for offer in OFFERS:
        shown = result.offers[offer]
        assert (shown.rows, shown.customers, shown.cutoffs) == (even, even, 1)
        assert shown.measures["log_loss"].difference == 0


def test_without_a_common_cutoff_the_error_lists_the_cutoffs_and_the_fix(rows: Rows) -> None:
    first, second = (
        taken(rows, lambda test: test.cutoff == CUTOFFS[0]),
        taken(rows, lambda test: test.cutoff == CUTOFFS[1]),
    )
    with pytest.raises(InputError, match=r"A was tested at 2017-11-06 .*, B at 2017-11-20 .*test_cutoffs"):
        compared(first, second)


def test_different_customers_at_the_same_cutoffs_cannot_be_compared(rows: Rows) -> None:
    others = {offer: replace(test, customer=test.customer + np.uint64(1)) for offer, test in rows.items()}
    with pytest.raises(InputError, match="no test rows of churn in common"):
        compared(rows, others)


def test_different_labels_cannot_be_compared(rows: Rows) -> None:
    label = rows["churn"].label.copy()
    label[:5] = ~label[:5]
    with pytest.raises(InputError, match=r"5 of 1,200 common rows of churn have different labels .*\[churn\]"):
        compared(rows, rows | {"churn": replace(rows["churn"], label=label)})


def test_bundles_without_a_common_offer_cannot_be_compared(rows: Rows) -> None:
    with pytest.raises(InputError, match="no offer in common"):
        compare_rows(
            made_manifest(rows), {"churn": rows["churn"]}, made_manifest(rows), {"propensity": rows["propensity"]}
        )


def test_snapshots_are_compared_by_customer() -> None:
    rows = {offer: made_rows(offer, customers=300, snapshot=True) for offer in OFFERS}
    result = compared(rows, changed(rows, noisy))
    assert result.offers["churn"].rows == 300
    assert result.verdict == "worse"
