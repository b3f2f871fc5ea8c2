"""The contract of CustomerService over a socket: what is known, two who become one, consent, and being forgotten."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
import redis
from tidemark.v1 import customers_pb2

from feature_store.state.checksum import with_checksum
from feature_store.state.profile import MAX_ALIASES, Profile
from tests.e2e.conftest import refused
from tests.e2e.live import CUSTOMERS, HOUR_S, Live, calling, event, info_of, may_retry, someone, told_of
from tests.e2e.server_process import ServerProcess
from tests.waiting import PATIENCE_S

BAD_IDS = ["", "x" * 257, "tab\there"]


Ask = Callable[[str], Any]


@pytest.fixture(scope="module")
def live(channel: grpc.Channel) -> Live:
    return Live(channel)


def call(live: Live, method: str, request: bytes) -> bytes:
    """A method with bytes of the test's own."""
    unary: Any = live.channel.unary_unary(f"/{CUSTOMERS}/{method}")
    return bytes(unary(request, timeout=PATIENCE_S))


# --- what is known --------------------------------------------------------------------------------------------------


def test_a_customer_is_shown_with_all_that_is_known(live: Live) -> None:
    customer = someone()
    live.record(
        event(customer, "purchase", ago_s=48 * HOUR_S, amount=20, channel="store"),
        *(event(customer, ago_s=10 * n, item_id="boots", channel="web") for n in range(1, 4)),
        event(customer, ago_s=5, item_id="hat", channel="app"),
    )
    result = live.get(customer)
    assert result.customer_id == customer
    assert [(channel.channel, channel.events) for channel in result.channels] == [("web", 3), ("app", 1), ("store", 1)]
    assert [(interest.item_id, interest.views) for interest in result.interests] == [("boots", 3), ("hat", 1)]
    assert result.last_seen_time.ToNanoseconds() - result.first_seen_time.ToNanoseconds() == pytest.approx(
        48 * HOUR_S * 1e9, 1e-3
    )
    assert (result.consent.scoring, result.consent.automated_response) == (True, True)
    assert list(result.aliases) == []
    values = {feature.name: feature.value if feature.HasField("value") else None for feature in result.features}
    assert values["purchase_latest"] == pytest.approx(2.0, rel=1e-3)
    for half_life, amount in live.decayed(customer, "purchase_amount").items():
        assert amount == pytest.approx(20 * 2 ** (-2 / half_life), rel=1e-3)
    assert live.count(customer, "visit") == 0


def test_who_was_loaded_is_shown_too(live: Live) -> None:
    result = live.get("900")
    assert live.count("900", "purchase") > 0
    assert result.HasField("first_seen_time")
    assert result.HasField("last_seen_time")
    assert not result.channels


def test_of_whom_only_consent_is_known_nothing_else_is_shown(live: Live) -> None:
    customer = someone()
    assert live.consent(customer, automated_response=False) == (True, False)
    result = live.get(customer)
    assert not result.HasField("first_seen_time")
    assert not result.HasField("last_seen_time")
    assert live.feature(customer, "purchase_latest") is None
    with refused(grpc.StatusCode.NOT_FOUND) as reported:
        live.score(customer)
    assert info_of(reported[0]).reason == "CUSTOMER_UNKNOWN"


def test_nobody_is_known_before_the_first_event(live: Live) -> None:
    customer = someone()
    for ask in (live.get, live.score):
        with refused(grpc.StatusCode.NOT_FOUND) as result:
            ask(customer)
        assert told_of(result[0]) == ("CUSTOMER_UNKNOWN", "customer_id")
        assert customer not in result[0].message
    live.record(event(customer, "visit"))
    assert live.score(customer).customer_id == customer


@pytest.mark.parametrize("bad", BAD_IDS)
def test_a_bad_id_is_an_invalid_argument_everywhere(live: Live, bad: str) -> None:
    asked: dict[str, list[Ask]] = {
        "customer_id": [live.get, live.delete, lambda one: live.consent(one, scoring=True)],
        "source_customer_id": [lambda one: live.merge(one, "x")],
        "target_customer_id": [lambda one: live.merge("x", one)],
    }
    for field, calls in asked.items():
        for ask in calls:
            with refused(grpc.StatusCode.INVALID_ARGUMENT) as result:
                ask(bad)
            assert told_of(result[0]) == ("CUSTOMER_ID_INVALID", field)


