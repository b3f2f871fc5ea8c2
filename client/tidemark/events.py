"""Clients for what customers do and for customers themselves, like ``tidemark.scoring`` for scores.

from tidemark.events import Event, EventClient

with EventClient("127.0.0.1:50051") as client:
    client.record([Event("900", "view", item_id="shoe-1", channel="web")])
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from itertools import islice
from typing import Any, Final

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from tidemark.v1 import customers_pb2, customers_pb2_grpc, events_pb2, events_pb2_grpc

from tidemark.scoring import NO_RETRIES, OPTIONS, RETRIED, CallFailedError, Client, Interest, Problem, interest

MAX_EVENTS: Final = 1000
MAX_MESSAGES: Final = 100
"""Of one StreamEvents call: they are kept until it is answered, to be sent again if it breaks."""
PAUSE_S: Final = 0.1
"""Before a stream that broke is sent again."""


def _now() -> datetime:
    return datetime.now(UTC)


def _new_id() -> str:
    return uuid.uuid4().hex


@dataclass(frozen=True)
class Event:
    """Something that a customer did; a naive ``event_time`` is UTC.

    Without an ``event_id`` it gets one here, so that it is counted once though a call be tried again; to be safe
    against your own repetitions bring the shop's (an order number, a message id).
    """

    customer_id: str
    event_type: str
    event_time: datetime = field(default_factory=_now)
    amount: float | None = None
    item_id: str = ""
    channel: str = ""
    duration_s: float | None = None
    event_id: str = field(default_factory=_new_id)
    text: str = ""


@dataclass(frozen=True)
class Told:
    """An event (by its index) that was refused, or of which a guard took something away: the field, and why."""

    index: int
    field: str
    reason: str


@dataclass(frozen=True)
class Recorded:
    """What became of events."""

    accepted: int
    duplicates: int
    rejected: list[Told]
    guarded: list[Told]


@dataclass(frozen=True)
class Consent:
    """What a customer allows."""

    scoring: bool
    automated_response: bool


@dataclass(frozen=True)
class Customer:
    """What is known about a customer; a feature is None where it is unknown or never happened."""

    customer_id: str
    features: dict[str, float | None]
    first_seen: datetime | None
    last_seen: datetime | None
    channels: dict[str, int]
    interests: list[Interest]
    consent: Consent
    aliases: list[str]


class EventClient(Client):
    """Records events."""

    _make_stub = staticmethod(events_pb2_grpc.EventServiceStub)

    @cached_property
    def _streaming(self) -> grpc.Channel:
        """A connection for streams, which are repeated here and nowhere else."""
        return self._connect(*OPTIONS, NO_RETRIES)

    def close(self) -> None:
        """Close the channels."""
        super().close()
        if "_streaming" in vars(self):
            self._streaming.close()

    def record(self, events: Sequence[Event], *, timeout_s: float | None = None) -> Recorded:
        """Record events, in calls of at most 1000, each bounded by ``timeout_s``; CallFailedError where one fails."""
        accepted, duplicates = 0, 0
        rejected: list[Told] = []
        guarded: list[Told] = []
        for start in range(0, len(events), MAX_EVENTS):
            request = events_pb2.RecordEventsRequest(events=_messages(events[start : start + MAX_EVENTS]))
            reply = self._call(self._stub.RecordEvents, request, timeout_s)
            accepted, duplicates = accepted + reply.accepted, duplicates + reply.duplicates
            rejected += _told(reply.rejected, start)
            guarded += _told(reply.guarded, start)
        return Recorded(accepted, duplicates, rejected, guarded)

    def stream(self, events: Iterable[Event], *, timeout_s: float) -> Recorded:
        """Record any number of events, in as few calls as that takes, within ``timeout_s`` all together.

        Only the first 1000 of a call that were refused or guarded are told. A call that breaks because its server
        stops, or is too busy, or of which not all arrived, is sent again: what had been recorded of it then counts
        among the duplicates. CallFailedError where time is up.
        """
        end, found, start = time.monotonic() + timeout_s, Recorded(0, 0, [], []), 0
        rest = _parts(events)
        while sent := _Sent(islice(rest, MAX_MESSAGES)):
            reply = self._stream(sent, end)
            found = Recorded(
                found.accepted + reply.accepted,
                found.duplicates + reply.duplicates,
                found.rejected + _told(reply.rejected, start),
                found.guarded + _told(reply.guarded, start),
            )
            start += sent.events
        return found

    def _stream(self, sent: _Sent, end: float) -> Any:
        """The reply to a StreamEvents call, which is made again until ``end`` where that may help."""
        method = self._make_stub(self._streaming).StreamEvents
        while True:
            try:
                reply = self._call(method, sent.again(), max(0.0, end - time.monotonic()))
                if (arrived := reply.accepted + reply.duplicates + reply.rejected_count) == sent.events:
                    return reply
                failed = CallFailedError(_missing(arrived, sent.events))
            except CallFailedError as error:
                if error.problem.code not in RETRIED:
                    raise
                failed = error
            if time.monotonic() + PAUSE_S > end:
                raise failed
            time.sleep(PAUSE_S)


class CustomerClient(Client):
    """Looks after single customers. Every method raises CallFailedError where its call fails."""

    _make_stub = staticmethod(customers_pb2_grpc.CustomerServiceStub)

    def get(self, customer_id: str, *, timeout_s: float | None = None) -> Customer:
        """What is known about a customer now."""
        request = customers_pb2.GetCustomerRequest(customer_id=customer_id)
        found = self._call(self._stub.GetCustomer, request, timeout_s)
        return Customer(
            customer_id=found.customer_id,
            features={one.name: one.value if one.HasField("value") else None for one in found.features},
            first_seen=_moment(found, "first_seen"),
            last_seen=_moment(found, "last_seen"),
            channels={one.channel: one.events for one in found.channels},
            interests=[interest(one) for one in found.interests],
            consent=_consent(found.consent),
            aliases=list(found.aliases),
        )

    def merge(self, given_up: str, into: str, *, timeout_s: float | None = None) -> str:
        """Make one customer of two, and return its id; later events and scores of ``given_up`` reach it."""
        request = customers_pb2.MergeCustomersRequest(**{"from": given_up, "into": into})
        return str(self._call(self._stub.MergeCustomers, request, timeout_s).customer_id)

    def delete(self, customer_id: str, *, timeout_s: float | None = None) -> None:
        """Erase a customer."""
        request = customers_pb2.DeleteCustomerRequest(customer_id=customer_id)
        self._call(self._stub.DeleteCustomer, request, timeout_s)

    def set_consent(
        self,
        customer_id: str,
        *,
        scoring: bool | None = None,
        automated_response: bool | None = None,
        timeout_s: float | None = None,
    ) -> Consent:
        """Keep what a customer allows, None as it was; what is allowed then."""
        request = customers_pb2.SetConsentRequest(
            customer_id=customer_id, scoring=scoring, automated_response=automated_response
        )
        return _consent(self._call(self._stub.SetConsent, request, timeout_s).consent)


def _messages(events: Iterable[Event]) -> list[events_pb2.Event]:
    return [events_pb2.Event(**{**vars(event), "event_time": _timestamp(event.event_time)}) for event in events]


def _parts(events: Iterable[Event]) -> Iterator[events_pb2.StreamEventsRequest]:
    rest = iter(events)
    while some := list(islice(rest, MAX_EVENTS)):
        yield events_pb2.StreamEventsRequest(events=_messages(some))


class _Sent:
    """Messages that are drawn from an iterator as they are sent, and can be sent from the first one on again."""

    def __init__(self, messages: Iterator[events_pb2.StreamEventsRequest]) -> None:
        self._rest = messages
        self._drawn = list(islice(messages, 1))
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        return bool(self._drawn)

    @property
    def events(self) -> int:
        """How many there were."""
        return sum(len(message.events) for message in self._drawn)

    def again(self) -> Iterator[events_pb2.StreamEventsRequest]:
        """From the first one on."""
        at = 0
        while (message := self._at(at)) is not None:
            yield message
            at += 1

    def _at(self, at: int) -> events_pb2.StreamEventsRequest | None:
        with self._lock:  # gRPC draws in a thread of its own, that of a broken call perhaps still
            if at == len(self._drawn):
                self._drawn += islice(self._rest, 1)
            return self._drawn[at] if at < len(self._drawn) else None


def _missing(arrived: int, sent: int) -> Problem:
    message = f"the server heard of {arrived} events out of {sent}: send them again, with the same ids"
    return Problem(grpc.StatusCode.DATA_LOSS, "EVENTS_MISSING", message)


def _timestamp(moment: datetime) -> Timestamp:
    found = Timestamp()
    found.FromDatetime(moment)
    return found


def _told(found: Iterable[Any], start: int = 0) -> list[Told]:
    return [Told(start + one.index, one.field, one.reason) for one in found]


def _moment(found: Any, name: str) -> datetime | None:
    moment: datetime = getattr(found, name).ToDatetime(UTC)
    return moment if found.HasField(name) else None


def _consent(found: customers_pb2.Consent) -> Consent:
    return Consent(found.scoring, found.automated_response)
