"""Labels of a small history, checked by hand: what counts at the very boundary, and who is asked about at all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from feature_store.config import Source
from feature_store.definitions import Feature
from feature_store.offline.store import OfflineStore
from feature_store.state.layout import DAY_S, StateLayout
from training.config import TrainingConfig
from training.data.dataset import Rows, build_rows

CUTOFF = 1_700_000_000.0
SECOND = 1 / DAY_S

# Days after the cut-off, type, amount. Horizons as in the contract: 60 days active, 28 churn and spend, 7 propensity.
HISTORY: dict[str, list[tuple[float, str, float | None]]] = {
    "at the cut-off itself": [(0.0, "purchase", 9.0)],
    "active for the last second": [(-60 + SECOND, "purchase", 9.0)],
    "a second too long ago": [(-60.0, "purchase", 9.0)],
    "only looked": [(-1.0, "view", None), (1.0, "purchase", 9.0)],
    "came later": [(1.0, "purchase", 9.0), (2.0, "purchase", 9.0)],
    "back on the last second of seven days": [(-1.0, "purchase", 9.0), (7.0, "purchase", 5.0)],
    "back a second after seven days": [(-1.0, "purchase", 9.0), (7 + SECOND, "purchase", 5.0)],
    "back on the last second of 28 days": [(-2.0, "purchase", 9.0), (28.0, "purchase", 5.0)],
    "back a second after 28 days": [(-3.0, "purchase", 9.0), (28 + SECOND, "purchase", 5.0)],
    "looked afterwards": [(-4.0, "purchase", 9.0), (1.0, "view", 3.0)],
    "bought twice, gave one back": [
        (-50.0, "purchase", 9.0),
        (-5.0, "purchase", 9.0),
        (1.0, "purchase", 20.0),
        (2.0, "purchase", -5.5),
        (3.0, "purchase", None),
    ],
    "gave back more than bought": [(-6.0, "purchase", 9.0), (1.0, "purchase", -5.0)],
}
# customer: churn, propensity, spend, days since the last purchase
EXPECTED = {
    "at the cut-off itself": (True, False, 0.0, 0.0),
    "active for the last second": (True, False, 0.0, 60 - SECOND),
    "back on the last second of seven days": (False, True, 5.0, 1.0),
    "back a second after seven days": (False, False, 5.0, 1.0),
    "back on the last second of 28 days": (False, False, 5.0, 2.0),
    "back a second after 28 days": (True, False, 0.0, 3.0),
    "looked afterwards": (True, False, 0.0, 4.0),
    "bought twice, gave one back": (False, True, 14.5, 5.0),
    "gave back more than bought": (False, True, 0.0, 6.0),
}
LAYOUT = StateLayout(
    [
        Feature(name="last", aggregate="latest", event="purchase"),
        Feature(name="purchases", aggregate="count", event="purchase", half_life_days=28),
        Feature(name="spend", aggregate="sum", event="purchase", field="amount", half_life_days=28),
    ]
)
OFFER = {"contact_cost": 0.1, "offer_cost": 1, "success_rate": 0.1, "redemption_rate": 0.1, "budget_share": 0.1}


def config(**sections: Any) -> TrainingConfig:
    return TrainingConfig.model_validate(
        {
            "source": {"events": ""},
            "feature": LAYOUT.features,
            "economics": {"margin": 0.3, "churn": OFFER, "propensity": OFFER},
        }
        | sections
    )


@pytest.fixture
def source() -> Iterator[OfflineStore]:
    values = ", ".join(
        f"('{name}', to_timestamp({CUTOFF + day * DAY_S!r}), '{kind}', {'NULL' if amount is None else amount})"
        for name, history in HISTORY.items()
        for day, kind, amount in history
    )
    query = f"SELECT * FROM (VALUES {values}) AS t (customer_id, event_time, event_type, amount)"
    with OfflineStore(Source(events=query)) as opened:
        yield opened


def labels(rows: Rows) -> dict[str, tuple[bool, bool, float, float]]:
    labelled = zip(rows.churn, rows.propensity, rows.spend, rows.recency_days, strict=True)
    values = [(bool(churn), bool(buys), float(spend), float(away)) for churn, buys, spend, away in labelled]
    return dict(zip(rows.customer_id.tolist(), values, strict=True))


def test_labels_are_those_of_the_contract_to_the_second(source: OfflineStore) -> None:
    result = labels(build_rows(source, LAYOUT, config(), [CUTOFF]))
    assert result.keys() == EXPECTED.keys()
    for name, expected in EXPECTED.items():
        assert result[name] == pytest.approx(expected), name


def test_a_row_carries_the_state_of_its_own_customer(source: OfflineStore) -> None:
    rows = build_rows(source, LAYOUT, config(), [CUTOFF])
    np.testing.assert_allclose(-rows.state[:, 0] / DAY_S, rows.recency_days, rtol=1e-9)
    counts = dict(zip(rows.customer_id.tolist(), rows.state[:, 1].tolist(), strict=True))
    assert counts["back on the last second of 28 days"] == pytest.approx(2 ** (-2 / 28))
    assert counts["bought twice, gave one back"] == pytest.approx(2 ** (-50 / 28) + 2 ** (-5 / 28))


def test_each_label_has_its_event_and_horizon_from_the_config(source: OfflineStore) -> None:
    settings = config(
        churn={"event": "view", "horizon_days": 8, "active_days": 2},
        propensity={"event": "purchase", "horizon_days": 1},
        economics={"event": "view", "horizon_days": 3, "margin": 0.3, "churn": OFFER, "propensity": OFFER},
    )
    assert labels(build_rows(source, LAYOUT, settings, [CUTOFF])) == {"only looked": (True, True, 0.0, 1.0)}
    later = labels(build_rows(source, LAYOUT, settings, [CUTOFF + 1.5 * DAY_S]))
    assert later == {"looked afterwards": (True, False, 0.0, 0.5)}


def test_rows_of_many_cut_offs_are_those_of_each(source: OfflineStore) -> None:
    cutoffs = [CUTOFF - 30 * DAY_S, CUTOFF, CUTOFF + 30 * DAY_S]
    steps: list[None] = []
    rows = build_rows(source, LAYOUT, config(), cutoffs, lambda: steps.append(None))
    assert len(steps) == 3
    assert len(rows) == sum(len(rows.at([cutoff])) for cutoff in cutoffs)
    for cutoff in cutoffs:
        alone = build_rows(source, LAYOUT, config(), [cutoff])
        several = rows.at([cutoff])
        for name, column in vars(several).items():
            if name == "state":  # decayed in other steps, so that the last bits may differ
                np.testing.assert_allclose(column, alone.state, rtol=1e-12)
            elif name != "group":
                np.testing.assert_array_equal(column, getattr(alone, name))
        assert len(set(zip(several.customer_id, several.group, strict=True))) == len(set(several.group.tolist()))
    # A group is a customer, at whatever cut-off.
    assert (
        len(set(zip(rows.customer_id, rows.group, strict=True))) == len(set(rows.customer_id)) == rows.group.max() + 1
    )


def test_a_label_whose_horizon_ends_after_the_data_is_not_known(source: OfflineStore) -> None:
    end = source.summary.end
    known = build_rows(source, LAYOUT, config(), [end - 28 * DAY_S])
    assert len(known)
    assert all(np.isfinite(known.label(target)).all() for target in ("churn", "propensity", "spend"))
    # A second later the 28 days of churn and spend reach beyond the end, and the 7 of propensity do not.
    partly = build_rows(source, LAYOUT, config(), [end - 28 * DAY_S + 1])
    assert len(partly) == len(known)
    assert np.isnan(partly.churn).all()
    assert np.isnan(partly.spend).all()
    assert np.isfinite(partly.propensity).all()
    later = build_rows(source, LAYOUT, config(), [end - 7 * DAY_S + 1])
    assert len(later)
    assert np.isnan(later.propensity).all()
    assert np.isfinite(later.recency_days).all()


def test_customers_of_the_test_do_not_decide_how_many_are_sampled() -> None:
    # 2,000 customers buy before the training cut-off. Before the test everybody buys, or only one does.
    def sampled(test_buyers: int, newest_known: float | None) -> int:
        early = f"SELECT 'c' || i AS customer_id, to_timestamp({CUTOFF - DAY_S!r}) AS event_time FROM range(2000) t(i)"
        late = early.replace(repr(CUTOFF - DAY_S), repr(CUTOFF + 59 * DAY_S)).replace("2000", str(test_buyers))
        query = f"SELECT *, 'purchase' AS event_type, 1.0 AS amount FROM ({early} UNION ALL {late})"
        settings = config(churn={"horizon_days": 28, "active_days": 7}, evaluation={"most_rows": 1000})
        with OfflineStore(Source(events=query)) as opened:
            cutoffs = [CUTOFF, CUTOFF + 60 * DAY_S]
            rows = build_rows(opened, LAYOUT, settings, cutoffs, newest_known=newest_known)
        return len(rows.at([CUTOFF]))

    assert sampled(2000, CUTOFF) == sampled(1, CUTOFF) == pytest.approx(500, rel=0.2)
    # Counted at the newest cut-off, the sample would depend on it.
    assert sampled(2000, None) == pytest.approx(500, rel=0.2)
    assert sampled(1, None) == 2000


def test_a_cut_off_before_everything_has_no_rows(source: OfflineStore) -> None:
    rows = build_rows(source, LAYOUT, config(), [CUTOFF - 1000 * DAY_S])
    assert len(rows) == 0
    assert rows.state.shape == (0, 3)


def test_what_a_win_brings_and_what_the_customer_spent_before() -> None:
    # Days from the cut-off: the horizon of propensity is 7 days, that of churn 28.
    history = [(-50, 30.0), (-40, 12.0), (-2, 18.0), (3, 10.0), (5, 20.0), (20, 70.0)]
    values = ", ".join(
        f"('{name}', to_timestamp({CUTOFF + day * DAY_S!r}), 'purchase', {amount})"
        for name, purchases in {"stays": history, "leaves": history[:3], "end": [(40, 1.0)]}.items()
        for day, amount in purchases
    )
    query = f"SELECT * FROM (VALUES {values}) AS t (customer_id, event_time, event_type, amount)"
    with OfflineStore(Source(events=query)) as opened:
        rows = build_rows(opened, LAYOUT, config(), [CUTOFF])
    assert rows.customer_id.tolist() == ["leaves", "stays"]
    np.testing.assert_array_equal(rows.stay_spend, [np.nan, 100.0])
    np.testing.assert_array_equal(rows.purchase_amount, [np.nan, 15.0])
    # Two of the 28-day spans before have purchases: the latest one and the one before it.
    assert rows.kept_windows.tolist() == [2.0, 2.0]
    assert rows.tenure_days.tolist() == [50.0, 50.0]
    assert rows.monetary.tolist() == [60.0, 60.0]


def test_a_purchase_of_propensity_without_spend_is_worth_nothing() -> None:
    values = ", ".join(
        f"('a', to_timestamp({CUTOFF + day * DAY_S!r}), '{kind}', {amount})"
        for day, kind, amount in [(-2, "purchase", 18.0), (3, "view", "NULL"), (40, "purchase", 9.0)]
    )
    settings = config(propensity={"event": "view", "horizon_days": 7})
    query = f"SELECT * FROM (VALUES {values}) AS t (customer_id, event_time, event_type, amount)"
    with OfflineStore(Source(events=query)) as opened:
        rows = build_rows(opened, LAYOUT, settings, [CUTOFF])
    assert rows.propensity.tolist() == [1.0]
    assert rows.purchase_amount.tolist() == [0.0]
