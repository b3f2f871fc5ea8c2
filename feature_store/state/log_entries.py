"""The format of the event log's entries. No other module knows it.

The server writes one entry per commit, and the archiver moves it to the archive. An entry is a JSON array of items that
took effect together:

- ``["e", customer_id, t, event_type, amount, duration_s, item_id, channel, event_id, text, mark]``: an accepted event.
- ``["m", alias, root]``: a merge.
- ``["c", customer_id, scoring, automated_response]``: consent as it is now.
- ``["d", [customer_id, …], erased_at]``: an erasure. Earlier releases did not write its time.
- ``["p", customer_id, position]``: the previous entry that mentions the customer, 0 if there is none. Every entry has
  one for each customer that it mentions, except customers that it erases, so that all entries of a customer can be
  reached from the position in its profile. Earlier releases wrote none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from json.encoder import encode_basestring
from typing import Any, Final, NamedTuple

from feature_store.errors import InputError
from feature_store.state.events import Event

CAPPED: Final = "capped"
"""Mark of an event that was accepted but is not counted, because its customer is over a cap."""

_YEAR_1: Final = -62_135_596_800.0
_YEAR_10_000: Final = 253_402_300_800.0
"""Times that other tools than DuckDB can read as well, in unix seconds."""


class LoggedEvent(NamedTuple):
    """An accepted event.

    Attributes:
        t: Unix seconds.
        mark: Empty, or why the event was not folded into a state. Offline computation leaves marked events out.
    """

    customer_id: str
    t: float
    event_type: str
    amount: float | None
    duration_s: float | None
    item_id: str | None
    channel: str | None
    event_id: str | None
    text: str | None
    mark: str


class LoggedMerge(NamedTuple):
    """From here on ``alias`` is another id of the customer ``root``, for events before and after."""

    alias: str
    root: str


class LoggedConsent(NamedTuple):
    """What a customer allows from here on."""

    customer_id: str
    scoring: bool
    automated_response: bool


class LoggedErasure(NamedTuple):
    """Everything known about these ids so far is forgotten; what follows starts anew.

    Attributes:
        erased_at: Unix seconds; None if an earlier release erased them.
    """

    customer_ids: list[str]
    erased_at: float | None = None


class LoggedLink(NamedTuple):
    """The previous entry that mentions a customer; position 0 if there is none."""

    customer_id: str
    position: int


LogItem = LoggedEvent | LoggedMerge | LoggedConsent | LoggedErasure | LoggedLink

_TEXT: Final = (str,)
_NUMBER: Final = (float, int)
_NONE: Final = type(None)
_FIELD_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "customer_id": _TEXT,
    "t": _NUMBER,
    "event_type": _TEXT,
    "amount": (*_NUMBER, _NONE),
    "duration_s": (*_NUMBER, _NONE),
    "item_id": (*_TEXT, _NONE),
    "channel": (*_TEXT, _NONE),
    "event_id": (*_TEXT, _NONE),
    "text": (*_TEXT, _NONE),
    "mark": _TEXT,
}
"""JSON types of an event's fields, in their order."""


def encode_event(event: Event, mark: str, *, keep_text: bool) -> str:
    """The item of an accepted event, as JSON."""
    # Concatenated by hand because this runs once per event: it takes half the time of an encoder.
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


def encode_merge(alias: str, root: str) -> str:
    """The item of a merge, as JSON."""
    return _encode(["m", alias, root])


def encode_consent(customer_id: str, *, scoring: bool, automated_response: bool) -> str:
    """The item of a consent, as JSON."""
    return _encode(["c", customer_id, scoring, automated_response])


def encode_erasure(customer_ids: Sequence[str], erased_at: float) -> str:
    """The item that erases customers, as JSON."""
    return _encode(["d", list(customer_ids), erased_at])


def encode_link(customer_id: str, position: int) -> str:
    """The item that names the previous entry of a customer, as JSON."""
    return f'["p",{encode_basestring(customer_id)},{position}]'


def decode_entry(position: int, data: bytes) -> list[LogItem]:
    """The items of an entry, in order; numbers of events become floats.

    Args:
        position: The entry's position in the log, for errors.
        data: The entry.

    Raises:
        InputError: The entry is malformed. The message names its position and the item, never their content.
    """
    items: list[LogItem] = []
    for n, parts in enumerate(_decode(position, data)):
        try:
            items.append(_item(parts))
        except (ValueError, OverflowError) as error:
            raise malformed(position, f"item {n}: {error}") from None
    return items