@pytest.mark.parametrize("method", ["GetCustomer", "MergeCustomers", "DeleteCustomer", "SetConsent"])
def test_bytes_that_are_no_request_are_an_invalid_argument(live: Live, method: str) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT) as result:
        call(live, method, b"\xff\xff")
    assert info_of(result[0]).reason == "REQUEST_MALFORMED"


def test_what_cannot_be_read_is_data_loss_until_it_is_deleted(live: Live, loaded_redis: str) -> None:
    customer = someone()
    live.record(event(customer, "visit"))
    with redis.Redis.from_url(loaded_redis) as store:
        store.set(f"tm:live:{customer}", b"no record")
    asked: list[Ask] = [live.get, live.score, lambda one: live.consent(one, scoring=True)]
    asked.append(lambda one: live.merge(one, someone()))
    for ask in asked:
        with refused(grpc.StatusCode.DATA_LOSS) as result:
            ask(customer)
        assert info_of(result[0]).reason == "STATE_UNREADABLE"
    (rejected,) = live.record(event(customer)).rejected
    assert (rejected.field, rejected.reason) == ("customer_id", "STATE_UNREADABLE")
    live.delete(customer)
    assert live.record(event(customer, "visit")).accepted == 1
    assert live.score(customer).customer_id == customer


# --- two who become one ---------------------------------------------------------------------------------------------


def test_two_ids_become_one_customer_whose_states_add_up(live: Live) -> None:
    visitor, customer = someone("visitor"), someone()
    live.record(
        event(visitor, item_id="boots", channel="web", event_id="1"),
        event(visitor, "purchase", amount=10, channel="web"),
        event(customer, "purchase", amount=30, ago_s=24 * HOUR_S, channel="store"),
        event(customer, item_id="boots", channel="web"),
    )
    assert live.merge(visitor, customer) == customer
    item = live.get(visitor)
    assert (item.customer_id, list(item.aliases)) == (customer, [visitor])
    for half_life, amount in live.decayed(visitor, "purchase_amount").items():
        assert amount == pytest.approx(10 + 30 * 2 ** (-1 / half_life), rel=1e-4)
    assert [(channel.channel, channel.events) for channel in item.channels] == [("web", 3), ("store", 1)]
    assert [(interest.item_id, interest.views) for interest in item.interests] == [("boots", 2)]


def test_later_events_and_scores_under_the_old_id_reach_the_new_one(live: Live) -> None:
    visitor, customer = someone("visitor"), someone()
    live.record(event(visitor, "visit", event_id="before"), event(customer, "visit"))
    live.merge(visitor, customer)
    reply = live.record(event(visitor, item_id="boots", event_id="after"), event(visitor, "visit", event_id="before"))
    assert (reply.accepted, reply.duplicates) == (1, 1)
    assert live.record(event(customer, event_id="after")).duplicates == 1  # the id is one customer's now
    scores = [live.score(visitor), live.score(customer)]
    assert [score.customer_id for score in scores] == [visitor, customer]
    assert [score.top_interest.item_id for score in scores] == ["boots"] * 2
    assert scores[0].churn.probability == pytest.approx(scores[1].churn.probability, rel=1e-4)
    results = live.score_many(visitor, customer, visitor)
    assert [result.score.customer_id for result in results] == [visitor, customer, visitor]
    assert live.count(customer, "visit") == pytest.approx(2, rel=1e-3)


def test_a_merge_again_changes_nothing_and_a_chain_leads_to_its_end(live: Live) -> None:
    first, second, third = someone(), someone(), someone()
    live.record(event(first, channel="a"), event(second, channel="b"), event(third, channel="c"))
    assert live.merge(first, second) == live.merge(first, second) == second
    assert live.merge(second, third) == third
    assert live.merge(first, third) == live.merge(first, second) == third
    assert {live.get(item).customer_id for item in (first, second, third)} == {third}
    assert sorted(live.get(first).aliases) == sorted([first, second])
    assert live.counted(first) == 3


