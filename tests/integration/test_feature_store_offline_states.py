"""States as of any times say what folding the same events one by one says, and never look into the future."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_store.config import Source
from feature_store.definitions import Feature
from feature_store.errors import InputError
from feature_store.offline import point_in_time
from feature_store.offline.point_in_time import sample_condition
from feature_store.offline.store import OfflineStates, OfflineStore
from feature_store.state.events import Event
from feature_store.state.layout import DAY_S, StateLayout
from feature_store.timestamps import utc_text

FEATURES = [
    Feature(name="last", aggregate="latest", event="it's a visit"),
    Feature(name="age", aggregate="attribute"),
    Feature(name="first", aggregate="earliest", event="it's a visit"),
    Feature(name="visits_1d", aggregate="count", event="it's a visit", half_life_days=1),
    Feature(name="spend_30d", aggregate="sum", event="purchase", field="amount", half_life_days=30),
    Feature(name="dwell_7d", aggregate="sum", event="it's a visit", field="duration_s", half_life_days=7.5),
    Feature(name="purchases_200d", aggregate="count", event="purchase", half_life_days=200),
    Feature(name="score", aggregate="attribute"),
    Feature(name="clipped_2d", aggregate="sum", event="purchase", field="amount", half_life_days=2, clip=120.5),
    Feature(name="last_purchase", aggregate="latest", event="purchase"),
]
LAYOUT = StateLayout(FEATURES)
DEARER = settings(max_examples=settings().max_examples // 2)
"""Each example opens a database, so there are half as many as elsewhere."""
START = 1.6e9
IDS = ["c1", "C1", "c10", "Müller", "客户-7", "o'hara", "a b:c", "😀", "z" * 256]


@dataclass(frozen=True)
class Row:
    customer_id: str
    time: float
    kind: str
    amount: float | None
    duration_s: float | None

    @property
    def event(self) -> Event:
        return Event(self.customer_id, self.kind, self.time, self.amount, self.duration_s)


# Few distinct times, so that some coincide; eighths of a second, which DuckDB's microseconds hold exactly.
times = st.integers(0, 40).map(lambda n: START + n * 9 * DAY_S / 8)
numbers = st.none() | st.integers(-100_000, 100_000).map(lambda n: n / 100)
rows = st.builds(Row, st.sampled_from(IDS), times, st.sampled_from(["it's a visit", "purchase", "x"]), numbers, numbers)
histories = st.lists(rows, min_size=1, max_size=30)
attributes = st.dictionaries(st.sampled_from([*IDS, "only known by name"]), st.tuples(numbers, numbers))


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def events_sql(history: Sequence[Row]) -> str:
    values = ", ".join(
        f"({quoted(row.customer_id)}, make_timestamp({round(row.time * 1e6)}), {quoted(row.kind)}, "
        f"{row.amount if row.amount is not None else 'NULL'}, "
        f"{row.duration_s if row.duration_s is not None else 'NULL'})"
        for row in history
    )
    return f"SELECT * FROM (VALUES {values}) AS t (customer_id, event_time, event_type, amount, duration_s)"


def attributes_sql(known: dict[str, tuple[float | None, float | None]]) -> str:
    values = ", ".join(
        f"({quoted(name)}, {', '.join('NULL' if n is None else str(n) for n in pair)})" for name, pair in known.items()
    )
    table = (
        f"(VALUES {values}) AS t (customer_id, age, score)"
        if values
        else "(SELECT '' AS customer_id, 0 AS age, 0 AS score)"
    )
    return f"SELECT customer_id, age::DOUBLE AS age, score::DOUBLE AS score FROM {table}"


@contextmanager
def store(
    history: Sequence[Row], known: dict[str, tuple[float | None, float | None]] | None = None
) -> Iterator[OfflineStore]:
    source = Source(events=events_sql(history), attributes=attributes_sql(known or {}))
    with OfflineStore(source) as opened:
        yield opened


def by_customer(states: OfflineStates) -> dict[str, list[float]]:
    return dict(zip(states.customer_ids.tolist(), states.slots.tolist(), strict=True))


@DEARER
@given(histories, attributes, times)
def test_states_as_of_any_time_equal_the_fold_of_the_events_up_to_it(
    history: list[Row], known: dict[str, tuple[float | None, float | None]], as_of: float
) -> None:
    with store(history, known) as source:
        result = by_customer(source.states(LAYOUT, as_of))
    past = [row for row in history if row.time <= as_of]
    assert set(result) == {row.customer_id for row in past} | set(known)
    for customer_id, slots in result.items():
        ours = [row.event for row in past if row.customer_id == customer_id]
        times, states = LAYOUT.fold(np.array([START]), LAYOUT.identity[np.newaxis], [0] * len(ours), ours)
        expected = LAYOUT.advance(states[0], as_of - times[0])
        expected[[1, 7]] = [math.nan if n is None else n for n in known.get(customer_id, (None, None))]
        np.testing.assert_allclose(slots, expected, rtol=1e-6, atol=1e-9)


@DEARER
@given(histories, times)
def test_no_row_of_the_future_is_in_a_feature(history: list[Row], as_of: float) -> None:
    past = [row for row in history if row.time <= as_of]
    if not past:
        return
    with store(history) as whole, store(past) as cut:
        then, now = by_customer(whole.states(LAYOUT, as_of)), by_customer(cut.states(LAYOUT, as_of))
    assert then.keys() == now.keys()
    for customer_id, slots in then.items():
        np.testing.assert_allclose(slots, now[customer_id], rtol=1e-12, atol=1e-9)


@DEARER
@given(histories, attributes, st.sets(times, min_size=1, max_size=5).map(sorted), st.sampled_from([2, 1000]))
def test_states_at_many_cutoffs_are_those_at_each(
    history: list[Row], known: dict[str, tuple[float | None, float | None]], cutoffs: list[float], at_once: int
) -> None:
    with store(history, known) as source, pytest.MonkeyPatch.context() as patch:
        alone = [source.states(LAYOUT, cutoff) for cutoff in cutoffs]
        patch.setattr(point_in_time, "MAX_EVENTS", at_once)
        together = list(source.states_at(LAYOUT, cutoffs))
    for item, other in zip(alone, together, strict=True):
        assert item.customer_ids.tolist() == other.customer_ids.tolist()
        # Amounts of up to 1000 that cancel out leave rounding behind.
        np.testing.assert_allclose(other.slots, item.slots, rtol=1e-9, atol=1e-10)


MANY = """SELECT 'c' || (hash(i) % 97) AS customer_id, event_type,
    make_timestamp(1600000000000000 + micros) AS event_time,
    CASE WHEN hash(i, 3) % 5 > 0 THEN (hash(i, 4) % 2000001)::BIGINT / 7 - 100000 END AS amount, 3.3 AS duration_s
    FROM (SELECT i, ['it''s a visit', 'purchase', 'x'][1 + (hash(i, 1) % 3)::BIGINT] AS event_type,
        (hash(i, 2) % 20000)::BIGINT * 500000000 AS micros FROM range({rows}) AS t (i))"""
ORDERS = (("i", 1), ("i", 2), ("hash(i, 5)", 4), ("hash(i, 5)", 1), ("-i", 2))
"""Orders of rows, and numbers of threads."""


def bits(source: OfflineStore, cutoffs: Sequence[float]) -> str:
    """Of states at each cut-off and at all of them."""
    result = [source.states(LAYOUT, cutoff) for cutoff in cutoffs] + list(source.states_at(LAYOUT, cutoffs))
    seen = hashlib.sha256()
    for states in result:
        seen.update(repr(states.customer_ids.tolist()).encode() + states.slots.tobytes())
    return seen.hexdigest()


# DuckDB's threads share the work by groups of 122,880 rows.
@pytest.mark.parametrize(
    ("rows", "orders"), [(150_000, ORDERS[::2]), pytest.param(300_000, ORDERS, marks=pytest.mark.full)]
)
@pytest.mark.parametrize("at_once", [30_000, 10**9])
def test_states_are_the_same_to_the_bit_whatever_the_threads_and_the_order_of_rows(
    at_once: int, rows: int, orders: Sequence[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(point_in_time, "MAX_EVENTS", at_once)
    cutoffs = [START + days * DAY_S for days in (10.2, 50.0, 115.74)]
    known = "SELECT 'c1' AS customer_id, 7 AS age, 0.1 AS score"
    result = set()
    for order, threads in orders:
        source = Source(events=f"{MANY.format(rows=rows)} ORDER BY {order}", attributes=known)
        with OfflineStore(source, threads=threads) as opened:
            result.add(bits(opened, cutoffs))
    assert len(result) == 1


def test_an_event_at_the_moment_of_a_cutoff_belongs_to_it_alone() -> None:
    history = [Row("a", START, "purchase", 5.0, None), Row("a", START + DAY_S, "purchase", 7.0, None)]
    layout = StateLayout([FEATURES[4].model_copy(update={"half_life_days": 1})])
    with store(history) as source:
        result = [
            item.slots.tolist() for item in source.states_at(layout, [START, START + DAY_S - 1e-6, START + DAY_S])
        ]
    assert result == [[[5.0]], [[pytest.approx(2.5)]], [[9.5]]]


def test_nobody_is_known_before_the_first_event() -> None:
    with store([Row("a", START, "x", 1.0, None), Row("b", START + 5, "x", 1.0, None)]) as source:
        result = [item.customer_ids.tolist() for item in source.states_at(LAYOUT, [START - 1, START, START + 5])]
    assert result == [[], ["a"], ["a", "b"]]


def test_events_of_every_type_make_a_customer_known() -> None:
    with store([Row("a", START, "x", 1.0, None)]) as source:
        for layout in (LAYOUT, StateLayout([FEATURES[1]]), StateLayout([FEATURES[4]])):
            np.testing.assert_array_equal(source.states(layout, START).slots, [layout.identity])


@pytest.mark.parametrize("at_once", [2_000, 10**9])
def test_a_sample_holds_the_states_of_the_same_customers_at_any_time(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(point_in_time, "MAX_EVENTS", at_once)
    cutoffs = [START + 40 * DAY_S, START + 100 * DAY_S]
    ids = [f"c{number}" for number in range(97)]
    few = sample_condition(0.3).split("'")[1]
    expected = sorted(name for name in ids if hashlib.md5(name.encode()).hexdigest() < few)
    assert 10 < len(expected) < 50
    with OfflineStore(
        Source(events=f"{MANY.format(rows=20_000)}", attributes="SELECT 'c0' AS customer_id, 1 AS age, 2 AS score")
    ) as source:
        everybody = list(source.states_at(LAYOUT, cutoffs))
        several = list(source.states_at(LAYOUT, cutoffs, customers=sample_condition(0.3)))
        assert [
            len(states.customer_ids) for states in source.states_at(LAYOUT, cutoffs, customers=sample_condition(0))
        ] == [
            0,
            0,
        ]
        assert len(next(source.states_at(LAYOUT, cutoffs, customers=sample_condition(1))).customer_ids) == len(ids)
    for whole, part in zip(everybody, several, strict=True):
        assert part.customer_ids.tolist() == expected
        rows = np.searchsorted(whole.customer_ids.astype(str), expected)
        np.testing.assert_allclose(part.slots, whole.slots[rows], rtol=1e-9, atol=1e-6)


def test_what_is_tiny_keeps_its_digits_beside_what_is_huge() -> None:
    layout = StateLayout([FEATURES[4].model_copy(update={"half_life_days": 1})])
    history = [Row("small", START, "purchase", 1e-9, None), Row("huge", START, "purchase", 1e12, None)]
    cutoffs = [START + days * DAY_S for days in (1, 500, 950)]
    with store(history) as source:
        result = [states.slots[:, 0] for states in source.states_at(layout, cutoffs)]
    expected = [[1e12 * 2.0**-days, 1e-9 * 2.0**-days] for days in (1, 500, 950)]
    np.testing.assert_allclose(result, expected, rtol=1e-12)


def test_customers_may_be_named_by_any_sql() -> None:
    with store([Row(name, START, "x", 1.0, None) for name in IDS]) as source:
        (result,) = source.states_at(LAYOUT, [START], customers="strlen(customer_id) = 2")
    assert result.customer_ids.tolist() == ["C1", "c1"]


def test_states_come_one_cutoff_at_a_time_and_beside_each_other() -> None:
    with store([Row("a", START, "purchase", 4.0, None), Row("b", START + 9, "purchase", 5.0, None)]) as source:
        item, other = (source.states_at(LAYOUT, [START, START + 9]) for _ in range(2))
        assert next(item).customer_ids.tolist() == next(other).customer_ids.tolist() == ["a"]
        del other
        assert next(item).customer_ids.tolist() == ["a", "b"]


@pytest.mark.parametrize("cutoffs", [[], [2.0, 1.0], [1.0, 1.0]])
def test_cutoffs_that_do_not_ascend_are_refused(cutoffs: list[float]) -> None:
    with store([Row("a", START, "x", 1.0, None)]) as source, pytest.raises(ValueError, match="ascend"):
        source.states_at(LAYOUT, cutoffs)


def test_an_attribute_that_is_not_there_is_told_before_anything_is_read() -> None:
    events = "SELECT 'a' AS customer_id, TIMESTAMP '2024-01-01' AS event_time, 'x' AS event_type"
    with OfflineStore(Source(events=events)) as source, pytest.raises(InputError, match="no column"):
        source.states_at(LAYOUT, [START])


@pytest.mark.parametrize("ids", [["a", None], ["a", ""], ["a", "b\x07"], ["a", None, "b\u200b", "z" * 257, None]])
def test_rows_of_ids_that_cannot_be_used_are_no_events(ids: list[str | None]) -> None:
    values = ", ".join("(NULL)" if name is None else f"({quoted(name)})" for name in ids)
    table = f"(VALUES {values}) AS t (customer_id)"
    events = f"SELECT customer_id, TIMESTAMP '2024-01-01' AS event_time, 'x' AS event_type FROM {table}"
    with OfflineStore(Source(events=events)) as source:
        assert source.connection.execute("SELECT customer_id FROM events").fetchall() == [("a",)]
        assert source.summary.left_out == {"without a usable customer_id": len(ids) - 1}
        assert source.states(StateLayout([FEATURES[4]]), source.summary.end).customer_ids.tolist() == ["a"]


def test_ids_come_in_ascending_order_of_their_characters() -> None:
    with store([Row(name, START, "purchase", 1.0, None) for name in IDS]) as source:
        assert source.states(LAYOUT, START).customer_ids.tolist() == sorted(IDS)


def test_an_event_at_the_very_moment_counts_and_one_a_microsecond_later_does_not() -> None:
    with OfflineStore(
        Source(
            events="SELECT 'a' AS customer_id, unnest([TIMESTAMP '2024-01-01 00:00:00', "
            "TIMESTAMP '2024-01-01 00:00:00.000001']) AS event_time, 'purchase' AS event_type, 1.0 AS amount"
        )
    ) as source:
        layout = StateLayout([FEATURES[4]])
        assert source.states(layout, source.summary.start).slots.tolist() == [[1.0]]
        assert source.states(layout, source.summary.end).slots[0, 0] == pytest.approx(2.0)


@pytest.mark.parametrize("amount", ["'nan'::DOUBLE", "'inf'::DOUBLE", "'-inf'::DOUBLE", "NULL"])
def test_an_amount_that_is_no_number_counts_as_nothing(amount: str) -> None:
    events = f"""
        SELECT 'a' AS customer_id, TIMESTAMP '2024-01-01' AS event_time, 'purchase' AS event_type, {amount} AS amount
        UNION ALL SELECT 'a', TIMESTAMP '2024-01-01', 'purchase', 7.0"""
    with OfflineStore(Source(events=events)) as source:
        result = source.states(StateLayout([FEATURES[4], FEATURES[6]]), source.summary.end)
    assert result.slots.tolist() == [[7.0, 2.0]]


@pytest.mark.parametrize(
    "kind",
    [
        "DOUBLE",
        "FLOAT",
        "DECIMAL(9, 2)",
        "HUGEINT",
        *(pytest.param(kind) for kind in ("INTEGER", "BIGINT", "UTINYINT", "BOOLEAN")),
    ],
)
def test_an_attribute_of_any_numeric_type_may_be_missing(kind: str) -> None:
    source = Source(
        events="SELECT unnest(['a', 'b']) AS customer_id, TIMESTAMP '2024-01-01' AS event_time, 'x' AS event_type",
        attributes=f"SELECT 'a' AS customer_id, 1::{kind} AS age UNION ALL SELECT 'b', NULL",
    )
    with OfflineStore(source) as opened:
        result = opened.states(StateLayout([FEATURES[1]]), opened.summary.end)
    np.testing.assert_array_equal(result.slots, [[1.0], [np.nan]])


@pytest.mark.usefixtures("in_tokyo")
def test_times_with_a_zone_and_of_any_precision_are_the_same_moment() -> None:
    for moment in (
        "TIMESTAMPTZ '2024-01-01 02:00:00+02'",
        "TIMESTAMP_NS '2024-01-01'",
        "TIMESTAMP_MS '2024-01-01'",
        "TIMESTAMP_S '2024-01-01'",
        "to_timestamp(1704067200)",
        "to_timestamp(1704067200)::TIMESTAMP",
        "TIMESTAMP '2024-01-01'",
    ):
        events = f"SELECT 'a' AS customer_id, {moment} AS event_time, 'x' AS event_type"
        with OfflineStore(Source(events=events)) as source:
            assert utc_text(source.summary.end) == "2024-01-01 00:00:00 UTC", moment


def test_a_summary_says_what_was_read() -> None:
    history = [
        Row("a", START, "x", None, None),
        Row("b", START + 5, "x", None, None),
        Row("a", START + 9, "x", 1.0, None),
    ]
    with store(history) as source:
        assert (source.summary.events, source.summary.customers) == (3, 2)
        assert (source.summary.start, source.summary.end) == (START, START + 9)
        assert source.summary.left_out == {}


CHANGES = """SELECT * FROM (VALUES
    ('a', TIMESTAMP '1970-01-01' + to_seconds({start}), 1, 'x'),
    ('a', TIMESTAMP '1970-01-01' + to_seconds({start} + 200), 2, NULL),
    ('b', NULL, 5, 'y'),
    ('c', TIMESTAMP '1970-01-01' + to_seconds({start} + 100), 7, 'x'),
    ('a', TIMESTAMP '2999-01-01', 9, 'z')
) AS changes(customer_id, valid_from, age, town)""".format(start=int(START))
TIMED = StateLayout(
    [
        Feature(name="age", aggregate="attribute"),
        Feature(name="town", aggregate="attribute", categories=("x", "y")),
        Feature(name="latest", aggregate="latest", event="buy"),
    ]
)


def event_at(customer_id: str, seconds: float) -> str:
    moment = f"TIMESTAMP '1970-01-01' + to_milliseconds({int((START + seconds) * 1000)})"
    return f"SELECT '{customer_id}' AS customer_id, {moment} AS event_time, 'buy' AS event_type"


def states_by_name(states: OfflineStates) -> dict[str, list[float]]:
    return dict(zip(states.customer_ids.tolist(), states.slots.tolist(), strict=True))


def test_attributes_with_times_are_those_that_held_at_each_cut_off() -> None:
    with OfflineStore(Source(events=event_at("d", 150), attributes=CHANGES)) as source:
        assert source.attributes_have_times
        assert set(source.attribute_columns) == {"customer_id", "age", "town"}
        cutoffs = [START - 1, START, START + 99, START + 150, START + 200]
        before, start, still, later, last = map(states_by_name, source.states_at(TIMED, cutoffs))
        nan = float("nan")
        none = -np.inf
        np.testing.assert_equal(before, {"b": [5, 1, none]})
        np.testing.assert_equal(start, {"a": [1, 0, none], "b": [5, 1, none]})
        np.testing.assert_equal(still, start)
        assert set(later) == {"a", "b", "c", "d"}
        np.testing.assert_equal(later["c"], [7, 0, none])
        np.testing.assert_equal(later["d"], [nan, nan, 0])
        np.testing.assert_equal(last["a"], [2, nan, none])  # the newest row holds as a whole
        # Online and in the audit: the newest values, none of the future.
        newest = states_by_name(source.states(TIMED, START))
        np.testing.assert_equal(newest["a"], [2, nan, none])
        rows = source.connection.execute("SELECT customer_id, age FROM attributes ORDER BY ALL").fetchall()
        assert rows == [("a", 2), ("b", 5), ("c", 7)]


def test_each_customer_can_have_a_time_of_its_own() -> None:
    events = " UNION ALL ".join([event_at("a", 10), event_at("a", 50), event_at("b", 10), event_at("d", 60)])
    names, moments = ["d", "b", "a", "nobody"], [START + 59, START + 10, START + 200, START]
    with OfflineStore(Source(events=events, attributes=CHANGES)) as source:
        own = source.states_at_own_times(TIMED, names, moments)
        for name, moment, slots in zip(names, moments, own, strict=True):
            at_that_time = states_by_name(next(source.states_at(TIMED, [moment])))
            np.testing.assert_allclose(slots, at_that_time.get(name, TIMED.identity), atol=1e-6)
        assert own[2].tolist()[::2] == [2, -150]
    with OfflineStore(Source(events=events, attributes="SELECT 'a' AS customer_id, 1 AS age, 'x' AS town")) as source:
        # Values without a time may be later than the customer's own.
        assert np.isnan(source.states_at_own_times(TIMED, names, moments)[:, :2]).all()


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ("SELECT 'a' AS customer_id, 5 AS valid_from", "valid_from is INTEGER, not a TIMESTAMP or DATE"),
        ("SELECT 'a' AS customer_id, DATE '2020-01-01' AS valid_from FROM range(2)", "1 rows repeat a customer_id and"),
        ("SELECT 'a' AS customer_id FROM range(2)", "or if these are changes, their time AS valid_from"),
    ],
)
def test_changes_that_cannot_be_used_are_refused(attributes: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        OfflineStore(Source(events=event_at("a", 1), attributes=attributes))


def test_changes_of_an_alias_count_for_the_customer() -> None:
    with OfflineStore(Source(events=event_at("a", 10), attributes=CHANGES)) as source:
        source.connection.execute("INSERT INTO aliases VALUES ('c', 'a')")
        source.apply_aliases()
        early, late = map(states_by_name, source.states_at(TIMED, [START + 150, START + 250]))
        assert early["a"][0] == 7  # the larger one, as states merge
        assert late["a"][0] == 7
        assert "c" not in late