def malformed(position: int, reason: str) -> InputError:
    """The error about an entry that cannot be used."""
    return InputError(f"entry {position} of the log is malformed: {reason}")


def without_customers(position: int, data: bytes, customer_ids: Collection[str]) -> bytes | None:
    """An entry without anything about some customers but their erasure; None if it mentions none of them.

    Raises:
        InputError: The entry is malformed.
    """
    if not any(encode_basestring(customer_id).encode() in data for customer_id in customer_ids):
        return None
    items = [item for item in decode_entry(position, data) if not _concerns(item, customer_ids)]
    return _encode([_parts(item) for item in items]).encode()


def without_events_until(position: int, data: bytes, bounds: Mapping[str, float]) -> bytes:
    """An entry without the events of some customers up to a time.

    Args:
        position: Position of the entry.
        data: The entry.
        bounds: By customer id, Unix seconds of the last event to leave out.

    Raises:
        InputError: The entry is malformed.
    """
    items = decode_entry(position, data)
    kept = [item for item in items if not is_event_until(item, bounds)]
    return data if len(kept) == len(items) else _encode([_parts(item) for item in kept]).encode()


def is_event_until(item: LogItem, bounds: Mapping[str, float]) -> bool:
    """Whether an item is an event that :func:`without_events_until` leaves out."""
    return isinstance(item, LoggedEvent) and item.t <= bounds.get(item.customer_id, -math.inf)


def _concerns(item: LogItem, customer_ids: Collection[str]) -> bool:
    match item:
        case LoggedEvent() | LoggedConsent() | LoggedLink():
            return item.customer_id in customer_ids
        case LoggedMerge():
            return item.alias in customer_ids or item.root in customer_ids
        case LoggedErasure():
            return False


def _decode(position: int, data: bytes) -> list[Any]:
    # No cause is ever chained: it would hold the content of the entry.
    try:
        items = json.loads(data)
        if b"\\" in data:  # JSON can contain half of a surrogate pair, which cannot be stored
            json.dumps(items, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise malformed(position, "it is not JSON in UTF-8") from None
    if not isinstance(items, list):
        raise malformed(position, "it is not an array of items")
    return items


def _item(parts: Any) -> LogItem:
    match parts:
        case ["e", *fields]:
            return _event(fields)
        case ["m", str(alias), str(root)]:
            return LoggedMerge(alias, root)
        case ["c", str(customer_id), bool(scoring), bool(automated_response)]:
            return LoggedConsent(customer_id, scoring, automated_response)
        case ["p", str(customer_id), int(position)] if position >= 0:
            return LoggedLink(customer_id, position)
        case ["d", [*ids]] if all(isinstance(name, str) for name in ids):
            return LoggedErasure(ids)
        case ["d", [*ids], int(erased_at) | float(erased_at)] if all(isinstance(name, str) for name in ids):
            return LoggedErasure(ids, float(erased_at))
        case _:
            raise ValueError("it is not an event, a merge, a consent, an erasure or a link")


def _event(fields: list[Any]) -> LoggedEvent:
    if len(fields) != len(_FIELD_TYPES) or any(
        type(value) not in types for value, types in zip(fields, _FIELD_TYPES.values(), strict=True)
    ):
        raise ValueError("the event's fields are not those of an event")
    event = LoggedEvent(*fields)
    amount = None if event.amount is None else float(event.amount)
    duration_s = None if event.duration_s is None else float(event.duration_s)
    if not (_YEAR_1 <= event.t < _YEAR_10_000):
        raise ValueError("the event's time is out of range")
    if not (math.isfinite(amount or 0.0) and math.isfinite(duration_s or 0.0)):
        raise ValueError("a number of the event is not finite")
    return event._replace(t=float(event.t), amount=amount, duration_s=duration_s)


def _parts(item: LogItem) -> list[object]:
    match item:
        case LoggedEvent():
            return ["e", *item]
        case LoggedMerge():
            return ["m", *item]
        case LoggedConsent():
            return ["c", *item]
        case LoggedLink():
            return ["p", *item]
        case LoggedErasure():
            return ["d", item.customer_ids] if item.erased_at is None else ["d", *item]


_encode: Final = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":")).encode
