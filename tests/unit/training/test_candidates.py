"""The wide set of slots: what a source has decides, with names that are free and nothing that must not be learnt."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from feature_store.definitions import Candidates, Feature
from feature_store.errors import InputError
from feature_store.offline.store import OfflineStore
from feature_store.state.layout import DAY_S
from tests.made_rows import OFFER, made_config
from training.config import Overdue, TrainingConfig
from training.data.candidate_features import candidates, cost_columns, excluded_columns, overdue, rates, slug
from training.graph.features import Rates

START = 1_700_000_000.0
# Type, how many, days after the start of the first one, whether they have an amount, a duration.
KINDS = [
    ("purchase", 200, 0.0, True, False),
    ("Page view!", 150, 0.0, False, True),
    ("exactly enough", 100, 0.0, False, False),
    ("too rare", 99, 0.0, True, True),
    ("later", 500, 60.0, True, True),
]
EVENTS = " UNION ALL ".join(
    f"""SELECT 'c' || i % 90 AS customer_id,
    to_timestamp({START + first * DAY_S} + i * {30 * DAY_S / count}) AS event_time, '{kind}' AS event_type,
    {"i::DOUBLE" if amount else "NULL::DOUBLE"} AS amount,
    {"i::DOUBLE" if duration else "NULL::DOUBLE"} AS duration_s FROM range({count}) AS r(i)"""
    for kind, count, first, amount, duration in KINDS
)
ATTRIBUTES = """SELECT 'c' || i AS customer_id, i::DOUBLE AS age, i % 2 = 0 AS member, 'x' || i % 3 AS town,
    'n' || i AS name, DATE '2024-01-01' AS since, 'a' || i % 80 AS "Rare town" FROM range(90) AS r(i)"""
NOW = START + 40 * DAY_S


def found(
    until: float = NOW, features: list[Feature] | None = None, attributes: str | None = None, **wide: Any
) -> list[Feature]:
    settings = made_config(
        source={"events": EVENTS, "attributes": attributes},
        candidates={"half_lives_days": [7, 3.5]} | wide,
        feature=features or [],
    )
    with OfflineStore(settings.source) as source:
        return candidates(settings, source, until)


def test_each_type_that_is_not_too_rare_has_times_counts_and_sums_of_what_its_events_have() -> None:
    assert [feature.name for feature in found()] == [
        "page_view_latest",
        "page_view_earliest",
        "page_view_count_7d",
        "page_view_duration_s_7d",
        "page_view_count_3_5d",
        "page_view_duration_s_3_5d",
        "exactly_enough_latest",
        "exactly_enough_earliest",
        "exactly_enough_count_7d",
        "exactly_enough_count_3_5d",
        "purchase_latest",
        "purchase_earliest",
        "purchase_count_7d",
        "purchase_amount_7d",
        "purchase_count_3_5d",
        "purchase_amount_3_5d",
    ]


def test_the_slots_are_what_their_names_say() -> None:
    slots = {feature.name: feature for feature in found()}
    assert slots["page_view_duration_s_3_5d"] == Feature(
        name="page_view_duration_s_3_5d",
        aggregate="sum",
        event="Page view!",
        field="duration_s",
        half_life_days=3.5,
    )
    assert slots["purchase_latest"] == Feature(name="purchase_latest", aggregate="latest", event="purchase")


def test_candidates_ignore_events_after_the_training_time() -> None:
    assert not [feature for feature in found() if feature.event == "later"]
    assert [feature for feature in found(until=START + 100 * DAY_S) if feature.event == "later"]


def test_half_lives_longer_than_the_history_are_left_out_except_the_shortest() -> None:
    spans = {feature.half_life_days for feature in found(half_lives_days=[7, 28, 40, 41, 300])}
    assert spans == {None, 7, 28, 40}
    assert {feature.half_life_days for feature in found(half_lives_days=[90, 300])} == {None, 90}


def test_events_and_attributes_can_be_named() -> None:
    named = found(attributes=ATTRIBUTES, events=["purchase", "nobody"])
    assert {feature.event for feature in named} == {"purchase", None}
    several = made_config(
        source={"events": EVENTS, "attributes": ATTRIBUTES}, candidates={"attributes": ["town"], "events": ["purchase"]}
    )
    with OfflineStore(several.source) as source:
        assert [f.name for f in candidates(several, source, NOW) if f.aggregate == "attribute"] == ["town"]


def test_attributes_are_numbers_or_texts_shared_by_enough_customers() -> None:
    slots = {feature.name: feature for feature in found(attributes=ATTRIBUTES) if feature.aggregate == "attribute"}
    assert set(slots) == {"age", "member", "town"}
    assert slots["town"].categories == ("x0", "x1", "x2")
    assert slots["age"].categories is None


def test_a_column_of_another_spelling_is_read_by_its_own_name() -> None:
    slots = found(attributes="SELECT 'c' || i AS customer_id, i AS \"Größe (cm)\" FROM range(90) AS r(i)")
    (size,) = (feature for feature in slots if feature.aggregate == "attribute")
    assert (size.name, size.column, size.source_column) == ("gr_e_cm", "Größe (cm)", "Größe (cm)")


def test_lines_of_the_config_come_first_and_keep_their_names() -> None:
    ours = Feature(name="purchase_latest", aggregate="latest", event="refund")
    slots = found(features=[ours])
    assert slots[0] == ours
    assert "purchase_latest_2" in [feature.name for feature in slots]
    assert len({feature.name for feature in slots}) == len(slots)


def test_without_candidates_only_the_feature_lines_count() -> None:
    lines = [Feature(name="last", aggregate="latest", event="purchase")]
    settings = made_config(source={"events": EVENTS}, candidates=None, feature=lines)
    with OfflineStore(settings.source) as source:
        assert candidates(settings, source, NOW) == lines


def test_a_source_without_features_is_refused() -> None:
    with pytest.raises(InputError, match="candidates: the source has no attribute, and no event type with 100 events"):
        found(events=[])


SNAPSHOT = {
    "table": ATTRIBUTES.replace(
        "'a' || i % 80 AS \"Rare town\"", "i AS later, i AS cost, i AS worth, i % 2 AS left_us"
    ),
    "label": "left_us",
    "value": "worth",
    "group": "name",
    "contact_cost": "cost",
    "leave_out": ["later"],
}


def snapshot(**others: Any) -> TrainingConfig:
    return made_config(snapshot=SNAPSHOT, economics={"margin": 0.3, "churn": OFFER}, candidates={}, **others)


def test_label_value_group_and_left_out_columns_of_a_snapshot_are_no_features() -> None:
    settings = snapshot()
    with OfflineStore(settings.source) as source:
        slots = {feature.name for feature in candidates(settings, source, np.inf)}
    assert slots == {"age", "member", "town", "cost"}
    assert cost_columns(settings) == {"cost"}
    assert excluded_columns(settings) == {"customer_id", "left_us", "worth", "name", "later"}


def test_a_treatment_and_its_outcome_are_no_features() -> None:
    settings = snapshot(treatment={"column": "member", "probability": "age", "outcome": "cost"})
    with OfflineStore(settings.source) as source:
        assert [feature.name for feature in candidates(settings, source, np.inf)] == ["town"]


def test_overdue_uses_the_churn_event() -> None:
    slots = found()
    settings = made_config()
    # Of half-lives 3.5 and 7 the one nearest to the horizon of 28 days.
    assert overdue(settings, slots) == [Overdue(name="overdue", latest="purchase_latest", rate="purchase_count_7d")]
    assert overdue(made_config(churn={"event": "nobody"}), slots) == []


def test_rates_need_candidates_and_the_time_of_the_last_churn_event() -> None:
    assert rates(made_config(), found()) == Rates("purchase_latest", 28)
    assert rates(made_config(churn={"event": "nobody"}), found()) is None
    assert rates(made_config(candidates=None, feature=found()), found()) is None


def test_an_overdue_line_that_names_no_slot_is_refused() -> None:
    line = {"name": "late", "latest": "purchase_latest", "rate": "purchase_amount_7d"}
    with pytest.raises(InputError, match="overdue 'late': 'rate' must name a feature with aggregate 'count'"):
        overdue(made_config(overdue=[line]), found())


@pytest.mark.parametrize(
    ("text", "name"),
    [("Page view!", "page_view"), ("3 for 2", "x_3_for_2"), ("___", "x"), ("ÄÖ", "x"), ("a" * 60, "a" * 48)],
)
def test_any_text_becomes_a_valid_feature_name(text: str, name: str) -> None:
    assert slug(text) == name
    Feature(name=slug(text), aggregate="attribute")


def test_a_candidate_is_what_the_section_includes() -> None:
    wide = Candidates(half_lives_days=(7.0, 3.5))
    assert all(wide.include(feature) for feature in found())