def test_a_merge_that_makes_no_sense_is_refused_with_its_reason(live: Live) -> None:
    first, second, other = someone(), someone(), someone()
    live.record(event(first), event(second), event(other))
    with refused(grpc.StatusCode.INVALID_ARGUMENT) as result:
        live.merge(first, first)
    assert told_of(result[0]) == ("MERGE_WITH_ITSELF", "source_customer_id")
    live.merge(first, second)
    for given_up, stays, reason in ((second, first, "MERGE_CYCLE"), (first, other, "ALREADY_MERGED")):
        with refused(grpc.StatusCode.FAILED_PRECONDITION) as result:
            live.merge(given_up, stays)
        assert info_of(result[0]).reason == reason
        assert not may_retry(result[0])
    assert live.get(first).customer_id == second


def test_an_id_that_a_thousand_share_is_no_customers(live: Live, loaded_redis: str) -> None:
    visitor, customer = someone("visitor"), someone()
    live.record(event(visitor))
    with redis.Redis.from_url(loaded_redis) as store:
        key = f"tm:live:{customer}".encode()
        store.set(key, with_checksum(key, Profile(aliases=[f"a{n}" for n in range(MAX_ALIASES)]).pack()))
    with refused(grpc.StatusCode.FAILED_PRECONDITION) as result:
        live.merge(visitor, customer)
    assert told_of(result[0]) == ("TOO_MANY_ALIASES", "target_customer_id")
    assert live.get(visitor).customer_id == visitor


def test_who_is_known_to_nobody_can_be_merged_all_the_same(live: Live) -> None:
    visitor, customer = someone("visitor"), someone()
    assert live.merge(visitor, customer) == customer
    live.record(event(visitor, "visit"))
    assert live.score(customer).customer_id == customer


def test_merges_and_events_at_once_lose_nothing(server: ServerProcess, live: Live) -> None:
    customer, visitors = someone(), [someone("visitor") for _ in range(12)]

    def act(visitor: str) -> None:
        with calling(server.target) as ours:
            for number in range(20):
                assert ours.record(event(visitor, "visit", channel="web", event_id=f"{visitor}-{number}")).accepted == 1
                if number == 10:
                    assert ours.merge(visitor, customer) == customer

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(act, visitors))
    assert live.counted(customer) == 240
    assert live.count(customer, "visit") == pytest.approx(240, rel=1e-3)
    assert sorted(live.get(customer).aliases) == sorted(visitors)


# --- consent --------------------------------------------------------------------------------------------------------


def test_who_does_not_allow_scoring_gets_no_score_and_leaves_no_events(live: Live) -> None:
    customer, other = someone(), someone()
    live.record(event(customer, "visit", channel="web"), event(other, "visit"))
    assert live.consent(customer, scoring=False) == (False, True)
    with refused(grpc.StatusCode.PERMISSION_DENIED) as result:
        live.score(customer)
    assert told_of(result[0]) == ("CONSENT_WITHHELD", "customer_id")
    withheld, scored, unknown = live.score_many(customer, other, someone())
    assert withheld.status.code == grpc.StatusCode.PERMISSION_DENIED.value[0]
    assert told_of(withheld.status) == ("CONSENT_WITHHELD", "customer_ids")
    assert scored.score.customer_id == other
    assert unknown.status.code == grpc.StatusCode.NOT_FOUND.value[0]
    reply = live.record(event(customer, "visit"), event(other, "visit"))
    assert (reply.accepted, [item.index for item in reply.rejected]) == (1, [0])
    assert reply.rejected[0].reason == "CONSENT_WITHHELD"
    assert live.counted(customer) == 1
    assert live.consent(customer, scoring=True) == (True, True)
    assert live.score(customer).customer_id == customer


