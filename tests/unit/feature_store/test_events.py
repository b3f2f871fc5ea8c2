"""Which events are taken, to the very bound; what is wrong is told without a value; and how they stand in the log."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store.definitions import MAX_ID_BYTES, MAX_NAME_BYTES
from feature_store.state.events import HOUR_S, MAX_AMOUNT, MAX_TEXT, Event, Rules, problem, text_fault
from feature_store.state.log_entries import CAPPED, encode_erasure, encode_event, encode_merge

NOW = 1_800_000_000.0
RULES = Rules()
GOOD = Event("c1", "purchase", NOW - 60, 12.5, 3.0, "lamp", "web", "e1", "nice")


def fault(changes: dict[str, Any], rules: Rules = RULES) -> str:
    """Field and reason's name, empty for a good event."""
    result = problem(replace(GOOD, **changes), rules, NOW)
    return f"{result.field} {result.reason}" if result else ""


def test_a_good_event_is_taken() -> None:
    assert problem(GOOD, RULES, NOW) is None


def test_an_event_needs_no_more_than_a_customer_a_type_and_a_time() -> None:
    assert problem(Event("c1", "purchase", NOW), RULES, NOW) is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"event_time": NOW - 72 * HOUR_S}, ""),
        ({"event_time": NOW - 72 * HOUR_S - 0.001}, "event_time EVENT_TOO_LATE"),
        ({"event_time": 0.0}, "event_time EVENT_TOO_LATE"),
        ({"event_time": NOW + 300}, ""),
        ({"event_time": NOW + 300.001}, "event_time EVENT_IN_FUTURE"),
        ({"event_time": 1e300}, "event_time EVENT_IN_FUTURE"),
        ({"event_time": -0.001}, "event_time EVENT_TIME_INVALID"),
        ({"event_time": math.nan}, "event_time EVENT_TIME_INVALID"),
        ({"event_time": math.inf}, "event_time EVENT_TIME_INVALID"),
        ({"event_time": -math.inf}, "event_time EVENT_TIME_INVALID"),
        *(({"amount": amount}, "") for amount in (None, 0.0, -0.0, -12.5, MAX_AMOUNT, -MAX_AMOUNT)),
        *(
            ({"amount": amount}, "amount AMOUNT_INVALID")
            for amount in (1.0001e12, -1.0001e12, math.nan, math.inf, -math.inf)
        ),
        *(({"duration_s": seconds}, "") for seconds in (None, 0.0, MAX_AMOUNT)),
        *(
            ({"duration_s": seconds}, "duration_s DURATION_INVALID")
            for seconds in (-0.001, 1.0001e12, math.nan, math.inf, -math.inf)
        ),
        ({"text": "x" * MAX_TEXT}, ""),
        ({"text": "x" * (MAX_TEXT + 1)}, "text TEXT_TOO_LONG"),
        ({"text": "a line\nand\x00another"}, ""),
    ],
    ids=str,
)
def test_each_figure_is_taken_to_the_very_bound(changes: dict[str, Any], expected: str) -> None:
    assert fault(changes) == expected


NAMES = {
    "customer_id": (MAX_ID_BYTES, "CUSTOMER_ID_INVALID"),
    "event_type": (MAX_NAME_BYTES, "EVENT_TYPE_INVALID"),
    "item_id": (MAX_ID_BYTES, "ITEM_ID_INVALID"),
    "channel": (MAX_NAME_BYTES, "CHANNEL_INVALID"),
    "event_id": (MAX_ID_BYTES, "EVENT_ID_INVALID"),
}


@pytest.mark.parametrize("field", NAMES)
@pytest.mark.parametrize("letter", ["x", "é", "客", "😀", " "])
def test_a_name_is_taken_to_the_very_byte(field: str, letter: str) -> None:
    most, reason = NAMES[field]
    fits = most // len(letter.encode())
    assert fault({field: letter * fits}) == ""
    assert fault({field: letter * fits + "x" * (most - fits * len(letter.encode()))}) == ""
    assert fault({field: letter * (fits + 1)}) == f"{field} {reason}"


@pytest.mark.parametrize("field", NAMES)
@pytest.mark.parametrize("text", ["a\nb", "\x00", "a\u200bb", "\ue000", "\u2028", "\t", "x" * 40 + "\r"])
def test_a_name_that_cannot_be_printed_is_refused(field: str, text: str) -> None:
    assert fault({field: text}) == f"{field} {NAMES[field][1]}"


@pytest.mark.parametrize(("field", "reason"), [(name, NAMES[name][1]) for name in ("customer_id", "event_type")])
def test_what_an_event_must_have_may_not_be_empty(field: str, reason: str) -> None:
    assert fault({field: ""}) == f"{field} {reason}"


@pytest.mark.parametrize("field", ["item_id", "channel", "event_id", "text"])
def test_what_is_unknown_may_be_empty(field: str) -> None:
    assert fault({field: ""}) == ""


