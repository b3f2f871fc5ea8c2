"""The methods of CustomerService on a fake store: what is shown, and how each thing that can go wrong is told."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from tidemark.v1 import customers_pb2, scoring_pb2

from feature_store.definitions import Feature, Interests
from feature_store.errors import NotInClusterError, StoreFullError, StoreUnavailableError
from feature_store.online.customer_store import (
    ALREADY,
    CYCLE,
    ITSELF,
    TOO_MANY,
    ConflictError,
    Customer,
    CustomerStore,
    MergeRefusedError,
    UnknownCustomerError,
)
from feature_store.state.layout import DAY_S, State, StateLayout
from feature_store.state.profile import Interest, Profile, UnreadableProfileError
from service.api.customers import MERGE_REFUSALS, Customers
from service.call_context import NO_CONTEXT, CallContext
from service.errors import Code, Reason, RequestError
from tests.waiting import PATIENCE_S, settle

NOW = 1_800_000_000.0
LAYOUT = StateLayout(
    [
        Feature(name="visits", aggregate="count", event="visit", half_life_days=7),
        Feature(name="last", aggregate="latest", event="purchase"),
        Feature(name="first", aggregate="earliest", event="purchase"),
        Feature(name="income", aggregate="attribute"),
    ]
)


@dataclass
class FakeStore:
    """Knows one customer, remembers what it was asked, and fails if told to."""

    customer: Customer | None = None
    failure: Exception | None = None
    asked: list[tuple[Any, ...]] = field(default_factory=list)
    gate: asyncio.Event | None = None
    finished: int = 0
    has_finished: asyncio.Event = field(default_factory=asyncio.Event)

    async def _ask(self, *question: Any) -> None:
        self.asked.append(question)
        await (self.gate.wait() if self.gate else asyncio.sleep(0))
        self.finished += 1
        self.has_finished.set()
        if self.failure is not None:
            raise self.failure

    async def get(self, customer_id: str) -> Customer:
        await self._ask("get", customer_id)
        assert self.customer is not None
        return self.customer

    async def merge(self, given_up: str, stays: str) -> str:
        await self._ask("merge", given_up, stays)
        return "root"

    async def erase(self, customer_id: str) -> None:
        await self._ask("erase", customer_id)

    async def consent(self, customer_id: str, scoring: bool | None, response: bool | None) -> Profile:
        await self._ask("consent", customer_id, scoring, response)
        return Profile(scoring=scoring is not False, automated_response=response is not False)


def customers(store: FakeStore) -> Customers:
    return Customers(cast("CustomerStore", store), Interests(), clock=lambda: NOW)


def call(method: Callable[[bytes, CallContext], Awaitable[bytes]], request: Any) -> bytes:
    async def ask() -> bytes:
        return await method(request.SerializeToString(), NO_CONTEXT)

    return asyncio.run(ask())


def shown(state: State | None, record: Profile) -> customers_pb2.GetCustomerResponse:
    value = None if state is None else LAYOUT.pack(state)
    store = FakeStore(Customer("root", LAYOUT.unpack([value]), record, LAYOUT))
    result = call(customers(store).get, customers_pb2.GetCustomerRequest(customer_id="alias"))
    assert store.asked == [("get", "alias")]
    return customers_pb2.GetCustomerResponse.FromString(result)


# --- showing --------------------------------------------------------------------------------------------------------


def test_features_are_shown_as_of_now_and_times_in_days() -> None:
    state = State(NOW - 7 * DAY_S, np.array([4.0, -DAY_S, -3 * DAY_S, math.nan]))
    reply = shown(state, Profile())
    assert reply.customer_id == "root"
    assert {f.name: f.value if f.HasField("value") else None for f in reply.features} == {
        "visits": 2.0,
        "last": 8.0,
        "first": 10.0,
        "income": None,
    }


def test_what_never_happened_has_no_value() -> None:
    reply = shown(State(NOW, LAYOUT.identity), Profile())
    assert [(f.name, f.HasField("value")) for f in reply.features] == [
        *(("visits", True), ("last", False), ("first", False), ("income", False))
    ]
    assert not reply.HasField("first_seen_time")
    assert not reply.HasField("last_seen_time")


def test_who_has_no_state_is_shown_as_somebody_new() -> None:
    reply = shown(None, Profile(scoring=False))
    assert [f.value for f in reply.features] == [0.0] * 4
    assert [f.HasField("value") for f in reply.features] == [True, False, False, False]
    assert (reply.consent.scoring, reply.consent.automated_response) == (False, True)


@pytest.mark.parametrize(
    ("record", "first", "last"),
    [
        (Profile(), NOW - 10 * DAY_S, NOW - DAY_S),
        (Profile(first_seen=NOW - 5 * DAY_S, last_seen=NOW - 5.5), NOW - 10 * DAY_S, NOW - 5.5),
        (Profile(first_seen=NOW - 20 * DAY_S, last_seen=NOW - 2 * DAY_S), NOW - 20 * DAY_S, NOW - DAY_S),
    ],
)
def test_first_and_last_seen_are_those_of_state_and_record_together(record: Profile, first: float, last: float) -> None:
    reply = shown(State(NOW, np.array([1.0, -DAY_S, -10 * DAY_S, 3.0])), record)
    assert reply.first_seen_time == Timestamp(seconds=int(first), nanos=int(first % 1 * 1e9))
    assert reply.last_seen_time == Timestamp(seconds=int(last), nanos=int(last % 1 * 1e9))


def test_channels_come_with_the_most_first_and_aliases_all() -> None:
    reply = shown(None, Profile(channels={"app": 2, "web": 9, "mail": 2}, aliases=["x", "y"]))
    assert [(c.channel, c.events) for c in reply.channels] == [("web", 9), ("app", 2), ("mail", 2)]
    assert list(reply.aliases) == ["x", "y"]


def test_interests_are_those_that_were_not_bought_and_have_not_faded() -> None:
    half_life_s = Interests().half_life_s
    interests = [
        Interest("lamp", 3, 2.5, NOW - 60.5),
        Interest("old", 1, 1.0, NOW - 4.9 * half_life_s),
        Interest("older", 1, 1.0, NOW - 5.1 * half_life_s),
        Interest("bought", 0, 0.0, NOW),
    ]
    reply = shown(None, Profile(interests=interests))
    assert [(i.item_id, i.views) for i in reply.interests] == [("lamp", 3), ("old", 1)]
    assert reply.interests[0] == scoring_pb2.Interest(
        item_id="lamp", views=3, last_view_time=Timestamp(seconds=int(NOW) - 61, nanos=500_000_000)
    )


# --- changing -------------------------------------------------------------------------------------------------------


def test_a_merge_tells_which_id_stays() -> None:
    store = FakeStore()
    request = customers_pb2.MergeCustomersRequest(source_customer_id="a", target_customer_id="b")
    reply = customers_pb2.MergeCustomersResponse.FromString(call(customers(store).merge, request))
    assert (reply.customer_id, store.asked) == ("root", [("merge", "a", "b")])


def test_an_erasure_answers_nothing() -> None:
    store = FakeStore()
    assert call(customers(store).delete, customers_pb2.DeleteCustomerRequest(customer_id="a")) == b""
    assert store.asked == [("erase", "a")]


@pytest.mark.parametrize(
    ("sent", "asked"),
    [
        ({"scoring": False}, (False, None)),
        ({"automated_response": True}, (None, True)),
        ({"scoring": True, "automated_response": False}, (True, False)),
    ],
)
def test_consent_that_is_not_set_is_left_as_it_was(
    sent: dict[str, bool], asked: tuple[bool | None, bool | None]
) -> None:
    store = FakeStore()
    request = customers_pb2.SetConsentRequest(customer_id="a", **sent)
    reply = customers_pb2.SetConsentResponse.FromString(call(customers(store).set_consent, request))
    assert store.asked == [("consent", "a", *asked)]
    assert reply.consent == customers_pb2.Consent(
        scoring=asked[0] is not False, automated_response=asked[1] is not False
    )


def test_consent_to_nothing_at_all_is_refused() -> None:
    store = FakeStore()
    with pytest.raises(RequestError) as caught:
        call(customers(store).set_consent, customers_pb2.SetConsentRequest(customer_id="a"))
    assert (caught.value.reason, store.asked) == (Reason.CONSENT_MISSING, [])


GET = customers_pb2.GetCustomerRequest
DELETE = customers_pb2.DeleteCustomerRequest
MERGE = customers_pb2.MergeCustomersRequest
CONSENT = customers_pb2.SetConsentRequest


@pytest.mark.parametrize("bad", ["", "x" * 257, "a\nb", "\u200b"])
@pytest.mark.parametrize(
    ("name", "kind", "wrong", "others"),
    [
        ("get", GET, "customer_id", {}),
        ("delete", DELETE, "customer_id", {}),
        ("set_consent", CONSENT, "customer_id", {"scoring": True}),
        ("merge", MERGE, "source_customer_id", {"target_customer_id": "b"}),
        ("merge", MERGE, "target_customer_id", {"source_customer_id": "a"}),
    ],
)
def test_a_bad_id_is_refused_by_its_field_before_anything_is_done(
    name: str, kind: Any, wrong: str, others: dict[str, Any], bad: str
) -> None:
    store = FakeStore()
    with pytest.raises(RequestError) as caught:
        call(getattr(customers(store), name), kind(**others, **{wrong: bad}))
    assert (caught.value.reason, caught.value.field) == (Reason.CUSTOMER_ID_INVALID, wrong)
    assert not bad or bad not in caught.value.message
    assert store.asked == []


@pytest.mark.parametrize("name", ["get", "merge", "delete", "set_consent"])
def test_bytes_that_are_no_request_are_malformed(name: str) -> None:
    async def ask() -> None:
        await getattr(customers(FakeStore()), name)(b"\xff", NO_CONTEXT)

    with pytest.raises(RequestError) as caught:
        asyncio.run(ask())
    assert caught.value.reason is Reason.REQUEST_MALFORMED


# --- failing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "reason", "code", "name"),
    [
        (StoreUnavailableError("secret"), Reason.FEATURE_STORE_UNAVAILABLE, Code.UNAVAILABLE, None),
        (StoreFullError("OOM"), Reason.FEATURE_STORE_FULL, Code.RESOURCE_EXHAUSTED, None),
        (NotInClusterError(), Reason.NOT_IN_CLUSTER, Code.FAILED_PRECONDITION, None),
        (UnknownCustomerError(), Reason.CUSTOMER_UNKNOWN, Code.NOT_FOUND, "customer_id"),
        (UnreadableProfileError(), Reason.STATE_UNREADABLE, Code.DATA_LOSS, "customer_id"),
        (ConflictError(), Reason.CONFLICT, Code.ABORTED, None),
        (MergeRefusedError(ITSELF), Reason.MERGE_WITH_ITSELF, Code.INVALID_ARGUMENT, "source_customer_id"),
        (MergeRefusedError(CYCLE), Reason.MERGE_CYCLE, Code.FAILED_PRECONDITION, "target_customer_id"),
        (MergeRefusedError(ALREADY), Reason.ALREADY_MERGED, Code.FAILED_PRECONDITION, "source_customer_id"),
        (MergeRefusedError(TOO_MANY), Reason.TOO_MANY_ALIASES, Code.FAILED_PRECONDITION, "target_customer_id"),
    ],
)
def test_whatever_goes_wrong_is_told_by_its_reason(
    failure: Exception, reason: Reason, code: Code, name: str | None
) -> None:
    with pytest.raises(RequestError) as caught:
        call(
            customers(FakeStore(failure=failure)).merge, MERGE(source_customer_id="a-4711", target_customer_id="b-4711")
        )
    assert (caught.value.reason, caught.value.code, caught.value.field) == (reason, code, name)
    assert "4711" not in caught.value.message
    assert "secret" not in caught.value.message


def test_every_refusal_of_a_merge_has_words_of_its_own() -> None:
    assert set(MERGE_REFUSALS) == {ITSELF, CYCLE, ALREADY, TOO_MANY}
    assert len({message for _, message in MERGE_REFUSALS.values()}) == 4


@pytest.mark.parametrize("failure", [None, StoreUnavailableError()])
def test_what_was_begun_is_finished_though_the_caller_does_not_wait(failure: Exception | None) -> None:
    async def main() -> None:
        store = FakeStore(failure=failure, gate=(gate := asyncio.Event()))
        waiting = asyncio.create_task(customers(store).delete(DELETE(customer_id="a").SerializeToString(), NO_CONTEXT))
        await settle()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert store.finished == 0
        gate.set()
        await asyncio.wait_for(store.has_finished.wait(), PATIENCE_S)
        assert store.finished == 1

    asyncio.run(main())
