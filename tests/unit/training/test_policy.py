"""What the dynamic threshold is worth: equal contacts, honest tuning, intervals by customers, and savings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.config import Offer
from training.evaluation.cost_metrics import cost_matrix, cost_metrics, expected_maximum_profit
from training.evaluation.policies import (
    DYNAMIC,
    EVERYBODY,
    HINDSIGHT,
    RANDOM,
    RECENCY,
    RFM,
    SINGLE,
    TIMES_VALUE,
    TUNED,
    Contacts,
    best_threshold,
    compare_over_rates,
    compare_policies,
    profit_contributions,
    verdict,
)
from training.evaluation.scored_rows import ScoredRows
from training.evaluation.stayers import corrected_by_stayers
from training.evidence import Policy
from training.graph.thresholds import CustomerOffer, budget_price, gain, threshold
from training.statistics import resampled_totals, total_intervals

OFFER = Offer(contact_cost=0.1, offer_cost=3.0, success_rate=0.2, redemption_rate=0.1, budget_share=0.1)
AS_MANY = {DYNAMIC, SINGLE, TIMES_VALUE, RECENCY, RFM, RANDOM}

money = st.integers(0, 500).map(lambda cents: cents / 100)
shares = st.integers(0, 100).map(lambda parts: parts / 100)
offers = st.builds(
    Offer,
    contact_cost=money,
    offer_cost=money,
    success_rate=shares,
    redemption_rate=shares,
    budget_share=st.sampled_from([0.01, 0.1, 0.5]),
)
seeds = st.integers(0, 2**32 - 1)


def crowd(n: int = 400, seed: int = 0) -> ScoredRows:
    """Customers, about two rows each, whose probabilities are right."""
    random = np.random.default_rng(seed)
    probability, value = random.uniform(0.02, 0.98, n) ** 2, random.gamma(1.2, 20, n)
    return ScoredRows(
        customer=random.integers(0, max(n // 2, 1), n).astype(np.uint64),
        probability=np.maximum(probability, 0.01),
        value=value,
        realised_value=value * random.lognormal(-0.125, 0.5, n),
        label=random.random(n) < probability,
        recency=random.exponential(20, n),
        frequency=random.poisson(4, n).astype(np.float64),
        monetary=value + random.normal(0, 5, n),
    )


def apart(rows: ScoredRows) -> ScoredRows:
    """The rows as if each were of another customer."""
    return replace(rows, customer=np.arange(len(rows.customer), dtype=np.uint64))


def by_policy(found: list[Policy], share: float) -> dict[str, Policy]:
    return {row.policy: row for row in found if row.budget_share == share}


def few(offer: Offer, calibration: ScoredRows, test: ScoredRows, name: str = "churn") -> list[Policy]:
    return compare_policies(name, offer, calibration, test, budgets=[0.05, 0.3])


@given(offers, seeds)
@settings(max_examples=30, deadline=None)
def test_at_each_budget_all_policies_contact_as_many_customers_as_the_dynamic_threshold(
    offer: Offer, seed: int
) -> None:
    result = few(offer, crowd(seed=seed), crowd(300, seed + 1))
    assert {row.budget_share for row in result} == {0.05, 0.3, 1.0, offer.budget_share}
    for share in {row.budget_share for row in result}:
        contacts = {name: row.contacts for name, row in by_policy(result, share).items()}
        assert all(contacts[name] == pytest.approx(contacts[DYNAMIC]) for name in AS_MANY)


@given(offers, seeds)
@settings(max_examples=30, deadline=None)
def test_no_policy_has_a_higher_expected_profit_with_as_many_contacts(offer: Offer, seed: int) -> None:
    rows = crowd(seed=seed)
    for share in (0.05, 0.3, 1.0):
        result = by_policy(few(offer, rows, rows), share)
        assert all(result[DYNAMIC].expected >= result[name].expected - 1e-9 for name in AS_MANY)


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_no_single_threshold_earns_more_than_the_one_chosen_in_hindsight(seed: int) -> None:
    result = few(OFFER, crowd(seed=seed), crowd(300, seed + 1))
    for share in (0.05, 0.1, 0.3, 1.0):
        rows = by_policy(result, share)
        assert rows[HINDSIGHT].realised >= max(rows[SINGLE].realised, rows[TUNED].realised) - 1e-9


def test_a_far_too_expensive_offer_is_made_to_nobody() -> None:
    dear = OFFER.model_copy(update={"offer_cost": 1e5})
    result = few(dear, crowd(), crowd(seed=1))
    assert {(row.contacts, row.expected, row.realised, row.low, row.high) for row in result} == {(0, 0, 0, 0, 0)}


def test_customers_worth_at_most_the_offers_cost_are_not_contacted() -> None:
    rows = crowd(2000)
    cheap = replace(rows, value=np.where(rows.probability > 0.1, np.minimum(rows.value, 3.0), rows.value))
    result = by_policy(few(OFFER, cheap, cheap), 1.0)
    assert 0 < result[EVERYBODY].contacts == (cheap.value > 3.0).sum()
    assert result[TUNED].contacts <= result[EVERYBODY].contacts


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_profit_scales_with_the_currency(seed: int) -> None:
    def double(rows: ScoredRows) -> ScoredRows:
        return replace(rows, value=2 * rows.value, realised_value=2 * rows.realised_value)

    before, after = crowd(seed=seed), crowd(300, seed + 1)
    dear = OFFER.model_copy(update={"contact_cost": 0.2, "offer_cost": 6.0})
    plain, doubled = few(OFFER, before, after), few(dear, double(before), double(after))
    for item, two in zip(plain, doubled, strict=True):
        assert (two.policy, two.contacts) == (item.policy, item.contacts)
        for name in ("expected", "realised", "low", "high"):
            assert getattr(two, name) == pytest.approx(2 * getattr(item, name))


@given(offers, seeds)
@settings(max_examples=20, deadline=None)
def test_an_interval_contains_its_estimate(offer: Offer, seed: int) -> None:
    for row in few(offer, crowd(30, seed), crowd(20, seed + 1)):
        assert row.low <= row.realised <= row.high
        if row.ahead is None:
            assert row.policy == DYNAMIC
        else:
            assert row.ahead_low is not None
            assert row.ahead_high is not None
            tolerance = 1e-9 * (1 + abs(row.realised))  # two policies may choose the same customers in another order
            assert row.ahead_low - tolerance <= row.ahead <= row.ahead_high + tolerance


def test_the_lead_is_the_difference_of_realised_profits() -> None:
    result = by_policy(few(OFFER, crowd(), crowd(seed=1)), 0.3)
    for row in result.values():
        if row.ahead is not None:
            assert row.ahead == pytest.approx(result[DYNAMIC].realised - row.realised)


def test_a_policy_is_paid_with_realised_values_and_its_own_values_are_shown_beside() -> None:
    rows = ScoredRows(
        customer=np.arange(3, dtype=np.uint64),
        probability=np.array([0.9, 0.8, 0.02]),
        value=np.array([103.0, 23.0, 53.0]),
        realised_value=np.array([13.0, 23.0, 1000.0]),
        label=np.array([True, False, True]),
    )
    result = by_policy(compare_policies("churn", OFFER, rows, rows, budgets=[]), 1.0)[DYNAMIC]
    # The first two are contacted. The first is won: 0.2 * (13 - 3) - 0.1; the second wastes 0.1 * 3 + 0.1.
    assert result.contacts == 2
    assert result.precision == 0.5
    assert result.realised == pytest.approx(0.2 * 10 - 0.1 - 0.4)
    assert result.at_model_values == pytest.approx(0.2 * 100 - 0.1 - 0.4)


def test_the_configs_own_budget_is_marked() -> None:
    assert {row.budget_share for row in few(OFFER, crowd(), crowd(seed=1)) if row.is_own_budget} == {0.1}


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0.1, 2, "acting pays"), (0, 2, "not shown"), (-1, 2, "not shown"), (-2, -0.1, "does not pay")],
)
def test_the_verdict_follows_from_the_interval(low: float, high: float, words: str) -> None:
    assert verdict(low, high) == words


@given(offers, seeds)
@settings(max_examples=20, deadline=None)
def test_equal_costs_per_customer_equal_the_offers_costs(offer: Offer, seed: int) -> None:
    def own(rows: ScoredRows) -> ScoredRows:
        n = len(rows.value)
        return replace(rows, contact_cost=np.full(n, offer.contact_cost), offer_cost=np.full(n, offer.offer_cost))

    before, after = crowd(seed=seed), crowd(300, seed + 1)
    free = offer.model_copy(update={"contact_cost": 99.0, "offer_cost": 99.0})
    assert few(free, own(before), own(after)) == few(offer, before, after)


def test_the_threshold_depends_on_the_costs_of_the_customer() -> None:
    offer = CustomerOffer(np.array([0.1, 1.1]), np.array([3.0, 3.0]), 0.2, 0.1, 0.1)
    value = np.array([23.0, 23.0])
    assert threshold(value, offer, 0.0, 0.01).tolist() == pytest.approx([0.4 / 4.3, 1.4 / 4.3])
    assert gain(np.array([0.5, 0.5]), value, offer).tolist() == pytest.approx([1.75, 0.75])
    price = budget_price(np.array([0.5, 0.5]), value, replace(offer, budget_share=0.5), 0.01)
    assert price == pytest.approx(1.25)


def test_the_best_single_threshold_of_an_example_worked_by_hand() -> None:
    probability, profit = np.array([0.9, 0.7, 0.7, 0.4, 0.1]), np.array([-1.0, 5.0, -2.0, 3.0, -4.0])
    # Totals from above: -1, 2 (both of the two at 0.7, or none), 5, 1.
    assert best_threshold(probability, profit, 5) == 0.4
    assert best_threshold(probability, profit, 3) == 0.7
    assert best_threshold(probability, profit, 2) == np.inf
    assert best_threshold(np.zeros(0), np.zeros(0), 3) == np.inf


def test_the_single_threshold_is_tuned_without_the_tests_outcomes() -> None:
    before, after = crowd(), crowd(seed=1)
    other = replace(after, label=~after.label)
    item, two = (by_policy(few(OFFER, before, rows), 0.3) for rows in (after, other))
    for name in (DYNAMIC, SINGLE, TUNED):
        assert (item[name].contacts, item[name].expected) == (two[name].contacts, two[name].expected)
    assert item[HINDSIGHT].expected != two[HINDSIGHT].expected


def test_recency_ranks_longest_absence_first_for_churn_and_last_for_propensity() -> None:
    rows = replace(crowd(), probability=np.full(400, 0.5), recency=np.arange(400.0), value=np.arange(400.0) + 4.0)
    churn, propensity = (by_policy(few(OFFER, rows, rows, name), 0.05) for name in ("churn", "propensity"))
    # The value rises with the days away, so the twenty longest away are worth most, and the latest least.
    assert churn[RECENCY].expected == churn[DYNAMIC].expected
    assert propensity[RECENCY].expected < churn[RANDOM].expected


def test_without_recency_there_is_no_ranking_by_it() -> None:
    rows = replace(crowd(), recency=None)
    names = {row.policy for row in few(OFFER, rows, rows)}
    assert names == {DYNAMIC, SINGLE, TUNED, HINDSIGHT, TIMES_VALUE, RANDOM, EVERYBODY}


def test_ties_are_broken_in_the_same_way_in_any_order_of_rows() -> None:
    rows = replace(apart(crowd()), probability=np.full(400, 0.5))
    turned = replace(rows, **{name: column[::-1] for name, column in vars(rows).items() if column is not None})
    item, two = (by_policy(few(OFFER, result, result), 0.3) for result in (rows, turned))
    assert item[SINGLE].realised == pytest.approx(two[SINGLE].realised)


# --- the grid ---------------------------------------------------------------------------------------------------------


def test_the_grid_surrounds_the_configs_rates() -> None:
    cells = compare_over_rates("churn", OFFER, crowd(), crowd(seed=1))
    assert len(cells) == 25
    assert sorted({cell.success_rate for cell in cells}) == [0.05, 0.1, 0.2, 0.4, 0.8]
    assert sorted({cell.redemption_rate for cell in cells}) == [0.025, 0.05, 0.1, 0.2, 0.4]
    same = next(cell for cell in cells if (cell.success_rate, cell.redemption_rate) == (0.2, 0.1))
    result = by_policy(few(OFFER, crowd(), crowd(seed=1)), 0.1)
    assert same.contacts == result[DYNAMIC].contacts
    assert same.ahead == pytest.approx(result[DYNAMIC].realised - result[SINGLE].realised)
    assert same.tuned_ahead == pytest.approx(result[DYNAMIC].realised - result[TUNED].realised)
    assert all(cell.low <= cell.ahead <= cell.high for cell in cells)


def test_zero_rates_have_a_grid_too_and_no_rate_exceeds_one() -> None:
    offer = OFFER.model_copy(update={"success_rate": 0.0, "redemption_rate": 0.9})
    cells = compare_over_rates("churn", offer, crowd(), crowd(seed=1))
    assert {cell.success_rate for cell in cells} == {0.0, 0.05, 0.1, 0.2, 0.4}
    assert max(cell.redemption_rate for cell in cells) == 1.0
    assert all((cell.contacts, cell.ahead) == (0, 0) for cell in cells if cell.success_rate == 0.0)


def test_where_values_differ_widely_the_dynamic_threshold_wins_all_cells_and_where_they_do_not_none() -> None:
    before, after = crowd(4000), crowd(4000, seed=1)
    assert all(cell.low > 0 for cell in compare_over_rates("churn", OFFER, before, after))
    alike = [replace(rows, value=np.full(4000, 30.0), realised_value=np.full(4000, 30.0)) for rows in (before, after)]
    cells = compare_over_rates("churn", OFFER, alike[0], alike[1])
    assert all(cell.low <= 0 <= cell.high and cell.contacts > 0 for cell in cells)


# --- intervals --------------------------------------------------------------------------------------------------------


def test_resampled_totals_spread_as_the_sum_over_customers_does() -> None:
    random = np.random.default_rng(0)
    column = random.normal(3, 2, 5000)
    drawn = resampled_totals(column[:, np.newaxis], np.arange(5000, dtype=np.uint64), 2000)[:, 0]
    assert drawn.mean() == pytest.approx(column.sum(), rel=0.002)
    assert drawn.std() == pytest.approx(column.std() * np.sqrt(5000), rel=0.06)


def test_rows_of_a_customer_are_drawn_together() -> None:
    column = np.random.default_rng(0).normal(0, 1, (500, 1))
    alone = resampled_totals(column, np.arange(500, dtype=np.uint64), 1000)
    ninefold = resampled_totals(np.repeat(column, 9, axis=0), np.repeat(np.arange(500, dtype=np.uint64), 9), 1000)
    np.testing.assert_allclose(ninefold, 9 * alone)


def test_intervals_have_their_nominal_coverage() -> None:
    # The profit of a fixed choice, from 200 customers of three rows each that share the customer's luck.
    inside = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        column = np.repeat(random.exponential(1.0, 200), 3) + random.normal(0, 0.5, 600)
        drawn = resampled_totals(column[:, np.newaxis], np.repeat(np.arange(200, dtype=np.uint64), 3), 300, seed)
        low, high = np.percentile(drawn, [2.5, 97.5])
        inside += low <= 600 <= high
    assert 180 <= inside <= 199


def test_the_same_rows_in_any_order_give_the_same_intervals() -> None:
    before, after = crowd(), apart(crowd(seed=1))
    assert few(OFFER, before, after) == few(OFFER, before, after)
    turned = replace(after, **{name: column[::-1] for name, column in vars(after).items() if column is not None})
    mixed = few(OFFER, before, turned)
    assert [row.low for row in mixed] == pytest.approx([row.low for row in few(OFFER, before, after)])


def test_the_interval_of_a_skew_total_lies_further_up_as_hall_s_transformation_says() -> None:
    # Sums of 90 customers with 0 and 10 with 10: mean 1, standard deviation 3, skewness 8/3, so 0.2667 of the total.
    column = np.repeat([0.0, 10.0], [90, 10])[:, np.newaxis]
    (bounds,) = total_intervals(column, np.arange(100, dtype=np.uint64))
    error, g = 30 * np.sqrt(100 / 99), 8 / 30
    for bound, z in ((bounds.low, 1.959964), (bounds.high, -1.959964)):
        t = (100 - bound) / error
        # Hall's transformation of the studentised error is normal.
        assert t + g * t**2 / 3 + g**2 * t**3 / 27 + g / 6 == pytest.approx(z)
    assert bounds.high - 100 > 100 - bounds.low


def test_the_interval_of_totals_that_are_not_skew_is_the_normal_one() -> None:
    column = np.tile([[1.0], [3.0]], (50, 1))
    (bounds,) = total_intervals(column, np.arange(100, dtype=np.uint64))
    half = 1.959964 * np.sqrt(100 * 100 / 99)
    assert (bounds.low, bounds.high) == pytest.approx((200 - half, 200 + half))


def test_the_interval_of_nothing_is_nothing() -> None:
    (bounds,) = total_intervals(np.zeros((5, 1)), np.arange(5, dtype=np.uint64))
    assert (bounds.low, bounds.high) == (0.0, 0.0)


def test_a_policy_with_as_many_contacts_pays_for_the_contacts_that_chance_adds() -> None:
    rows = crowd()
    dynamic, single = (np.arange(400) < 100).astype(float), (np.arange(400) >= 300).astype(float)
    edge = np.zeros(400)
    edge[[298, 299]] = 0.5
    chosen = {"dynamic": Contacts(dynamic), "single": Contacts(single, edge)}
    contributions = profit_contributions(chosen, rows, OFFER)
    profit = rows.profit(OFFER)
    marginal = (profit[298] + profit[299]) / 2
    assert contributions[:, 0] == pytest.approx(dynamic * profit)
    assert contributions[:, 1] == pytest.approx(single * profit + marginal * (dynamic - single))
    assert contributions[:, 1].sum() == pytest.approx(single @ profit)


def test_intervals_of_rivals_with_as_many_contacts_cover_what_they_earn() -> None:
    # Both numbers of contacts and the threshold of the rival follow from the sample. Without the edge the interval of
    # its profit covers about 0.82, that of the lead nearly always.
    design = 60_000
    truth, before = apart(crowd(design, seed=9)), crowd(4000, seed=8)
    terms = OFFER.model_copy(update={"budget_share": 0.3})
    lines = by_policy(compare_policies("churn", terms, before, truth, budgets=[]), 0.3)
    each = {policy: (line.realised / design, (line.ahead or 0.0) / design) for policy, line in lines.items()}
    profits = leads = 0
    for seed in range(100, 200):
        at = by_policy(compare_policies("churn", terms, before, apart(crowd(600, seed)), budgets=[]), 0.3)[RANDOM]
        profits += at.low <= 600 * each[RANDOM][0] <= at.high
        leads += (at.ahead_low or 0.0) <= 600 * each[RANDOM][1] <= (at.ahead_high or 0.0)
    assert 88 <= profits <= 99
    assert 88 <= leads <= 99


# --- savings and expected maximum profit ------------------------------------------------------------------------------


def test_costs_differ_by_exactly_the_gain_of_acting() -> None:
    rows = crowd()
    costs = cost_matrix(rows.value, OFFER)
    meant = costs["fn_cost"] - costs["tp_cost"]
    np.testing.assert_allclose(meant, gain(np.ones(400), rows.value, OFFER))
    np.testing.assert_allclose(-costs["fp_cost"], gain(np.zeros(400), rows.value, OFFER))


def test_savings_of_an_example_worked_by_hand() -> None:
    rows = ScoredRows(
        customer=np.arange(3, dtype=np.uint64),
        probability=np.array([0.9, 0.8, 0.02]),
        value=np.array([103.0, 23.0, 53.0]),
        realised_value=np.array([103.0, 23.0, 53.0]),
        label=np.array([True, False, True]),
    )
    # Winning them gains 0.2 * 100 - 0.1 = 19.9 and 9.9, the second wastes 0.1 * 3 + 0.1 = 0.4. Thresholds: 0.4 / 20.3,
    # 0.4 / 4.3 and 0.4 / 10.3 = 0.039, so the third is left alone and 9.9 + 0.4 is lost, where everybody costs 0.4.
    result = cost_metrics(OFFER, rows, rows)
    assert result["expected_savings_dynamic"] == pytest.approx(1 - 10.3 / 0.4)
    # Tuned on these very rows the single one takes all three.
    assert result["expected_savings_single"] == pytest.approx(0.0)


def test_savings_equal_those_of_empulse() -> None:
    from empulse.metrics import expected_savings_score  # noqa: PLC0415 - takes seconds

    rows = crowd()
    chosen = (rows.value > 3) & (rows.probability >= threshold(rows.value, OFFER, 0.0, 0.01))
    costs = cost_matrix(rows.realised_value, OFFER)
    expected = expected_savings_score(rows.label.astype(np.int64), chosen.astype(np.float64), **costs)
    assert cost_metrics(OFFER, rows, rows)["expected_savings_dynamic"] == pytest.approx(expected)


def test_savings_and_expected_maximum_profit_include_what_customers_who_stayed_say_of_those_who_left() -> None:
    # 40 left, 40 stayed and brought 20 or 40; all are alike, so one in two is worth 30 if won.
    label = np.arange(80) < 40
    stay = np.where(label, np.nan, np.where(np.arange(80) % 2, 40.0, 20.0))
    alike = np.ones(80)
    values, stayers = corrected_by_stayers(alike, 0.5 * alike, 30 * alike, label, stay)
    assert stayers is not None
    rows = ScoredRows(
        customer=np.arange(80, dtype=np.uint64),
        probability=np.where(label, 0.6, np.where(np.arange(80) % 2, 0.5, 0.0)),
        value=30 * alike,
        realised_value=values,
        label=label,
        stayers=stayers,
    )
    result = cost_metrics(OFFER, rows, rows)
    # Winning one gains 0.2 * (30 - 3) - 0.1 = 5.3, each of those who stayed wastes 0.4. Contacted are those who left
    # and the 20 who brought 40, 10 more than estimated: 0.2 * 10 of profit each. Perfect knowledge spares the 40 * 0.4
    # of contacting everybody; contacting nobody loses 40 * 5.3.
    assert result["expected_savings_dynamic"] == pytest.approx(1 - (20 * 0.4 - 20 * 0.2 * 10) / 16, rel=1e-2)
    without = cost_metrics(OFFER, replace(rows, stayers=None), replace(rows, stayers=None))
    assert without["expected_savings_dynamic"] == pytest.approx(1 - 20 * 0.4 / 16, rel=1e-2)
    # All customers who left are worth 30 on average, whatever the errors of single ones.
    assert expected_maximum_profit(rows, OFFER) == pytest.approx(
        expected_maximum_profit(replace(rows, stayers=None, realised_value=30 * alike), OFFER), rel=1e-2
    )


def test_perfect_knowledge_saves_everything() -> None:
    rows = crowd()
    knowing = replace(rows, probability=np.where(rows.label, 0.999, 0.0))
    # Everybody meant is worth winning.
    paying = replace(knowing, value=rows.value + 10.0, realised_value=rows.realised_value + 10.0)
    assert cost_metrics(OFFER, paying, paying)["expected_savings_dynamic"] == pytest.approx(1.0)


def test_where_contacting_everybody_is_free_there_is_nothing_to_save() -> None:
    free = OFFER.model_copy(update={"contact_cost": 0.0, "redemption_rate": 0.0})
    rich = replace(crowd(), value=np.full(400, 50.0), realised_value=np.full(400, 50.0))
    assert cost_metrics(free, rich, rich)["expected_savings_dynamic"] == 0.0


def test_expected_maximum_profit_equals_empc_if_everybody_takes_the_offer() -> None:
    from empulse.metrics import empc_score  # noqa: PLC0415 - takes seconds

    rows = crowd(2000)
    offer = OFFER.model_copy(update={"success_rate": 0.3, "redemption_rate": 1.0})
    value = float(rows.realised_value[rows.label].mean())
    terms: dict[str, Any] = {"clv": value, "incentive_cost": 3.0, "contact_cost": 0.1}
    label = rows.label.astype(np.int64)
    profit, share = expected_maximum_profit(rows, offer)
    assert profit == pytest.approx(empc_score(label, rows.probability, alpha=6, beta=14, **terms))
    assert share == pytest.approx(empc_score.optimal_rate(label, rows.probability, alpha=6, beta=14, **terms))
    fewer = offer.model_copy(update={"redemption_rate": 0.1})
    assert expected_maximum_profit(rows, fewer)[0] > profit


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_a_certain_success_rate_has_the_largest_profit_of_any_cut(rate: float) -> None:
    offer = OFFER.model_copy(update={"success_rate": rate})
    rows = crowd(300)
    alike = replace(rows, value=np.full(300, 40.0), realised_value=np.full(300, 40.0))
    order = np.argsort(-alike.probability)
    cuts = np.cumsum(gain(alike.label.astype(np.float64), alike.value, offer)[order]) / 300
    profit, share = expected_maximum_profit(alike, offer)
    if rate in (0.0, 1.0):
        assert profit == pytest.approx(max(0.0, cuts.max()))
    else:  # the best cut is chosen knowing the rate that came
        assert profit > max(0.0, cuts.max()) - 1e-9
    assert 0.0 <= share <= 1.0
