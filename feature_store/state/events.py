"""Live events: what one is, which are taken, and how they stand in the log.

The log is what the server hands to the archive: one JSON array per commit, of items

    ["e", customer_id, time, type, amount, duration_s, item_id, channel, event_id, text, mark]   an accepted event
    ["m", from, into]                                                                           a merge
    ["d", [ids]]                                                                                erase what was before

An event's mark is empty, or says why it was archived and not folded; offline computation leaves marked ones out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring
from typing import Final, NamedTuple

from feature_store.definitions import MAX_ID_BYTES, MAX_NAME_BYTES

MAX_AMOUNT: Final = 1e12
"""Largest amount and duration, either way: sums of anything larger might not be finite."""
MAX_TEXT: Final = 10_000
CAPPED: Final = "capped"
HOUR_S: Final = 3600.0


@dataclass(slots=True, eq=False)  # not frozen: that triples the time to make one
class Event:
    """A canonical event; ``event_time`` in unix seconds. Empty texts are unknown."""

    customer_id: str
    event_type: str
    event_time: float
    amount: float | None = None
    duration_s: float | None = None
    item_id: str = ""
    channel: str = ""
    event_id: str = ""
    text: str = ""


class Problem(NamedTuple):
    """What is wrong with an event, or what a guard did to it.

    Attributes:
        field: Name of the field of :class:`Event`.
        reason: Code in UPPER_SNAKE_CASE, which callers may rely on.
        message: The same in words, with a way to correct the event. It never repeats a value of the event.
    """

    field: str
    reason: str
    message: str


@dataclass(frozen=True)
class Rules:
    """Which events are taken, and how many of a customer are folded.

    Lateness and future in seconds. Caps count events by the hour that they happened in, so that sending one again later
    does not help: per customer and type, per customer, and per customer within the whole lateness.
    """

    max_lateness_s: float = 72 * HOUR_S
    max_future_s: float = 300.0
    cap_type_hour: int = 300
    cap_hour: int = 1000
    cap_total: int = 5000
    keep_text: bool = False


def problem(event: Event, rules: Rules, now: float) -> Problem | None:
    """Why an event is not taken at ``now`` (unix seconds), None if it is. No value is repeated in the answer."""
    # The usual event passes with few comparisons.
    if not (
        0 < len(event.customer_id) <= MAX_ID_BYTES // 4
        and event.customer_id.isprintable()
        and 0 < len(event.event_type) <= MAX_NAME_BYTES // 4
        and event.event_type.isprintable()
    ) and (found := _bad_text(event)):
        return found
    return _bad_time(event.event_time, rules, now) or _bad_number(event) or _bad_detail(event)


def _bad_time(t: float, rules: Rules, now: float) -> Problem | None:
    if not 0.0 <= t < math.inf:
        return Problem("event_time", "EVENT_TIME_INVALID", "the time is missing or before 1970: send when it happened")
    if t < now - rules.max_lateness_s:
        late = f"{rules.max_lateness_s / HOUR_S:g} h"
        return Problem("event_time", "EVENT_TOO_LATE", f"the event is more than {late} old: load older events instead")
    if t > now + rules.max_future_s:
        bound = f"{rules.max_future_s:g} s"
        return Problem(
            "event_time", "EVENT_IN_FUTURE", f"the time is more than {bound} ahead: check clock and time zone"
        )
    return None


def _bad_number(event: Event) -> Problem | None:
    if event.amount is not None and not abs(event.amount) <= MAX_AMOUNT:
        message = f"the amount is not finite or beyond {MAX_AMOUNT:g}: send the event's money"
        return Problem("amount", "AMOUNT_INVALID", message)
    if event.duration_s is not None and not 0 <= event.duration_s <= MAX_AMOUNT:
        message = f"the duration is negative, out of range or beyond {MAX_AMOUNT:g} s: send how long it took"
        return Problem("duration_s", "DURATION_INVALID", message)
    return None


def _bad_text(event: Event) -> Problem | None:
    if bad := text_fault(event.customer_id, MAX_ID_BYTES):
        wanted = f"send 1 to {MAX_ID_BYTES} bytes of printable text"
        return Problem("customer_id", "CUSTOMER_ID_INVALID", f"the customer id {bad}: {wanted}")
    if bad := text_fault(event.event_type, MAX_NAME_BYTES):
        wanted = f"send 1 to {MAX_NAME_BYTES} bytes of printable text"
        return Problem("event_type", "EVENT_TYPE_INVALID", f"the event type {bad}: {wanted}")
    return None


def _bad_detail(event: Event) -> Problem | None:
    for name, most in (("item_id", MAX_ID_BYTES), ("channel", MAX_NAME_BYTES), ("event_id", MAX_ID_BYTES)):
        text = getattr(event, name)
        if text and (bad := text_fault(text, most)):
            message = f"{name} {bad}: send at most {most} bytes of printable text"
            return Problem(name, f"{name.upper()}_INVALID", message)
    if len(event.text) > MAX_TEXT:
        return Problem("text", "TEXT_TOO_LONG", f"the text has more than {MAX_TEXT} characters: shorten it")
    return None


def text_fault(text: str, most_bytes: int) -> str | None:
    """What is wrong with an id or a name, as the end of a sentence; None if it is good."""
    if not text:
        return "is empty"
    if len(text) > most_bytes or (len(text) > most_bytes // 4 and len(text.encode()) > most_bytes):
        return f"is longer than {most_bytes} bytes"
    if not text.isprintable():
        return "has characters that cannot be printed"
    return None


def event_item(event: Event, mark: str, *, keep_text: bool) -> str:
    """The log's item of an accepted event."""
    # Put together by hand, because it is done for every event: half of what an encoder takes for the list.
    amount = "null" if event.amount is None else repr(event.amount)
    duration_s = "null" if event.duration_s is None else repr(event.duration_s)
    item_id = encode_basestring(event.item_id) if event.item_id else "null"
    channel = encode_basestring(event.channel) if event.channel else "null"
    event_id = encode_basestring(event.event_id) if event.event_id else "null"
    text = encode_basestring(event.text) if event.text and keep_text else "null"
    customer_id, event_type = encode_basestring(event.customer_id), encode_basestring(event.event_type)
    return (
        f'["e",{customer_id},{event.event_time!r},{event_type},{amount},{duration_s},'
        f'{item_id},{channel},{event_id},{text},"{mark}"]'
    )


def merge_item(given_up: str, stays: str) -> str:
    """The log's item of a merge."""
    return _encode(["m", given_up, stays])


def erase_item(customer_ids: Sequence[str]) -> str:
    """The log's item that erases customers."""
    return _encode(["d", list(customer_ids)])


_encode: Final = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":")).encode
