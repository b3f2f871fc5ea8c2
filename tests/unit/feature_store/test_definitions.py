"""A feature is a line of data: bad lines are refused with the mend, and the fingerprint knows every property."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from feature_store.definitions import Feature, Interests, check_unique_names, features_match, fingerprint

SPEND: dict[str, Any] = {
    "name": "spend",
    "aggregate": "sum",
    "event": "purchase",
    "field": "amount",
    "half_life_days": 28,
}
VISITS: dict[str, Any] = {"name": "visits", "aggregate": "count", "event": "visit", "half_life_days": 7}
LAST: dict[str, Any] = {"name": "last", "aggregate": "latest", "event": "visit"}
FIRST: dict[str, Any] = {"name": "first", "aggregate": "earliest", "event": "visit"}
AGE: dict[str, Any] = {"name": "age", "aggregate": "attribute"}
CLIPPED = SPEND | {"name": "bounded", "clip": 250.0}


def features(*lines: dict[str, Any]) -> list[Feature]:
    return [Feature.model_validate(line) for line in lines]


@pytest.mark.parametrize("line", [SPEND, VISITS, LAST, FIRST, AGE, CLIPPED], ids=lambda line: line["name"])
def test_each_aggregate_can_be_defined(line: dict[str, Any]) -> None:
    feature = Feature.model_validate(line)
    assert feature.model_dump(exclude_none=True) == line
    assert feature.decayed == (line["aggregate"] in ("count", "sum"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (VISITS | {"half_life_days": None}, "aggregate 'count' needs 'half_life_days'"),
        (VISITS | {"event": None}, "aggregate 'count' needs 'event'"),
        (VISITS | {"field": "amount"}, "aggregate 'count' does not use 'field': remove it"),
        (SPEND | {"field": None}, "aggregate 'sum' needs 'field'"),
        (SPEND | {"half_life_days": None}, "aggregate 'sum' needs 'half_life_days'"),
        (LAST | {"event": None}, "aggregate 'latest' needs 'event'"),
        (LAST | {"half_life_days": 7}, "aggregate 'latest' does not use 'half_life_days': remove it"),
        (FIRST | {"field": "amount"}, "aggregate 'earliest' does not use 'field': remove it"),
        (AGE | {"event": "visit"}, "aggregate 'attribute' does not use 'event': remove it"),
        (AGE | {"half_life_days": 7}, "aggregate 'attribute' does not use 'half_life_days': remove it"),
        (VISITS | {"clip": 1.0}, "aggregate 'count' does not use 'clip': remove it"),
        (LAST | {"clip": 1.0}, "aggregate 'latest' does not use 'clip': remove it"),
        (AGE | {"clip": 1.0}, "aggregate 'attribute' does not use 'clip': remove it"),
    ],
)
def test_an_aggregate_names_the_key_it_lacks_or_has_no_use_for(line: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Feature.model_validate(line)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"window_days": 30}, "window_days"),
        ({"aggregate": "mean"}, "aggregate"),
        ({"field": "price"}, "field"),
        ({"name": "Spend"}, "name"),
        ({"name": "1st"}, "name"),
        ({"name": "a b"}, "name"),
        ({"name": "spend\n"}, "name"),
        ({"name": ""}, "name"),
        ({"name": "x" * 65}, "name"),
        ({"event": ""}, "event"),
        ({"event": "x" * 65}, "event"),
        ({"half_life_days": 0}, "half_life_days"),
        ({"half_life_days": -1}, "half_life_days"),
        ({"half_life_days": 3651}, "half_life_days"),
        ({"half_life_days": float("inf")}, "half_life_days"),
        ({"half_life_days": float("nan")}, "half_life_days"),
        ({"half_life_days": "soon"}, "half_life_days"),
        ({"clip": 0}, "clip"),
        ({"clip": -1}, "clip"),
        ({"clip": float("inf")}, "clip"),
        ({"clip": float("nan")}, "clip"),
    ],
)
def test_a_bad_value_or_an_unknown_key_is_refused_by_its_name(change: dict[str, Any], key: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Feature.model_validate(SPEND | change)
    assert [error["loc"] for error in refused.value.errors()] == [(key,)]


def test_a_defined_feature_cannot_be_changed() -> None:
    feature = Feature.model_validate(SPEND)
    with pytest.raises(ValidationError, match="frozen"):
        feature.half_life_days = 7.0


def test_two_lines_of_one_name_are_refused() -> None:
    check_unique_names(features(SPEND, VISITS, AGE))
    with pytest.raises(ValueError, match="feature 'spend' is defined twice: give one of them another name"):
        check_unique_names(features(SPEND, VISITS, VISITS | {"name": "spend"}))


def test_a_fingerprint_is_eight_hex_digits_and_stays_the_same_between_releases() -> None:
    # Stored states carry it: if this digest changes by a refactoring, every deployed state becomes unreadable.
    # It changes with the format: since 2 a state holds the position of the commit that wrote it, since 3 a check,
    # since 4 whether there is a profile.
    assert fingerprint(features(SPEND, VISITS, LAST, FIRST, AGE)) == "40fad7e8"


def test_a_fingerprint_does_not_care_how_a_number_was_written() -> None:
    assert fingerprint(features(VISITS)) == fingerprint(features(VISITS | {"half_life_days": 7.0}))


@pytest.mark.parametrize(
    "change",
    [{"name": "spent"}, {"event": "order"}, {"field": "duration_s"}, {"half_life_days": 28.5}, {"clip": 9.0}],
    ids=lambda change: next(iter(change)),
)
def test_a_fingerprint_changes_with_every_property(change: dict[str, Any]) -> None:
    assert fingerprint(features(VISITS, SPEND | change)) != fingerprint(features(VISITS, SPEND))


def test_a_fingerprint_changes_with_the_aggregate() -> None:
    assert fingerprint(features(LAST)) != fingerprint(features(LAST | {"aggregate": "earliest"}))


def test_a_fingerprint_changes_with_order_and_length() -> None:
    both, turned, item = features(SPEND, VISITS), features(VISITS, SPEND), features(SPEND)
    assert len({fingerprint(both), fingerprint(turned), fingerprint(item)}) == 3


def test_a_config_may_leave_the_clip_of_a_sum_to_training() -> None:
    assert features_match(features(VISITS, SPEND), features(VISITS, SPEND))
    assert features_match(features(VISITS, SPEND), features(VISITS, SPEND | {"clip": 99.0}))
    assert features_match(features(SPEND | {"clip": 99.0}), features(SPEND | {"clip": 99.0}))


@pytest.mark.parametrize(
    ("configured", "fitted"),
    [
        ([SPEND], [SPEND, VISITS]),
        ([SPEND, VISITS], [SPEND]),
        ([SPEND, VISITS], [VISITS, SPEND]),
        ([SPEND], [SPEND | {"half_life_days": 29}]),
        ([SPEND], [SPEND | {"event": "order", "clip": 99.0}]),
        ([SPEND | {"clip": 98.0}], [SPEND | {"clip": 99.0}]),
        ([SPEND | {"clip": 98.0}], [SPEND]),
    ],
)
def test_a_bundle_of_any_other_features_is_not_that_of_the_config(
    configured: list[dict[str, Any]], fitted: list[dict[str, Any]]
) -> None:
    assert not features_match(features(*configured), features(*fitted))


def test_interests_are_there_without_a_line_in_the_config() -> None:
    result = Interests()
    assert (result.view, result.purchase, result.half_life_days, result.keep, result.repeated_views) == (
        *("view", "purchase", 7.0, 4, 3),
    )
    assert result.half_life_s == 7 * 86_400


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"look": "view"}, "look"),
        ({"view": ""}, "view"),
        ({"purchase": "x" * 65}, "purchase"),
        ({"half_life_days": 0}, "half_life_days"),
        ({"half_life_days": float("nan")}, "half_life_days"),
        ({"keep": -1}, "keep"),
        ({"keep": 33}, "keep"),
        ({"repeated_views": 0}, "repeated_views"),
    ],
)
def test_bad_interests_are_refused_by_the_name_of_the_key(change: dict[str, Any], key: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Interests.model_validate(change)
    assert [error["loc"] for error in refused.value.errors()] == [(key,)]
