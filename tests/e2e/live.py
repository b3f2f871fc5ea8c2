"""Events and customers as another service sends and asks for them, by the published stubs."""

from __future__ import annotations

import itertools
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc
from tidemark.rpc import error_details_pb2, status_pb2
from tidemark.v1 import (
    customers_pb2,
    customers_pb2_grpc,
    events_pb2,
    events_pb2_grpc,
    scoring_pb2,
    scoring_pb2_grpc,
)

from tests.e2e.server_process import ServerProcess
from tests.waiting import PATIENCE_S

EVENTS: Final = "tidemark.v1.EventService"
CUSTOMERS: Final = "tidemark.v1.CustomerService"
HOUR_S: Final = 3600.0
ALONE: Final = [("grpc.use_local_subchannel_pool", 1)]
"""A connection of its own for each channel."""

Request = events_pb2.RecordEventsRequest
StreamRequest = events_pb2.StreamEventsRequest

_numbers = itertools.count()


def someone(name: str = "customer") -> str:
    """An id that nobody had before."""
    return f"{name}-{os.getpid()}-{next(_numbers)}"


def event(customer_id: str, event_type: str = "view", *, ago_s: float = 0.0, **more: Any) -> events_pb2.Event:
    """Something that happened so many seconds ago."""
    made = events_pb2.Event(customer_id=customer_id, event_type=event_type, **more)
    made.event_time.FromNanoseconds(int((time.time() - ago_s) * 1e9))
    return made


def info_of(status: status_pb2.Status) -> error_details_pb2.ErrorInfo:
    """The one ErrorInfo of an error."""
    infos = []
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            infos.append(info)
    assert len(infos) == 1
    assert infos[0].domain == "tidemark"
    return infos[0]


def told_of(status: status_pb2.Status) -> tuple[str, str]:
    """Reason and field of an error."""
    info = info_of(status)
    return info.reason, info.metadata["field"]


def may_retry(status: status_pb2.Status) -> bool:
    """Whether an error says when to try again."""
    return any(detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for detail in status.details)


@dataclass
class Summed:
    """The acknowledgements of a stream, added up; positions count through all of its messages."""

    messages: int = 0
    accepted: int = 0
    duplicates: int = 0
    rejected: list[Any] = field(default_factory=list)
    guarded: list[Any] = field(default_factory=list)


def summed(replies: Iterable[Any], sizes: Sequence[int] = ()) -> Summed:
    """The sum of acknowledgements; ``sizes``: events of each message, to count positions through all of them."""
    total = Summed()
    for reply in replies:
        assert reply.acknowledged_messages == total.messages + 1
        before = sum(sizes[: total.messages])
        for item in (*reply.rejected, *reply.guarded):
            item.index += before
        total.rejected += reply.rejected
        total.guarded += reply.guarded
        total.messages += 1
        total.accepted += reply.accepted
        total.duplicates += reply.duplicates
    return total


def use_up(call: Callable[[], object]) -> None:
    """Call so often that a quota must be used up, however little of it a slow machine uses at a time."""
    for _ in range(100):
        call()


