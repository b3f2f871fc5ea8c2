"""``load`` puts the source's states into Redis, and ``verify`` finds every customer for whom that is not so."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
import pytest

from feature_store.bundles import bundle
from feature_store.online.state_writer import StateWriter
from feature_store.state.layout import DAY_S, State, StateLayout, with_profile

if TYPE_CHECKING:
    from tests.conftest import Outcome, Shop, Store, Trained

END = datetime(2024, 11, 14, tzinfo=UTC).timestamp()  # of the small shop
CUSTOMERS = 400


@pytest.fixture
def layout(toy: Trained) -> StateLayout:
    return StateLayout(bundle.read(toy.registry).manifest.features)


def figures(outcome: Outcome) -> tuple[int, int, int]:
    """Mismatches, missing and extra, as verify prints them."""
    result = [
        re.search(rf"^{name} +([\d,]+)$", outcome.out, re.MULTILINE)
        for name in ("mismatches", "missing in Redis", "extra in Redis")
    ]
    mismatches, missing, extra = (int(match[1].replace(",", "")) if match else -1 for match in result)
    return mismatches, missing, extra


def test_after_a_load_nothing_differs(store: Store) -> None:
    loaded = store("load")
    assert loaded.code == 0
    assert f"loaded {CUSTOMERS} customers as of 2024-11-14 00:00:00 UTC: 6 features, 72 bytes each" in loaded.out
    verified = store("verify")
    assert verified.code == 0
    assert figures(verified) == (0, 0, 0)
    assert f"compared            {CUSTOMERS} of {CUSTOMERS} customers" in verified.out


def test_one_damaged_one_deleted_and_one_added_are_each_found(store: Store, layout: StateLayout) -> None:
    store("load")
    with StateWriter(store.url, layout) as redis:
        state = layout.unpack(redis.read(["c0001"]))
        slots = state.slots[0] * np.array([1, 1, 1 + 2e-6, 1, 1, 1])
        redis.write(["c0001"], [layout.pack(State(END, slots))])
        redis.delete(["c0002"])
        redis.write(["stranger"], [layout.pack(State(END, layout.identity))])
    verified = store("verify")
    assert verified.code == 1
    assert figures(verified) == (1, 1, 1)
    assert f"compared            {CUSTOMERS - 1} of {CUSTOMERS} customers" in verified.out
    assert "largest difference  2e-06" in verified.out
    assert verified.err == ""


def test_a_difference_in_any_slot_is_found(store: Store, layout: StateLayout) -> None:
    store("load")
    names = [f"c{1 + slot:04}" for slot in range(6)]
    with StateWriter(store.url, layout) as redis:
        states = layout.unpack(redis.read(names)).slots.copy()
        for slot, slots in enumerate(states):
            slots[slot] = slots[slot] * 1.0001 + 1e-3
        redis.write(names, [layout.pack(State(END, slots)) for slots in states])
    assert figures(store("verify")) == (len(names), 0, 0)


def test_rounding_is_no_difference(store: Store, layout: StateLayout) -> None:
    store("load")
    with StateWriter(store.url, layout) as redis:
        slots = layout.unpack(redis.read(["c0001"])).slots[0] * (1 + 1e-8)
        redis.write(["c0001"], [layout.pack(State(END, slots))])
    assert figures(store("verify")) == (0, 0, 0)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(lambda _: b"", id="empty"),
        pytest.param(lambda _: b"torn", id="torn"),
        pytest.param(lambda _: b"x" * 72, id="foreign"),
        pytest.param(lambda layout: layout.headers[0] + bytes(64), id="zeros behind our header"),
        pytest.param(
            lambda layout: layout.headers[0] + b"x" * 64,
            id="rubbish behind our header",
        ),
    ],
)
def test_a_value_that_is_no_state_is_a_mismatch(
    store: Store, layout: StateLayout, value: Callable[[StateLayout], bytes]
) -> None:
    store("load")
    with StateWriter(store.url, layout) as redis:
        redis.write(["c0001"], [value(layout)])
    verified = store("verify")
    assert figures(verified) == (1, 0, 0)
    assert "largest difference  inf" in verified.out


def test_a_load_leaves_customers_whose_profile_was_lost_and_verify_counts_them(
    store: Store, layout: StateLayout
) -> None:
    store("load")
    with StateWriter(store.url, layout) as redis:
        (state,) = redis.read(["c0001"])
        assert state is not None
        redis.write(["c0001"], [with_profile(state)])
        before = redis.read(["c0001"])
        loaded = store("load")
        assert redis.read(["c0001"]) == before
    assert loaded.code == 0
    assert "1 left without scores, because their profile was lost" in loaded.out
    verified = store("verify")
    assert (verified.code, figures(verified)) == (1, (0, 0, 0))
    assert "profiles lost       1 " in verified.out


def test_a_wrong_time_up_to_which_events_are_known_is_a_mismatch(store: Store, layout: StateLayout) -> None:
    store("load")
    with StateWriter(store.url, layout) as redis:
        slots = layout.unpack(redis.read(["c0001"])).slots[0]
        redis.write(["c0001"], [layout.pack(State(END + 30 * DAY_S, slots))])
    assert figures(store("verify")) == (1, 0, 0)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2024-06-01", datetime(2024, 6, 1, tzinfo=UTC)),
        ("2024-06-01T18:00:00+02:00", datetime(2024, 6, 1, 16, tzinfo=UTC)),
    ],
)
@pytest.mark.usefixtures("in_tokyo")
def test_states_may_be_loaded_as_of_an_earlier_time(
    store: Store, layout: StateLayout, text: str, moment: datetime
) -> None:
    loaded = store("load", "--as-of", text)
    assert f"customers as of {moment:%Y-%m-%d %H:%M:%S} UTC" in loaded.out
    with StateWriter(store.url, layout) as redis:
        batch = layout.unpack(redis.read(["c0001", "c0002"]))
    assert batch.as_of.tolist() == [moment.timestamp()] * 2
    verified = store("verify")
    assert (verified.code, figures(verified)) == (0, (0, 0, 0))


def test_an_old_data_set_can_be_served_as_if_it_ended_today(store: Store, layout: StateLayout) -> None:
    store("load")
    with StateWriter(store.url, layout) as redis:
        before = layout.unpack(redis.read(["c0001"]))
    loaded = store("load", "--shift-to-now")
    assert re.search(r"^times shifted by \+[\d,]+\.\d days: 2024-11-14 00:00:00 UTC in the data is now, 20", loaded.out)
    with StateWriter(store.url, layout) as redis:
        after = layout.unpack(redis.read(["c0001"]))
    assert after.as_of[0] == pytest.approx(time.time(), abs=60)
    np.testing.assert_array_equal(after.slots, before.slots)
    verified = store("verify")
    assert (verified.code, figures(verified)) == (0, (0, 0, 0))


def test_a_sample_compares_that_many_and_still_finds_every_extra(store: Store, layout: StateLayout) -> None:
    store("load")
    with StateWriter(store.url, layout) as redis:
        redis.write(["stranger"], [layout.pack(State(END, layout.identity))])
    verified = store("verify", "--sample", 17)
    assert f"compared            17 of {CUSTOMERS} customers" in verified.out
    assert (verified.code, figures(verified)) == (1, (0, 0, 1))


def test_a_sample_larger_than_the_shop_is_everybody(store: Store) -> None:
    store("load")
    verified = store("verify", "--sample", 10_000)
    assert f"compared            {CUSTOMERS} of {CUSTOMERS} customers" in verified.out
    assert verified.code == 0


def test_a_second_load_removes_whom_the_source_no_longer_has(store: Store, shop: Shop) -> None:
    store("load")
    shop.change_events("FROM old WHERE customer_id <> 'c0001'")
    people = (shop.folder / "customers.csv").read_text().splitlines(keepends=True)
    (shop.folder / "customers.csv").write_text("".join(line for line in people if not line.startswith("c0001")))
    assert figures(store("verify", config=shop.config)) == (0, 0, 1)
    loaded = store("load", config=shop.config)
    assert loaded.out.endswith(", 1 removed, about whom nothing is known\n")
    assert figures(store("verify", config=shop.config)) == (0, 0, 0)


def test_events_that_came_late_show_as_mismatches_until_the_next_load(store: Store, shop: Shop) -> None:
    store("load")
    shop.change_events("FROM old UNION ALL SELECT 'c0005', 1_720_000_000, 'purchase', 12.5, NULL")
    assert figures(store("verify", config=shop.config)) == (1, 0, 0)


def test_purchases_that_were_all_given_back_are_no_mismatch(store: Store, shop: Shop) -> None:
    # A wholesaler's customer: what is left of 60 purchases is rounding, and DuckDB's threads may add up in any order.
    bought = np.random.default_rng(0).integers(100_000, 1_000_000, 60) / 100
    amounts = [*bought, *-bought]
    shop.change_events("SELECT * FROM old WHERE customer_id <> 'c0005'")
    add = "FROM old UNION ALL SELECT 'c0005', 1_731_000_000, 'purchase', unnest([{}]), NULL"
    for command, order in (("load", amounts), ("verify", sorted(amounts))):
        shop.change_events("SELECT * FROM old WHERE customer_id <> 'c0005'")
        shop.change_events(add.format(", ".join(f"{amount}::DOUBLE" for amount in order)))
        done = store(command, config=shop.config)
    assert figures(done) == (0, 0, 0)


def test_rows_that_were_left_out_are_told(store: Store, shop: Shop) -> None:
    shop.change_events("FROM old UNION ALL SELECT NULL, 1_720_000_000, 'purchase', 12.5, NULL")
    loaded = store("load", config=shop.config)
    assert (loaded.code, loaded.err) == (0, "")
    assert loaded.out.startswith("left out 1 events without a usable customer_id\n")