def test_without_automated_response_alerts_are_off_and_say_so(live: Live) -> None:
    customer = someone()
    live.record(event(customer, "visit"), *(event(customer, item_id="boots") for _ in range(4)))
    assert live.score(customer).propensity.repeated_view
    live.consent(customer, automated_response=False)
    (result,) = live.score_many(customer)
    for score in (live.score(customer), result.score):
        assert score.top_interest.item_id == "boots"
        for alert in (score.churn, score.propensity):
            assert (alert.alert, alert.repeated_view, alert.automated_response_off) == (False, False, True)
            assert 0 < alert.probability < 1
    live.consent(customer, automated_response=True)
    score = live.score(customer)
    assert score.propensity.repeated_view
    assert not score.churn.automated_response_off


def test_consent_is_kept_part_by_part_and_the_stricter_one_stays_in_a_merge(live: Live) -> None:
    first, second = someone(), someone()
    assert live.consent(first, scoring=False, automated_response=False) == (False, False)
    assert live.consent(first, scoring=True) == (True, False)
    assert live.consent(second, scoring=False) == (False, True)
    live.merge(first, second)
    for item in (first, second):
        consent = live.get(item).consent
        assert (consent.scoring, consent.automated_response) == (False, False)
    assert live.consent(first, scoring=True) == (True, False)
    assert live.get(second).consent.scoring


def test_consent_without_an_answer_is_an_invalid_argument(live: Live) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT) as result:
        live.consent(someone())
    assert told_of(result[0]) == ("CONSENT_MISSING", "scoring")


# --- being forgotten ------------------------------------------------------------------------------------------------


def test_who_is_deleted_is_forgotten_under_all_names(live: Live, loaded_redis: str) -> None:
    visitor, customer = someone("visitor"), someone()
    live.record(event(visitor, item_id="boots", event_id="1"), event(customer, "purchase", amount=5))
    live.merge(visitor, customer)
    live.consent(customer, scoring=False)
    live.delete(visitor)
    for item in (visitor, customer):
        for ask in (live.get, live.score):
            with refused(grpc.StatusCode.NOT_FOUND) as result:
                ask(item)
            assert info_of(result[0]).reason == "CUSTOMER_UNKNOWN"
        live.delete(item)  # again
    with redis.Redis.from_url(loaded_redis) as store:
        for name in store.scan_iter(count=10_000):
            assert customer.encode() not in name
            if re.fullmatch(rb"tm:log:\d+", name):
                entry = store.get(name)
                assert visitor.encode() not in (entry or b"")
    assert live.record(event(visitor, item_id="hat", event_id="1", channel="web")).accepted == 1  # starts from nothing
    found_ = live.get(visitor)
    assert (found_.customer_id, found_.consent.scoring, list(found_.aliases)) == (visitor, True, [])
    assert live.counted(visitor) == 1
    with refused(grpc.StatusCode.NOT_FOUND):
        live.get(customer)


def test_a_deletion_amid_events_leaves_only_what_came_after_it(server: ServerProcess, live: Live) -> None:
    customer = someone()

    def act(number: int) -> None:
        with calling(server.target) as ours:
            for at in range(50):
                reply = ours.record(event(customer, "visit", channel="web", event_id=f"{number}-{at}"))
                # An event that happened before the deletion, and comes in after it, is not accepted.
                assert reply.accepted == 1 or reply.rejected[0].reason == "EVENT_TOO_LATE"

    with ThreadPoolExecutor(3) as pool:
        acting = [pool.submit(act, number) for number in range(3)]
        while not all(item.done() for item in acting):
            live.delete(customer)
        for item in acting:
            item.result()
    live.delete(customer)
    live.record(event(customer, "visit", channel="web"))
    assert live.counted(customer) == 1
    assert live.count(customer, "visit") == pytest.approx(1, rel=1e-3)


def test_unknown_fields_are_passed_over(live: Live) -> None:
    customer = someone()
    live.record(event(customer))
    request = customers_pb2.GetCustomerRequest(customer_id=customer).SerializeToString() + b"\xfa\x01\x03abc"
    assert customers_pb2.GetCustomerResponse.FromString(call(live, "GetCustomer", request)).customer_id == customer
