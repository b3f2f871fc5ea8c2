# ruff: noqa: E501  # sentences as they are read
"""Reason codes that programs can rely on, and sentences that people can read, for every kind of feature."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store.definitions import Feature
from feature_store.state.layout import DAY_S
from service.scoring.explanation_text import contribution_of, players_of

NEVER, NOT_YET = -math.inf, math.inf
LATEST = Feature(name="last", event="purchase", aggregate="latest")
EARLIEST = Feature(name="first", event="purchase", aggregate="earliest")
COUNT = Feature(name="carts_28", event="add_to_cart", aggregate="count", half_life_days=28)
AMOUNT = Feature(name="spend_7", event="purchase", aggregate="sum", field="amount", half_life_days=7, clip=100)
DURATION = Feature(name="dwell_7", event="view", aggregate="sum", field="duration_s", half_life_days=7)
INCOME = Feature(name="income_eur", aggregate="attribute", column="Income")
REGION = Feature(name="region", aggregate="attribute", categories=("north", "south"))
WEEK = 1 / math.log(2)
"""Of a slot with a half-life of 7 days: one a week."""
FEATURES = [LATEST, EARLIEST, COUNT, AMOUNT, DURATION, INCOME, REGION]


def said(
    feature: Feature, value: float, typical: float, amount: float = 0.123, offer: str = "churn"
) -> tuple[str, str]:
    (player,) = players_of([feature])
    result = contribution_of(offer, player, amount, [(feature, value, typical)])
    return result.reason_code, result.sentence


@pytest.mark.parametrize(
    ("feature", "value", "typical", "code", "sentence"),
    [
        (LATEST, -41 * DAY_S, -6 * DAY_S, "PURCHASE_RECENCY_HIGH", "The last purchase was 41 days ago, a typical customer's 6 days ago"),
        (LATEST, -3600, -DAY_S, "PURCHASE_RECENCY_LOW", "The last purchase was less than a day ago, a typical customer's 1 day ago"),
        (LATEST, NEVER, -6 * DAY_S, "PURCHASE_RECENCY_NONE", "No purchase is known, a typical customer's last one was 6 days ago"),
        (LATEST, -2 * DAY_S, NEVER, "PURCHASE_RECENCY_LOW", "The last purchase was 2 days ago, of a typical customer none is known"),
        (EARLIEST, -900 * DAY_S, NOT_YET, "PURCHASE_TENURE_HIGH", "The first purchase was 900 days ago, of a typical customer none is known"),
        (EARLIEST, -1900 * DAY_S, -90 * DAY_S, "PURCHASE_TENURE_HIGH", "The first purchase was 1,900 days ago, a typical customer's 90 days ago"),
        (COUNT, 0.0, 28 * 2.5 / math.log(2), "ADD_TO_CART_COUNT_LOW", "Lately there were 0 add to cart events a day (half-life 28 days), for a typical customer 2.5 a day"),
        (COUNT, 1e-9, 28 / 30 / math.log(2), "ADD_TO_CART_COUNT_LOW", "Lately there were almost 0 add to cart events a month (half-life 28 days), for a typical customer 1 a month"),
        (AMOUNT, 80 * WEEK, 20 * WEEK, "PURCHASE_AMOUNT_HIGH", "Lately the amount of purchase events was 80 a week (half-life 7 days), for a typical customer 20 a week"),
        (AMOUNT, 0.7 * WEEK, 0.1 * WEEK, "PURCHASE_AMOUNT_HIGH", "Lately the amount of purchase events was 0.7 a week (half-life 7 days), for a typical customer 0.1 a week"),
        (DURATION, 90 * WEEK, 600 * WEEK, "VIEW_DURATION_LOW", "Lately the time spent in view events was 1.5 minutes a week (half-life 7 days), for a typical customer 10 minutes a week"),
        (INCOME, 46_213.5, 40_000, "INCOME_EUR_HIGH", "The value of income eur is 46,214, a typical customer's is 40,000"),
        (INCOME, math.nan, 40_000, "INCOME_EUR_UNKNOWN", "The value of income eur is not known, a typical customer's is 40,000"),
        (INCOME, 1, math.nan, "INCOME_EUR_KNOWN", "The value of income eur is 1, a typical customer's is not known"),
        (REGION, 1, 0, "REGION_DIFFERS", "The value of region is 'south', a typical customer's is 'north'"),
        (REGION, 2, 0, "REGION_DIFFERS", "The value of region is another one, a typical customer's is 'north'"),
        (REGION, math.nan, 0, "REGION_UNKNOWN", "The value of region is not known, a typical customer's is 'north'"),
    ],
)  # fmt: skip
def test_a_contribution_in_words(feature: Feature, value: float, typical: float, code: str, sentence: str) -> None:
    tail = ": this raises the probability of leaving by 12.3 percentage points."
    assert said(feature, value, typical) == (code, sentence + tail)


def test_direction_and_offer_are_said() -> None:
    assert said(INCOME, 1, 2, -0.0001, "propensity")[1].endswith(
        ": this lowers the probability of buying by less than 0.1 percentage points."
    )


def test_values_have_units_that_a_program_can_use() -> None:
    (player,) = players_of([DURATION])
    (slot,) = contribution_of("churn", player, 0.1, [(DURATION, 90 * WEEK, 600 * WEEK)]).slots
    assert (slot.slot, slot.unit, slot.text, slot.typical_text) == (
        "dwell_7",
        "seconds per day",
        "1.5 minutes a week",
        "10 minutes a week",
    )
    assert slot.value == pytest.approx(90 / 7)
    assert slot.typical == pytest.approx(600 / 7)
    (player,) = players_of([REGION])
    (slot,) = contribution_of("churn", player, 0.1, [(REGION, 1, math.nan)]).slots
    assert (slot.value, slot.typical, slot.unit, slot.text, slot.typical_text) == (
        None,
        None,
        "",
        "'south'",
        "not known",
    )


def test_one_measure_of_one_event_is_one_player() -> None:
    again = COUNT.model_copy(update={"name": "carts_7", "half_life_days": 7.0})
    result = players_of([again, LATEST, COUNT, REGION, AMOUNT])
    assert [(player.name, player.slots) for player in result] == [
        ("add_to_cart_count", (0, 2)),
        ("purchase_recency", (1,)),
        ("region", (3,)),
        ("purchase_amount", (4,)),
    ]


@given(
    st.sampled_from(FEATURES),
    st.floats(),
    st.floats(),
    st.floats(-1, 1).filter(bool),
    st.text(min_size=1, max_size=64),
)
def test_any_value_of_any_event_has_a_code_and_a_short_sentence(
    feature: Feature, value: float, typical: float, amount: float, event: str
) -> None:
    if feature.event:
        feature = feature.model_copy(update={"event": event})
    code, sentence = said(feature, value, typical, amount)
    assert re.fullmatch(r"\w*_(HIGH|LOW|NONE|UNKNOWN|KNOWN|DIFFERS)", code)
    assert code == code.upper()
    assert len(sentence) < 400
