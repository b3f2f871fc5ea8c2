"""Live events: their fields and the rules by which they are accepted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from feature_store.definitions import MAX_ID_BYTES, MAX_NAME_BYTES

MAX_AMOUNT: Final = 1e12
"""Largest absolute amount and largest duration: sums of larger numbers might not be finite."""
MAX_TEXT: Final = 10_000
"""Characters of an event's free text."""
HOUR_S: Final = 3600.0


@dataclass(slots=True, eq=False)  # not frozen: that would triple the time to create one
class Event:
    """A canonical event; ``event_time`` in unix seconds. An empty string means unknown."""

    customer_id: str
    event_type: str
    event_time: float
    amount: float | None = None
    duration_s: float | None = None
    item_id: str = ""
    channel: str = ""
    event_id: str = ""
    text: str = ""


class EventReason(StrEnum):
    """Why an event is rejected, or what a guard did to an accepted one."""

    CUSTOMER_ID_INVALID = "CUSTOMER_ID_INVALID"
    EVENT_TYPE_INVALID = "EVENT_TYPE_INVALID"
    EVENT_TIME_INVALID = "EVENT_TIME_INVALID"
    EVENT_TOO_LATE = "EVENT_TOO_LATE"
    EVENT_IN_FUTURE = "EVENT_IN_FUTURE"
    AMOUNT_INVALID = "AMOUNT_INVALID"
    DURATION_INVALID = "DURATION_INVALID"
    ITEM_ID_INVALID = "ITEM_ID_INVALID"
    CHANNEL_INVALID = "CHANNEL_INVALID"
    EVENT_ID_INVALID = "EVENT_ID_INVALID"
    TEXT_TOO_LONG = "TEXT_TOO_LONG"
    CONSENT_WITHHELD = "CONSENT_WITHHELD"
    STATE_UNREADABLE = "STATE_UNREADABLE"
    EVENT_CAPPED = "EVENT_CAPPED"
    AMOUNT_CLIPPED = "AMOUNT_CLIPPED"
    DURATION_CLIPPED = "DURATION_CLIPPED"
    EVENT_TYPE_SIMILAR = "EVENT_TYPE_SIMILAR"


GUARDS: Final = frozenset(
    {
        EventReason.EVENT_CAPPED,
        EventReason.AMOUNT_CLIPPED,
        EventReason.DURATION_CLIPPED,
        EventReason.EVENT_TYPE_SIMILAR,
    }
)
"""Reasons of events that are accepted."""


class Problem(NamedTuple):
    """What is wrong with an event, or what a guard did to it.

    Attributes:
        field: Name of the field of :class:`Event`.
        reason: The reason, which callers may rely on.
        message: The same in words, with a way to correct the event. It never repeats a value of the event.
    """

    field: str
    reason: EventReason
    message: str


@dataclass(frozen=True)
class Rules:
    """Which events are accepted, and how many of one customer are folded into its state.

    Caps count events by the hour in which they happened, so sending an event again later does not evade them.

    Attributes:
        max_lateness_s: How old an event may be.
        max_future_s: How far ahead of the server's clock an event may be.
        cap_type_hour: Events of one customer and type in an hour.
        cap_hour: Events of one customer in an hour.
        cap_total: Events of one customer within ``max_lateness_s``.
        keep_text: Whether the log keeps the free text of events.
    """

    max_lateness_s: float = 72 * HOUR_S
    max_future_s: float = 300.0
    cap_type_hour: int = 300
    cap_hour: int = 1000
    cap_total: int = 5000
    keep_text: bool = False


def problem(event: Event, rules: Rules, now: float) -> Problem | None:
    """Why an event is not accepted at ``now`` (unix seconds); None if it is. No value of the event is repeated."""
    # The usual event passes with few comparisons.
    if not (
        0 < len(event.customer_id) <= MAX_ID_BYTES // 4
        and event.customer_id.isprintable()
        and 0 < len(event.event_type) <= MAX_NAME_BYTES // 4
        and event.event_type.isprintable()
    ) and (bad := _bad_text(event)):
        return bad
    return _bad_time(event.event_time, rules, now) or _bad_number(event) or _bad_detail(event)


def _bad_time(t: float, rules: Rules, now: float) -> Problem | None:
    if not 0.0 <= t < math.inf:
        return Problem(
            "event_time", EventReason.EVENT_TIME_INVALID, "the time is missing or before 1970: send when it happened"
        )
    if t < now - rules.max_lateness_s:
        late = f"{rules.max_lateness_s / HOUR_S:g} h"
        return Problem(
            "event_time", EventReason.EVENT_TOO_LATE, f"the event is more than {late} old: load older events instead"
        )
    if t > now + rules.max_future_s:
        bound = f"{rules.max_future_s:g} s"
        return Problem(
            "event_time", EventReason.EVENT_IN_FUTURE, f"the time is more than {bound} ahead: check clock and time zone"
        )
    return None


def _bad_number(event: Event) -> Problem | None:
    if event.amount is not None and not abs(event.amount) <= MAX_AMOUNT:
        message = f"the amount is not finite or beyond {MAX_AMOUNT:g}: send the event's money"
        return Problem("amount", EventReason.AMOUNT_INVALID, message)
    if event.duration_s is not None and not 0 <= event.duration_s <= MAX_AMOUNT:
        message = f"the duration is negative, out of range or beyond {MAX_AMOUNT:g} s: send how long it took"
        return Problem("duration_s", EventReason.DURATION_INVALID, message)
    return None


def _bad_text(event: Event) -> Problem | None:
    if bad := text_fault(event.customer_id, MAX_ID_BYTES):
        wanted = f"send 1 to {MAX_ID_BYTES} bytes of printable text"
        return Problem("customer_id", EventReason.CUSTOMER_ID_INVALID, f"the customer id {bad}: {wanted}")
    if bad := text_fault(event.event_type, MAX_NAME_BYTES):
        wanted = f"send 1 to {MAX_NAME_BYTES} bytes of printable text"
        return Problem("event_type", EventReason.EVENT_TYPE_INVALID, f"the event type {bad}: {wanted}")
    return None


def _bad_detail(event: Event) -> Problem | None:
    for name, limit in (("item_id", MAX_ID_BYTES), ("channel", MAX_NAME_BYTES), ("event_id", MAX_ID_BYTES)):
        text = getattr(event, name)
        if text and (bad := text_fault(text, limit)):
            message = f"{name} {bad}: send at most {limit} bytes of printable text"
            return Problem(name, EventReason[f"{name.upper()}_INVALID"], message)
    if len(event.text) > MAX_TEXT:
        return Problem("text", EventReason.TEXT_TOO_LONG, f"the text has more than {MAX_TEXT} characters: shorten it")
    return None


def text_fault(text: str, max_bytes: int) -> str | None:
    """What is wrong with an id or a name, as the predicate of a sentence ("is empty"); None if it is valid."""
    if not text:
        return "is empty"
    if len(text) > max_bytes or (len(text) > max_bytes // 4 and len(text.encode()) > max_bytes):
        return f"is longer than {max_bytes} bytes"
    if not text.isprintable():
        return "contains unprintable characters"
    return None
