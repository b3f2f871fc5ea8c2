"""Why a score is what it is, over a socket: exact sums, sentences, limits; nothing for those who get no score."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import grpc
import grpc.aio
import pytest
from tidemark.v1 import scoring_pb2, scoring_pb2_grpc

from service.scoring.model import Model
from tests.e2e.conftest import refused
from tests.e2e.live import info_of, someone
from tests.e2e.server_process import ServerProcess
from tests.waiting import PATIENCE_S
from tidemark import CustomerClient, Event, EventClient, Problem, Score, ScoringClient

KNOWN = "900"
ROUNDING = 1e-9


@pytest.fixture(scope="session")
def stub(channel: grpc.Channel) -> scoring_pb2_grpc.ScoringServiceStub:
    return scoring_pb2_grpc.ScoringServiceStub(channel)


@pytest.fixture(scope="module")
def model(small_registry: Path) -> Model:
    return Model.current(small_registry)


def check(score: Score) -> None:
    """Both alerts are explained, and their explanations sum to them."""
    for alert in (score.churn, score.propensity):
        why = alert.explanation
        assert why is not None
        reported = math.fsum(item.contribution for item in why.contributions)
        assert abs(why.baseline_probability + reported + why.other_contribution - alert.probability) < ROUNDING
        sizes = [abs(item.contribution) for item in why.contributions]
        assert sizes == sorted(sizes, reverse=True)


def test_a_score_is_explained_in_sentences_that_sum_to_it(client: ScoringClient, model: Model) -> None:
    plain, score = client.score(KNOWN), client.score(KNOWN, explain=True)
    check(score)
    assert plain.churn.explanation is None
    assert score.churn.probability == pytest.approx(plain.churn.probability, abs=1e-3)
    why = score.churn.explanation
    assert why is not None
    assert why.exact
    assert 0 < len(why.contributions) <= 5
    names = {feature.name for feature in model.layout.features}
    for item in why.contributions:
        assert item.reason_code.startswith(item.feature.upper())
        direction = "raises" if item.contribution > 0 else "lowers"
        assert item.sentence.endswith("points.")
        assert f"this {direction} the probability of leaving by" in item.sentence
        assert {slot.slot for slot in item.slots} <= names


def test_all_customers_have_one_baseline_and_fewer_reasons_leave_more_to_the_rest(client: ScoringClient) -> None:
    scores = [s for s in client.score_many(["900", "1", "2"], explain=True, max_reasons=1) if isinstance(s, Score)]
    for score in scores:
        check(score)
    explanations = [score.churn.explanation for score in scores if score.churn.explanation]
    assert len(explanations) == 3
    assert len({why.baseline_probability for why in explanations}) == 1
    assert all(len(why.contributions) == 1 for why in explanations)


def test_a_batch_of_a_hundred_is_explained_and_each_error_is_its_own(client: ScoringClient) -> None:
    ids = [*(str(i) for i in range(1, 120)), "nobody-4711", ""]
    result = client.score_many(ids, explain=True, timeout_s=PATIENCE_S)
    assert len(result) == len(ids)
    plain = client.score_many(ids, timeout_s=PATIENCE_S)
    assert [type(item) for item in result] == [type(item) for item in plain]
    scores = [item for item in result if isinstance(item, Score)]
    assert len(scores) > 100
    for item in scores:
        check(item)
    assert [item.reason for item in result[-2:] if isinstance(item, Problem)] == [
        "CUSTOMER_UNKNOWN",
        "CUSTOMER_ID_INVALID",
    ]


def test_too_many_to_explain_are_an_invalid_argument(stub: scoring_pb2_grpc.ScoringServiceStub) -> None:
    request = scoring_pb2.BatchScoreCustomersRequest(customer_ids=[KNOWN] * 101)
    assert len(stub.BatchScoreCustomers(request).results) == 101
    request.explain = True
    with refused(grpc.StatusCode.INVALID_ARGUMENT) as result:
        stub.BatchScoreCustomers(request)
    info = info_of(result[0])
    assert (info.reason, info.metadata["field"]) == ("TOO_MANY_EXPLAINED", "customer_ids")


def test_nothing_is_explained_where_there_is_no_score(
    server: ServerProcess, stub: scoring_pb2_grpc.ScoringServiceStub
) -> None:
    with refused(grpc.StatusCode.NOT_FOUND):
        stub.ScoreCustomer(scoring_pb2.ScoreCustomerRequest(customer_id="nobody-4711", explain=True))
    shy = someone("shy")
    with (
        EventClient(server.target, timeout_s=PATIENCE_S) as events,
        CustomerClient(server.target, timeout_s=PATIENCE_S) as customers,
    ):
        events.record([Event(shy, "purchase", amount=5.0)])
        customers.set_consent(shy, scoring=False)
        with refused(grpc.StatusCode.PERMISSION_DENIED):
            stub.ScoreCustomer(scoring_pb2.ScoreCustomerRequest(customer_id=shy, explain=True))
        customers.delete(shy)


def test_a_newcomer_is_explained_from_the_next_score_on(server: ServerProcess, client: ScoringClient) -> None:
    new = someone("new")
    with (
        EventClient(server.target, timeout_s=PATIENCE_S) as events,
        CustomerClient(server.target, timeout_s=PATIENCE_S) as customers,
    ):
        events.record([Event(new, "purchase", amount=5.0)])
        customers.set_consent(new, automated_response=False)
        score = client.score(new, explain=True, max_reasons=50)
        customers.delete(new)
    check(score)
    assert score.churn.automated_response_off
    assert score.propensity.explanation is not None
    reported = {item.feature: item for item in score.propensity.explanation.contributions}
    assert "less than a day ago" in reported["purchase_recency"].sentence
    visits = reported["visit_count"].slots[0]
    assert (visits.value, visits.text.partition(" ")[0]) == (0.0, "0")


def test_plain_calls_go_on_beside_explanations(server: ServerProcess) -> None:
    many = [str(i) for i in range(1, 101)]

    async def calls() -> int:
        async with grpc.aio.insecure_channel(server.target) as channel:
            stub = scoring_pb2_grpc.ScoringServiceStub(channel)
            request = scoring_pb2.BatchScoreCustomersRequest(customer_ids=many, explain=True)
            explaining = [asyncio.ensure_future(stub.BatchScoreCustomers(request)) for _ in range(4)]
            done = 0
            while not any(call.done() for call in explaining):
                await stub.ScoreCustomer(scoring_pb2.ScoreCustomerRequest(customer_id=KNOWN))
                done += 1
            replies = await asyncio.gather(*explaining)
            assert all(len(reply.results) == len(many) for reply in replies)
            return done

    assert asyncio.run(calls()) > 5  # none of them had to wait for the explanations