class Live:
    """All that there is to call, on one channel; with a timeout unless another one is given."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel: Final = channel
        self._events = events_pb2_grpc.EventServiceStub(channel)
        self._customers = customers_pb2_grpc.CustomerServiceStub(channel)
        self._scoring = scoring_pb2_grpc.ScoringServiceStub(channel)

    def record(self, *events: events_pb2.Event, timeout: float = PATIENCE_S) -> Any:
        """RecordEvents."""
        return self._events.RecordEvents(Request(events=events), timeout=timeout)

    def stream(
        self, messages: Iterable[Iterable[events_pb2.Event]], timeout: float = PATIENCE_S, **options: Any
    ) -> Any:
        """StreamEvents, a message for each of the inner iterables; the outcome of all of them, added up."""
        sizes: list[int] = []

        def requests() -> Iterator[Any]:
            for message in messages:
                request = StreamRequest(events=message)
                sizes.append(len(request.events))
                yield request

        return summed(self._events.StreamEvents(requests(), timeout=timeout, **options), sizes)

    def streaming(self, requests: Iterator[Any], timeout: float = PATIENCE_S, **options: Any) -> Any:
        """StreamEvents that goes on meanwhile: its responses."""
        return self._events.StreamEvents(requests, timeout=timeout, **options)

    def get(self, customer_id: str) -> Any:
        """GetCustomer."""
        return self._customers.GetCustomer(
            customers_pb2.GetCustomerRequest(customer_id=customer_id), timeout=PATIENCE_S
        )

    def merge(self, given_up: str, stays: str, timeout: float = PATIENCE_S) -> str:
        """MergeCustomers."""
        request = customers_pb2.MergeCustomersRequest(source_customer_id=given_up, target_customer_id=stays)
        return str(self._customers.MergeCustomers(request, timeout=timeout).customer_id)

    def delete(self, customer_id: str, timeout: float = PATIENCE_S) -> None:
        """DeleteCustomer."""
        self._customers.DeleteCustomer(customers_pb2.DeleteCustomerRequest(customer_id=customer_id), timeout=timeout)

    def consent(self, customer_id: str, timeout: float = PATIENCE_S, **allowed: bool) -> tuple[bool, bool]:
        """SetConsent."""
        request = customers_pb2.SetConsentRequest(customer_id=customer_id, **allowed)
        reported = self._customers.SetConsent(request, timeout=timeout).consent
        return reported.scoring, reported.automated_response

    def score(self, customer_id: str) -> Any:
        """ScoreCustomer."""
        return self._scoring.ScoreCustomer(
            scoring_pb2.ScoreCustomerRequest(customer_id=customer_id), timeout=PATIENCE_S
        ).score

    def score_many(self, *customer_ids: str) -> list[Any]:
        """BatchScoreCustomers."""
        request = scoring_pb2.BatchScoreCustomersRequest(customer_ids=customer_ids)
        return list(self._scoring.BatchScoreCustomers(request, timeout=PATIENCE_S).results)

    def decayed(self, customer_id: str, what: str) -> dict[float, float]:
        """Decayed sums of one kind, such as ``visit_count``, by half-life in days: the model chose which there are."""
        name = re.compile(rf"{what}_(\d+(?:_\d+)?)d")
        result = {
            m[1]: feature.value for feature in self.get(customer_id).features if (m := name.fullmatch(feature.name))
        }
        assert result
        return {float(days.replace("_", ".")): value for days, value in result.items()}

    def count(self, customer_id: str, event_type: str) -> float:
        """Events of a type, as the one that forgets slowest has counted them."""
        return max(self.decayed(customer_id, f"{event_type}_count").items())[1]

    def feature(self, customer_id: str, name: str) -> float | None:
        """One of the features of a customer, None where it has no value."""
        (result,) = [feature for feature in self.get(customer_id).features if feature.name == name]
        return float(result.value) if result.HasField("value") else None

    def counted(self, customer_id: str) -> int:
        """Live events of a customer who always says where it was."""
        return sum(channel.events for channel in self.get(customer_id).channels)


@contextmanager
def calling(target: str) -> Iterator[Live]:
    """A connection of its own."""
    with grpc.insecure_channel(target, ALONE) as channel:
        yield Live(channel)


Start = Callable[..., ServerProcess]


def starter(stack: Any, registry: Path, folder: Path, url: str) -> Start:
    """``start(*options, redis=url)``: servers that end with the stack."""

    def start(*options: str, redis: str = url, wait_for: str = "health is SERVING") -> ServerProcess:
        usual = ["--registry", str(registry), "--redis", redis, "--port", "0"]
        server: ServerProcess = stack.enter_context(ServerProcess(folder, *usual, *options))
        server.wait_for(wait_for)
        return server

    return start
