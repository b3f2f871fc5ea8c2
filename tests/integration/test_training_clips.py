"""A sum takes no more from one event than training has seen: learnt before the test, the same on both sides."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store.__main__ import cli as feature_store_cli
from feature_store.bundles import bundle
from feature_store.config import FeatureConfig, load_config
from feature_store.definitions import Feature, features_match
from feature_store.offline.store import OfflineStore
from feature_store.state.layout import StateLayout
from tests.conftest import TOY_DAYS, TOY_START, Call, Shop
from training.__main__ import cli
from training.data.clipping import learn_clips, rounded_up

END = TOY_START + TOY_DAYS * 86_400.0
SPEND = Feature(name="spend_56d", aggregate="sum", event="purchase", field="amount", half_life_days=56)
COUNT = Feature(name="purchases_28d", aggregate="count", event="purchase", half_life_days=28)


@given(st.floats(1e-6, 1e12))
def test_a_clip_has_two_digits_and_is_never_below_what_it_was_made_of(value: float) -> None:
    result = rounded_up(value)
    assert value <= result * (1 + 1e-9)
    assert result <= value * 1.11
    assert float(f"{result:.1e}") == result


def learnt(shop: Shop, *features: Feature, until: float = END) -> list[Feature]:
    with OfflineStore(load_config(FeatureConfig, str(shop.config)).source) as source:
        return learn_clips(source, features, until)


def test_sums_get_a_clip_that_hardly_any_event_reaches_and_others_get_none(shop: Shop) -> None:
    spend, count = learnt(shop, SPEND, COUNT)
    assert spend.clip is not None
    assert count == COUNT
    assert features_match([SPEND, COUNT], [spend, count])
    with OfflineStore(load_config(FeatureConfig, str(shop.config)).source) as source:
        ((beyond, events),) = source.connection.execute(
            "SELECT count(*) FILTER (amount > ?), count(*) FROM events WHERE event_type = 'purchase'", [spend.clip]
        ).fetchall()
    assert beyond <= events / 1000


def test_a_clip_of_the_config_stays_and_one_that_differs_is_another_feature(shop: Shop) -> None:
    ours = SPEND.model_copy(update={"clip": 12.5})
    assert learnt(shop, ours) == [ours]
    assert not features_match([ours], learnt(shop, SPEND))


def test_nothing_after_the_training_time_has_a_say(shop: Shop) -> None:
    until = TOY_START + 200 * 86_400.0
    before = learnt(shop, SPEND, until=until)
    shop.change_events(f"SELECT * REPLACE (CASE WHEN ts > {until} THEN 1e9 ELSE amount END AS amount) FROM old")
    assert learnt(shop, SPEND, until=until) == before


def test_without_values_there_is_no_clip(shop: Shop) -> None:
    other = SPEND.model_copy(update={"event": "refund"})
    assert learnt(shop, other) == [other]


def test_an_event_beyond_the_clip_counts_as_the_clip_and_a_missing_amount_as_nothing(shop: Shop) -> None:
    shop.change_events(
        f"""FROM old UNION ALL SELECT * FROM (VALUES
            ('typo', {END}, 'purchase', 1e9, NULL), ('return', {END}, 'purchase', -1e9, NULL),
            ('nothing', {END}, 'purchase', NULL, NULL)) AS new(customer_id, ts, event_type, amount, duration_s)"""
    )
    layout = StateLayout([SPEND.model_copy(update={"clip": 300.0})])
    with OfflineStore(load_config(FeatureConfig, str(shop.config)).source) as source:
        states = source.states(layout, END)
    result = dict(zip(states.customer_ids, states.slots[:, 0], strict=True))
    assert (result["typo"], result["return"], result["nothing"]) == (300.0, -300.0, 0.0)


@pytest.mark.filterwarnings("ignore:Field onnx.AttributeProto.ints:DeprecationWarning")
@pytest.mark.usefixtures("quick_fits")
def test_the_bundle_keeps_what_was_learnt_and_its_states_are_loaded_with_it(
    shop: Shop, call: Call, clean_redis: str
) -> None:
    registry = shop.folder / "models"
    assert call(cli, "fit", shop.config, "--registry", registry).code == 0
    (clip,) = {f.clip for f in bundle.read(registry).manifest.features if f.field == "amount"}
    assert clip is not None
    assert math.isfinite(clip)
    options = ["--registry", registry, "--redis", clean_redis]
    assert call(feature_store_cli, "load", shop.config, *options).code == 0
    assert call(feature_store_cli, "verify", shop.config, *options).code == 0
    set_otherwise = shop.edited(('field = "amount"\n', f'field = "amount"\nclip = {clip * 2}\n'))
    assert call(feature_store_cli, "verify", set_otherwise, *options).is_bad_input


@pytest.mark.parametrize("clip", [0, -1, "nan"])
def test_a_clip_that_is_none_is_refused(shop: Shop, call: Call, clip: object) -> None:
    config = shop.edited(('field = "amount"\n', f'field = "amount"\nclip = {clip}\n'))
    assert call(cli, "fit", config, "--registry", shop.folder / "models").is_bad_input