def test_the_rules_are_those_of_the_server() -> None:
    rules = Rules(max_lateness_s=HOUR_S / 2, max_future_s=0.0)
    assert fault({"event_time": NOW - 1800}, rules) == fault({"event_time": NOW}, rules) == ""
    assert fault({"event_time": NOW - 1801}, rules) == "event_time EVENT_TOO_LATE"
    assert fault({"event_time": NOW + 1}, rules) == "event_time EVENT_IN_FUTURE"
    late = problem(replace(GOOD, event_time=NOW - 1801), rules, NOW)
    assert late is not None
    assert "0.5 h" in late.message


SECRET = "s3cr3t"
odd = st.text(max_size=400) | st.text(min_size=60, max_size=70) | st.text("é客😀", min_size=10, max_size=130)
numbers = st.none() | st.floats()


@given(st.builds(Event, odd, odd, st.floats(), numbers, numbers, odd, odd, odd, st.text(max_size=50)))
def test_whatever_is_sent_is_taken_or_refused_with_a_mend(event: Event) -> None:
    result = problem(event, RULES, NOW)
    if result is not None:
        name, words = result.reason, result.message
        assert hasattr(event, result.field)
        assert name == name.upper()
        assert name.replace("_", "").isalpha()
        assert words
        return
    assert NOW - RULES.max_lateness_s <= event.event_time <= NOW + RULES.max_future_s
    assert event.customer_id.isprintable()
    assert 0 < len(event.customer_id.encode()) <= MAX_ID_BYTES
    assert json.loads(encode_event(event, "", keep_text=True))[1] == event.customer_id


@pytest.mark.parametrize(
    "changes",
    [
        *({name: SECRET + "\n"} for name in NAMES),
        *({name: SECRET * 100} for name in NAMES),
        {"event_time": 4711.0},
        {"event_time": 4711e12},
        {"amount": 4711e12},
        {"duration_s": -4711.0},
        {"text": SECRET * MAX_TEXT},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_no_reason_repeats_what_was_sent(changes: dict[str, Any]) -> None:
    event = replace(GOOD, customer_id="customer-4711", item_id=SECRET)
    result = problem(replace(event, **changes), RULES, NOW)
    assert result is not None
    assert SECRET not in result.reason
    assert "4711" not in result.reason


@pytest.mark.parametrize(
    ("text", "most", "end"),
    [
        ("", 8, "is empty"),
        ("x" * 9, 8, "is longer than 8 bytes"),
        ("é" * 5, 8, "is longer than 8 bytes"),
        ("\n", 8, "contains unprintable characters"),
        ("é" * 4, 8, None),
        ("xx", 8, None),
    ],
)
def test_a_fault_of_a_text_is_the_end_of_a_sentence(text: str, most: int, end: str | None) -> None:
    assert text_fault(text, most) == end


# --- the log --------------------------------------------------------------------------------------------------------


def test_an_item_of_the_log_says_all_that_is_known_of_an_event() -> None:
    item = json.loads(encode_event(GOOD, "", keep_text=True))
    assert item == ["e", "c1", NOW - 60, "purchase", 12.5, 3.0, "lamp", "web", "e1", "nice", ""]


def test_what_is_unknown_is_null() -> None:
    item = json.loads(encode_event(Event("c1", "visit", NOW), CAPPED, keep_text=True))
    assert item == ["e", "c1", NOW, "visit", None, None, None, None, None, None, "capped"]


def test_a_text_is_logged_only_where_it_is_to_be_kept() -> None:
    assert "nice" not in encode_event(GOOD, "", keep_text=False)
    assert json.loads(encode_event(GOOD, "", keep_text=False))[9] is None


def test_merges_and_erasures_name_the_customers() -> None:
    assert json.loads(encode_merge("cookie", 'a "b"')) == ["m", "cookie", 'a "b"']
    assert json.loads(encode_erasure(["a", "客户"], 1.5)) == ["d", ["a", "客户"], 1.5]


printable = st.text(st.characters(codec="utf-8").filter(str.isprintable), min_size=1, max_size=64)


@given(
    st.builds(
        Event,
        printable,
        printable,
        st.floats(0, 2e9),
        amount=st.none() | st.floats(-MAX_AMOUNT, MAX_AMOUNT),
        duration_s=st.none() | st.floats(0, MAX_AMOUNT),
        item_id=printable | st.just(""),
        channel=printable | st.just(""),
        event_id=printable | st.just(""),
        text=st.text(),
    )
)
def test_every_item_is_one_line_of_json_that_gives_the_event_back_exactly(event: Event) -> None:
    item = encode_event(event, "", keep_text=True)
    assert "\n" not in item
    # In the log it stands among others.
    kind, customer_id, t, event_type, amount, duration_s, *texts, mark = json.loads(f"[{item},{item}]".encode())[1]
    result = Event(customer_id, event_type, t, amount, duration_s, *(text or "" for text in texts))
    assert (kind, mark) == ("e", "")
    assert asdict(result) == asdict(event)
