"""What live events change: each counts once, is capped, clipped and logged as promised, and disturbs nobody else."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store.definitions import Feature, Interests
from feature_store.state.events import HOUR_S, Event, Rules
from feature_store.state.folding import (
    ACCEPTED,
    DUPLICATE,
    FORGOTTEN,
    LOST,
    UNREAD,
    UNREADABLE,
    WITHHELD,
    CustomerChange,
    EventFolder,
    Outcome,
    StoredCustomer,
    Verdict,
)
from feature_store.state.layout import DAY_S, State, StateBatch, StateLayout
from feature_store.state.log_entries import CAPPED
from feature_store.state.profile import Interest, Profile

NOW = 1_800_000_000.0
LAYOUT = StateLayout(
    [
        Feature(name="visits", aggregate="count", event="visit", half_life_days=7),
        Feature(name="spend", aggregate="sum", event="purchase", field="amount", half_life_days=30, clip=100.0),
        Feature(name="dwell", aggregate="sum", event="visit", field="duration_s", half_life_days=7, clip=600.0),
        Feature(name="last", aggregate="latest", event="purchase"),
    ]
)
INTERESTS = Interests()
RULES = Rules()


@dataclass
class Shop:
    """Customers as stored, and how a fold changes them."""

    rules: Rules = RULES
    interests: Interests = INTERESTS
    states: dict[str, bytes] = field(default_factory=dict)
    records: dict[str, bytes] = field(default_factory=dict)
    log: list[Any] = field(default_factory=list)

    def __call__(self, *events: Event, now: float = NOW) -> list[Outcome]:
        """What becomes of events that arrive together, in their order."""
        ids = list(dict.fromkeys(event.customer_id for event in events))
        known = [StoredCustomer(name, [self.states.get(name)], self.records.get(name)) for name in ids]
        ours = [[event for event in events if event.customer_id == name] for name in ids]
        changes = EventFolder([LAYOUT], self.interests, self.rules).fold(known, ours, now)
        for name, change in zip(ids, changes, strict=True):
            self._store(name, change)
        left = {name: iter(change.outcomes) for name, change in zip(ids, changes, strict=True)}
        return [next(left[event.customer_id]) for event in events]

    def _store(self, name: str, change: CustomerChange) -> None:
        assert (change.profile is not None) == bool(change.log)
        assert bool(change.states) == any(not json.loads(item)[-1] for item in change.log)
        if change.profile is not None:
            self.records[name] = change.profile
        if change.states:
            (state,) = change.states
            assert state is not None
            self.states[name] = state
        self.log += [json.loads(item) for item in change.log]

    def record(self, name: str = "c") -> Profile:
        return Profile.unpack(self.records[name])

    def state(self, name: str = "c") -> StateBatch:
        return LAYOUT.unpack([self.states.get(name)])

    def slots(self, name: str = "c") -> list[float]:
        result = self.state(name)
        assert result.valid.all()
        return [float(value) for value in result.slots[0]]


def visit(at: float = 0.0, event_id: str = "", name: str = "c", **more: Any) -> Event:
    return Event(name, "visit", NOW + at, event_id=event_id, **more)


def purchase(amount: float | None = None, at: float = 0.0, name: str = "c", **more: Any) -> Event:
    return Event(name, "purchase", NOW + at, amount, **more)


def verdicts(outcomes: Sequence[Outcome]) -> list[str]:
    """Verdicts, and after a colon the name of what a guard or a refusal says."""
    return [outcome.verdict.value + (":" + outcome.problem.reason if outcome.problem else "") for outcome in outcomes]


# --- folding --------------------------------------------------------------------------------------------------------


def test_an_event_changes_state_record_and_log() -> None:
    shop = Shop()
    assert shop(purchase(40.0, item_id="lamp", channel="web", event_id="e1")) == [ACCEPTED]
    assert shop.slots() == [0.0, 40.0, 0.0, 0.0]
    assert shop.state().as_of[0] == NOW
    record = shop.record()
    assert (record.first_seen, record.last_seen, record.channels) == (NOW, NOW, {"web": 1})
    assert record.interests == [Interest("lamp", 0, 0.0, NOW)]
    assert shop.log == [["e", "c", NOW, "purchase", 40.0, None, "lamp", "web", "e1", None, ""]]


def test_a_new_customers_state_is_as_of_the_newest_event() -> None:
    shop = Shop()
    shop(visit(-50), visit(-10), visit(-30))
    assert shop.state().as_of[0] == NOW - 10
    assert shop.slots()[0] == pytest.approx(3.0, rel=1e-3)


def test_a_loaded_state_is_folded_into_and_keeps_its_time_where_events_are_late() -> None:
    shop = Shop(states={"c": LAYOUT.pack(State(NOW, np.array([4.0, 8.0, 0.0, -3.0]), position=9))})
    shop(purchase(16.0, at=-2 * DAY_S))
    assert shop.state().as_of[0] == NOW
    assert shop.slots() == pytest.approx([4.0, 8.0 + 16.0 * 2 ** (-2 / 30), 0.0, -3.0])
    assert shop.record().last_seen == NOW - 2 * DAY_S


def test_what_is_stored_has_no_position_yet() -> None:
    shop = Shop(states={"c": LAYOUT.pack(State(NOW, LAYOUT.identity, position=9))})
    shop(visit())
    assert shop.states["c"][8:16] == shop.records["c"][8:16] == bytes(8)


def test_an_event_of_a_type_that_no_feature_knows_is_recorded_all_the_same() -> None:
    shop = Shop()
    assert shop(Event("c", "newsletter", NOW, channel="mail")) == [UNREAD]
    assert shop.record().channels == {"mail": 1}
    assert shop.state().as_of[0] == NOW
    assert len(shop.log) == 1


def test_an_order_of_arrival_cut_anywhere_gives_the_same_customers() -> None:
    events = [
        *(visit(-n * 1000.0, f"v{n}", name=f"c{n % 3}", item_id=f"i{n % 4}", channel="web") for n in range(20)),
        *(purchase(5.0 * n, -n * 900.0, name=f"c{n % 2}", event_id=f"p{n}") for n in range(10)),
    ]
    whole, apart = Shop(), Shop()
    whole(*events)
    for event in reversed(events):
        apart(event)
    for name in ("c0", "c1", "c2"):
        np.testing.assert_allclose(whole.slots(name), apart.slots(name), rtol=1e-12)
        ours, other = whole.record(name), apart.record(name)
        assert (ours.first_seen, ours.last_seen, ours.channels) == (other.first_seen, other.last_seen, other.channels)
        assert {(i.item_id, i.views) for i in ours.interests} == {(i.item_id, i.views) for i in other.interests}
        assert sorted(ours.counted.ids) == sorted(other.counted.ids)
    assert sorted(map(str, whole.log)) == sorted(map(str, apart.log))


def test_only_views_and_purchases_of_an_item_make_interests() -> None:
    shop = Shop(interests=Interests(view="look", purchase="order"))
    shop(
        Event("c", "look", NOW, item_id="lamp"),
        Event("c", "look", NOW),
        Event("c", "visit", NOW, item_id="sofa"),
        Event("c", "look", NOW, item_id="vase"),
        Event("c", "order", NOW, item_id="vase"),
    )
    assert [(i.item_id, i.views) for i in shop.record().interests] == [("lamp", 1), ("vase", 0)]


# --- once -----------------------------------------------------------------------------------------------------------


def test_an_event_counts_once_within_a_batch_and_across_batches() -> None:
    shop = Shop()
    assert shop(visit(0, "a"), visit(0, "a"), visit(0, "b")) == [ACCEPTED, DUPLICATE, ACCEPTED]
    assert shop(visit(0, "b"), visit(0, "c"), visit(0, "a"), visit(0, "c")) == [
        *(DUPLICATE, ACCEPTED, DUPLICATE, DUPLICATE),
    ]
    assert shop.slots()[0] == 3.0
    assert [item[8] for item in shop.log] == ["a", "b", "c"]


def test_a_duplicate_alone_changes_and_logs_nothing() -> None:
    shop = Shop()
    shop(visit(0, "a"))
    before = dict(shop.states), dict(shop.records), list(shop.log)
    assert shop(visit(-5, "a", item_id="other")) == [DUPLICATE]
    assert (shop.states, shop.records, shop.log) == before


def test_events_without_an_id_all_count() -> None:
    shop = Shop()
    assert shop(*[visit()] * 3) == [ACCEPTED] * 3
    assert shop(visit()) == [ACCEPTED]
    assert shop.slots()[0] == 4.0


def test_an_id_is_the_customers_own() -> None:
    shop = Shop()
    assert shop(visit(0, "a", name="c"), visit(0, "a", name="d")) == [ACCEPTED, ACCEPTED]


def test_an_event_is_known_again_as_long_as_it_may_come_again() -> None:
    shop = Shop()
    shop(visit(0, "a"))
    last = RULES.max_lateness_s  # then it is too late, and refused before
    assert shop(visit(0, "a"), now=NOW + last) == [DUPLICATE]
    shop(visit(last, "z"), now=NOW + last)
    assert shop(visit(0, "a"), now=NOW + last + HOUR_S) == [DUPLICATE]  # the clock of another server is behind


def test_what_cannot_come_again_is_forgotten() -> None:
    shop = Shop()
    shop(*(visit(-n * HOUR_S, f"{n}") for n in range(50)))
    assert len(shop.record().counted) == 50
    later = NOW + RULES.max_lateness_s + 3 * HOUR_S
    shop(visit(later - NOW, "z"), now=later)
    assert len(shop.record().counted) == 1
    assert shop.slots()[0] > 30


# --- caps -----------------------------------------------------------------------------------------------------------

CAPS = [
    pytest.param(Rules(cap_type_hour=3), ["visit"], [0.0], "3 events of one type and customer in an hour", id="type"),
    pytest.param(Rules(cap_hour=3), ["visit", "purchase"], [0.0], "3 events of a customer in an hour", id="hour"),
    pytest.param(
        *(Rules(cap_total=3), ["visit", "hello"], [0.0, -5 * HOUR_S, -70 * HOUR_S], "3 events of a customer in 72 h"),
        id="total",
    ),
]


@pytest.mark.parametrize(("rules", "kinds", "times", "bound"), CAPS)
@pytest.mark.parametrize("at_once", [True, False])
def test_events_beyond_a_cap_are_logged_with_a_mark_and_not_folded(
    rules: Rules, kinds: list[str], times: list[float], bound: str, *, at_once: bool
) -> None:
    shop = Shop(rules)
    events = [
        Event("c", kinds[n % len(kinds)], NOW + times[n % len(times)], 1.0, item_id=f"i{n}", event_id=f"e{n}")
        for n in range(8)
    ]
    outcomes = shop(*events) if at_once else [shop(event)[0] for event in events]
    assert verdicts(outcomes) == ["accepted"] * 3 + ["accepted:EVENT_CAPPED"] * 5
    assert {outcome.problem for outcome in outcomes if outcome.problem} == {
        ("customer_id", "EVENT_CAPPED", f"there are more than {bound}: the event is archived, but not counted")
    }
    assert [item[-1] for item in shop.log] == [""] * 3 + [CAPPED] * 5
    expected = Shop()
    expected(*events[:3])
    assert shop.slots() == expected.slots()
    assert shop.record() == expected.record()


@pytest.mark.parametrize(("rules", "kinds", "times", "bound"), CAPS)
def test_capped_events_that_are_sent_again_later_stay_capped(
    rules: Rules, kinds: list[str], times: list[float], bound: str
) -> None:
    shop = Shop(rules)
    events = [
        Event("c", kinds[n % len(kinds)], NOW + times[n % len(times)], 1.0, event_id=f"e{n}" if n % 2 else "")
        for n in range(3)
    ]
    extra = Event("c", kinds[0], NOW, 1.0, event_id="extra")
    shop(*events, extra)
    slots = shop.slots()
    for hours in (0.0, 0.5, 1.0, 2.0):  # the oldest may still come again
        (outcome,) = shop(extra, now=NOW + hours * HOUR_S)
        assert outcome.problem is not None
        assert bound in outcome.problem.message
    assert shop.slots() == slots


def test_a_cap_by_the_hour_leaves_other_types_hours_and_customers_alone() -> None:
    shop = Shop(Rules(cap_type_hour=2))
    shop(visit(), visit())
    result = shop(visit(), purchase(1.0), visit(-HOUR_S), visit(HOUR_S), visit(name="d"))
    assert verdicts(result) == ["accepted:EVENT_CAPPED", *["accepted"] * 4]


def test_a_batch_of_capped_events_alone_is_logged_and_changes_nothing() -> None:
    shop = Shop(Rules(cap_hour=1))
    shop(visit())
    before = dict(shop.states), dict(shop.records)
    shop(visit(), purchase(3.0))
    assert (shop.states, shop.records) == before
    assert [item[-1] for item in shop.log] == ["", CAPPED, CAPPED]


def test_duplicates_do_not_use_up_a_cap() -> None:
    shop = Shop(Rules(cap_hour=2))
    assert verdicts(shop(visit(0, "a"), visit(0, "a"), visit(0, "a"), visit(0, "b"))) == [
        *("accepted", "duplicate", "duplicate", "accepted")
    ]


def test_a_duplicate_is_told_as_one_beyond_a_cap_as_well() -> None:
    shop = Shop(Rules(cap_hour=1))
    assert verdicts(shop(visit(0, "a"), visit(0, "a"), visit(0, "b"))) == [
        *("accepted", "duplicate", "accepted:EVENT_CAPPED")
    ]


def test_the_usual_caps_let_pass_what_they_say() -> None:
    shop = Shop()
    outcomes = shop(*(visit(-n % 2 * HOUR_S) for n in range(2 * 305)))
    assert Counter(verdicts(outcomes)) == {"accepted": 600, "accepted:EVENT_CAPPED": 10}


# --- clips ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("amount", [100.01, -100.01, 1e12])
def test_an_amount_beyond_the_clip_is_told_counted_as_the_clip_and_logged_as_it_came(amount: float) -> None:
    shop = Shop()
    (outcome,) = shop(purchase(amount))
    assert outcome.verdict is Verdict.ACCEPTED
    assert outcome.problem == (
        "amount",
        "AMOUNT_CLIPPED",
        "the value is beyond the range of the training data: it is counted as 100",
    )
    assert shop.slots()[1] == math.copysign(100.0, amount)
    assert (shop.log[0][4], shop.log[0][-1]) == (amount, "")


def test_only_what_is_clipped_is_told_as_such() -> None:
    shop = Shop()
    result = shop(purchase(100.0), purchase(), visit(duration_s=600.0), visit(duration_s=601.0), visit(amount=1e6))
    assert verdicts(result) == ["accepted", "accepted", "accepted", "accepted:DURATION_CLIPPED", "accepted"]


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [True, False])
def test_without_consent_nothing_is_recorded_or_logged(*, known: bool) -> None:
    shop = Shop(records={"c": Profile(scoring=False).pack()})
    if known:
        shop.states["c"] = LAYOUT.pack(State(NOW, LAYOUT.identity))
    before = dict(shop.states), dict(shop.records)
    assert shop(visit(), visit(0, "a")) == [Outcome(Verdict.REJECTED, WITHHELD)] * 2
    assert (shop.states, shop.records, shop.log) == (*before, [])


def test_events_are_recorded_where_only_automated_responses_are_not_allowed() -> None:
    shop = Shop(records={"c": Profile(automated_response=False).pack()})
    assert shop(visit()) == [ACCEPTED]
    assert shop.record().automated_response is False


UNUSABLE = [
    pytest.param(b"torn", None, id="torn state"),
    pytest.param(b"", None, id="empty state"),
    pytest.param(StateLayout(LAYOUT.features[:3]).pack(State(NOW, np.zeros(3))), None, id="state of other features"),
    pytest.param(LAYOUT.pack(State(NOW, np.full(4, np.nan))), None, id="state of no numbers"),
    pytest.param(None, b"torn", id="torn record"),
    pytest.param(None, b"", id="empty record"),
    pytest.param(LAYOUT.pack(State(NOW, LAYOUT.identity)), Profile().pack() + b"\0", id="record too long"),
    pytest.param(b"torn", b"torn", id="both"),
    pytest.param(None, Profile(interests=[Interest("x", 1, math.nan, NOW)]).pack(), id="weight that is no number"),
]


@pytest.mark.parametrize(("state", "record"), UNUSABLE)
def test_what_cannot_be_read_is_refused_and_left_as_it_is(state: bytes | None, record: bytes | None) -> None:
    shop = Shop(
        states={} if state is None else {"c": state},
        records={} if record is None else {"c": record},
    )
    before = dict(shop.states), dict(shop.records)
    assert shop(visit(), visit(0, "a")) == [Outcome(Verdict.REJECTED, UNREADABLE)] * 2
    assert (shop.states, shop.records, shop.log) == (*before, [])


@pytest.mark.parametrize(("state", "record"), [*UNUSABLE, pytest.param(None, Profile(scoring=False).pack(), id="no")])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_customer_who_is_refused_disturbs_nobody_else(state: bytes | None, record: bytes | None, place: int) -> None:
    good = [visit(-5, "a", name="new"), purchase(7.0, name="old")]
    alone, beside = Shop(), Shop()
    for shop in (alone, beside):
        shop(purchase(3.0, -60, name="old"))
    if state is not None:
        beside.states["bad"] = state
    if record is not None:
        beside.records["bad"] = record
    assert alone(*good) == [ACCEPTED, ACCEPTED]
    result = beside(*good[:place], visit(name="bad"), *good[place:])
    assert [outcome.verdict for outcome in result if outcome.verdict is not Verdict.ACCEPTED] == [Verdict.REJECTED]
    for name in ("new", "old"):
        assert (beside.states[name], beside.records[name]) == (alone.states[name], alone.records[name])
    assert beside.log == alone.log


def test_a_new_customer_all_of_whose_events_are_capped_is_no_trouble() -> None:
    shop = Shop(Rules(cap_total=0))
    assert verdicts(shop(visit(name="a"), visit(name="b"))) == ["accepted:EVENT_CAPPED"] * 2
    assert shop.states == {}


# --- different servers ----------------------------------------------------------------------------------------------


def test_an_event_whose_id_another_server_has_forgotten_is_not_counted_twice() -> None:
    patient, hasty = Rules(max_lateness_s=100 * HOUR_S), Rules(max_lateness_s=HOUR_S)
    shop = Shop(patient)
    order = purchase(30.0, -50 * HOUR_S, event_id="order")
    assert shop(order) == [ACCEPTED]
    shop.rules = hasty
    assert shop(visit()) == [ACCEPTED]  # this server forgets the order, which it would not accept itself
    shop.rules = patient
    assert shop(order) == [Outcome(Verdict.REJECTED, FORGOTTEN)]
    assert shop(purchase(5.0, -40 * HOUR_S, event_id="later")) == [ACCEPTED]
    assert shop(visit(-60 * HOUR_S)) == [Outcome(Verdict.REJECTED, FORGOTTEN)]


def test_the_same_holds_for_a_server_whose_clock_is_fast() -> None:
    shop = Shop(Rules(max_lateness_s=10 * HOUR_S))
    order = purchase(30.0, -5 * HOUR_S, event_id="order")
    shop(order)
    shop(visit(30 * HOUR_S), now=NOW + 30 * HOUR_S)
    assert shop(order) == [Outcome(Verdict.REJECTED, FORGOTTEN)]
    assert Profile.unpack(shop.record().pack()) == shop.record()


# --- texts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep_text", [True, False])
def test_a_text_is_kept_in_the_log_where_that_is_wanted_and_nowhere_else(*, keep_text: bool) -> None:
    shop = Shop(Rules(keep_text=keep_text, cap_hour=1))
    shop(visit(0, "a", text="too dear"), visit(0, "b", text="too dear"))
    assert [item[9] for item in shop.log] == ["too dear" if keep_text else None] * 2
    assert b"dear" not in shop.states["c"] + shop.records["c"]


# --- all together ---------------------------------------------------------------------------------------------------

events = st.builds(
    Event,
    st.sampled_from(["a", "b", "c"]),
    st.sampled_from(["visit", "purchase", "hello"]),
    st.integers(0, 70).map(lambda hours: NOW - hours * HOUR_S),
    amount=st.none() | st.integers(-300, 300).map(float),
    duration_s=st.none() | st.integers(0, 900).map(float),
    item_id=st.sampled_from(["", "lamp", "sofa"]),
    channel=st.sampled_from(["", "web", "app"]),
    event_id=st.just("") | st.integers(0, 6).map(str),
)


@given(st.data(), st.lists(events, max_size=30), st.integers(1, 6), st.integers(1, 12))
def test_state_log_and_outcomes_tell_the_same_story(
    data: st.DataObject, history: list[Event], cap_hour: int, cap_total: int
) -> None:
    shop, outcomes, left = Shop(Rules(cap_hour=cap_hour, cap_total=cap_total)), [], history
    while left:
        size = data.draw(st.integers(1, len(left)))
        outcomes += shop(*left[:size])
        left = left[size:]
    logged = [item[1:4] + item[8:9] + item[10:] for item in shop.log]
    reported = [
        [e.customer_id, e.event_time, e.event_type, e.event_id or None, CAPPED if "CAPPED" in str(o.problem) else ""]
        for e, o in zip(history, outcomes, strict=True)
        if o.verdict is Verdict.ACCEPTED
    ]
    assert sorted(map(str, logged)) == sorted(map(str, reported))
    for name in ("a", "b", "c"):
        ours = [
            e
            for e, o in zip(history, outcomes, strict=True)
            if e.customer_id == name and o.verdict is Verdict.ACCEPTED and "CAPPED" not in str(o.problem)
        ]
        ids = [event.event_id for event in ours if event.event_id]
        assert len(ids) == len(set(ids))
        assert len(ours) <= cap_total
        assert max(Counter(event.event_time for event in ours).values(), default=0) <= cap_hour
        if not ours:
            assert name not in shop.states
            continue
        as_of, slots = LAYOUT.fold(np.array([-np.inf]), LAYOUT.identity[np.newaxis], [0] * len(ours), ours)
        assert shop.state(name).as_of[0] == as_of[0]
        np.testing.assert_allclose(shop.slots(name), slots[0], rtol=1e-9, atol=1e-9)
        assert shop.record(name).first_seen == min(event.event_time for event in ours)
        assert shop.record(name).last_seen == as_of[0]
        assert shop.record(name).channels == Counter(event.channel for event in ours if event.channel)
        assert len(shop.record(name).counted) == len(ours)


# --- types that no feature reads --------------------------------------------------------------------------------------


def test_a_type_that_no_feature_reads_is_accepted_and_said_to_be_unread() -> None:
    shop = Shop()
    outcomes = shop(*(Event("c", kind, NOW) for kind in ("visit", "search", "view", "search")))
    assert outcomes == [ACCEPTED, UNREAD, ACCEPTED, UNREAD]  # views are of interest
    assert [item[3] for item in shop.log] == ["visit", "search", "view", "search"]
    assert shop.slots()[0] == 1.0


@pytest.mark.parametrize("kind", ["Purchase", "Order Completed", "purchases"])
def test_a_spelling_of_a_type_that_is_read_is_named(kind: str) -> None:
    (outcome,) = Shop()(Event("c", kind, NOW, 5.0))
    assert (outcome.verdict, outcome.is_read) == (Verdict.ACCEPTED, False)
    assert outcome.problem is not None
    assert outcome.problem.reason == "EVENT_TYPE_SIMILAR"
    assert "'purchase'" in outcome.problem.message


def test_of_a_customer_whose_profile_was_lost_every_event_is_rejected() -> None:
    shop = Shop()
    shop(Event("c", "visit", NOW), Event("d", "visit", NOW))
    del shop.records["c"]
    assert shop(*(Event(name, "visit", NOW) for name in "cdc")) == [
        *(Outcome(Verdict.REJECTED, LOST), ACCEPTED, Outcome(Verdict.REJECTED, LOST)),
    ]
    assert (shop.slots("c")[0], shop.slots("d")[0]) == (1.0, 2.0)
