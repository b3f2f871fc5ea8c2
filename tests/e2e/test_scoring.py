"""The contract of ScoringService, called over a socket as any other service would."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from tidemark.v1 import scoring_pb2, scoring_pb2_grpc

from feature_store.bundles import bundle
from feature_store.config import FeatureConfig, load_config
from feature_store.offline.store import OfflineStore
from feature_store.online.state_writer import StateWriter
from feature_store.state.layout import StateBatch, StateLayout
from service.scoring.model import Model
from tests.conftest import Trained
from tests.e2e.conftest import refused
from tests.e2e.live import info_of
from tests.e2e.server_process import ServerProcess
from tests.waiting import FIT_S, PATIENCE_S
from tidemark import Economics, Offer, Problem, Score, ScoringClient

KNOWN = "900"

pytestmark = pytest.mark.both_fronts


@pytest.fixture(scope="session")
def stub(channel: grpc.Channel) -> scoring_pb2_grpc.ScoringServiceStub:
    return scoring_pb2_grpc.ScoringServiceStub(channel)


def test_a_customer_gets_two_alerts_a_spend_and_the_model_that_says_so(
    client: ScoringClient, small_registry: Path
) -> None:
    score = client.score(KNOWN)
    assert score.customer_id == KNOWN
    for alert in (score.churn, score.propensity):
        assert 0 < alert.probability < 1
        assert 0 < alert.threshold <= 1
        assert alert.alert is (alert.probability >= alert.threshold)
    assert score.expected_spend > 0
    assert timedelta(0) <= datetime.now(UTC) - score.feature_time < timedelta(hours=1)
    assert score.model_version == bundle.read(small_registry).manifest.version


def test_every_customer_scores_as_the_offline_states_do(client: ScoringClient, small: Trained) -> None:
    assert_online_is_offline(client, small.registry, str(small.shop.config))


@pytest.mark.one_front
def test_every_household_of_the_sample_scores_as_the_offline_states_do(
    redis_url: str, sample_registry: Path, tmp_path: Path
) -> None:
    store = ["--registry", str(sample_registry), "--redis", f"{redis_url}?db=3"]
    load = [sys.executable, "-m", "feature_store", "load", "complete_journey", *store, "--shift-to-now"]
    subprocess.run(load, check=True, capture_output=True, timeout=FIT_S)
    with ServerProcess(tmp_path, *store, "--port", "0") as server:
        server.wait_for("health is SERVING")
        with ScoringClient(server.target, timeout_s=PATIENCE_S) as client:
            assert_online_is_offline(client, sample_registry, "complete_journey")


def assert_online_is_offline(client: ScoringClient, registry: Path, config: str) -> None:
    """The scores of all customers of a shop are those that its model gives their states in the source."""
    model = Model.current(registry)
    with OfflineStore(load_config(FeatureConfig, config).source) as source:
        states = source.states(model.layout, source.summary.end)
    ids = states.customer_ids.tolist()
    before = time.time()
    result = client.score_many(ids)
    after = time.time()
    scores = [score for score in result if isinstance(score, Score)]
    assert [score.customer_id for score in scores] == ids
    moment = np.array([score.feature_time.timestamp() for score in scores])
    yes = np.ones(len(ids), dtype=bool)
    batch = StateBatch(yes, yes, moment, states.slots)
    served = np.array([[s.churn.probability, s.propensity.probability, s.expected_spend] for s in scores])
    # Within the call an age may cross the split point of a tree, which moves a score: it must be that of either side.
    near = []
    for now in (before, after):
        expected = model.run(batch, now, np.tile(model.economics, (len(ids), 1)))[:, :3]
        near.append(np.abs(served - expected) <= np.array([2e-4, 2e-4, 0.0]) + expected * np.array([0.0, 0.0, 2e-3]))
    assert (near[0] | near[1]).all(), served[~(near[0] | near[1]).all(axis=1)]


def test_thresholds_differ_between_customers_and_some_alert(client: ScoringClient) -> None:
    scores = [score for score in client.score_many([str(n) for n in range(1, 1001)]) if isinstance(score, Score)]
    assert len({score.churn.threshold for score in scores}) > 500
    assert 0 < sum(score.churn.alert for score in scores) < len(scores) / 2
    assert 0 < sum(score.propensity.alert for score in scores) < len(scores)


def test_an_unknown_customer_is_not_found(stub: scoring_pb2_grpc.ScoringServiceStub) -> None:
    with refused(grpc.StatusCode.NOT_FOUND) as result:
        stub.ScoreCustomer(scoring_pb2.ScoreCustomerRequest(customer_id="nobody-4711"))
    info = info_of(result[0])
    assert (info.reason, info.metadata["field"]) == ("CUSTOMER_UNKNOWN", "customer_id")
    assert "4711" not in result[0].message


@pytest.mark.parametrize("customer_id", ["", "x" * 257, "tab\there"])
def test_a_bad_id_is_an_invalid_argument(stub: scoring_pb2_grpc.ScoringServiceStub, customer_id: str) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT) as result:
        stub.ScoreCustomer(scoring_pb2.ScoreCustomerRequest(customer_id=customer_id))
    assert info_of(result[0]).metadata["field"] == "customer_id"


def test_too_many_customers_are_an_invalid_argument(stub: scoring_pb2_grpc.ScoringServiceStub) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT) as result:
        stub.BatchScoreCustomers(scoring_pb2.BatchScoreCustomersRequest(customer_ids=[KNOWN] * 1001))
    assert info_of(result[0]).metadata["field"] == "customer_ids"
    response = stub.BatchScoreCustomers(scoring_pb2.BatchScoreCustomersRequest(customer_ids=[KNOWN] * 1000))
    assert len(response.results) == 1000


def test_features_older_than_allowed_are_a_failed_precondition(stub: scoring_pb2_grpc.ScoringServiceStub) -> None:
    request = scoring_pb2.ScoreCustomerRequest(customer_id=KNOWN, max_feature_age=Duration(nanos=1))
    with refused(grpc.StatusCode.FAILED_PRECONDITION) as result:
        stub.ScoreCustomer(request)
    info = info_of(result[0])
    assert (info.reason, info.metadata["field"]) == ("FEATURES_TOO_OLD", "max_feature_age")
    request.max_feature_age.FromTimedelta(timedelta(hours=2))
    assert stub.ScoreCustomer(request).score.customer_id == KNOWN


def test_bad_economics_and_bad_durations_name_their_field(stub: scoring_pb2_grpc.ScoringServiceStub) -> None:
    offer = scoring_pb2.Offer(success_rate=1.5)
    for field, request in {
        "economics.churn.success_rate": scoring_pb2.ScoreCustomerRequest(
            customer_id=KNOWN, economics=scoring_pb2.Economics(churn=offer)
        ),
        "max_feature_age": scoring_pb2.ScoreCustomerRequest(customer_id=KNOWN, max_feature_age=Duration(seconds=-1)),
    }.items():
        with refused(grpc.StatusCode.INVALID_ARGUMENT) as result:
            stub.ScoreCustomer(request)
        assert info_of(result[0]).metadata["field"] == field


def test_bytes_that_are_no_request_are_an_invalid_argument(channel: grpc.Channel) -> None:
    call: Any = channel.unary_unary("/tidemark.v1.ScoringService/ScoreCustomer")
    with refused(grpc.StatusCode.INVALID_ARGUMENT) as result:
        call(b"\xff\xff\xff")
    assert info_of(result[0]).reason == "REQUEST_MALFORMED"


def test_a_batch_keeps_the_order_and_answers_each_id(client: ScoringClient) -> None:
    results = client.score_many(["1128", "nobody", KNOWN, "", "1128"])
    first, unknown, known, empty, last = results
    assert isinstance(first, Score)
    assert isinstance(known, Score)
    assert first == last
    assert known.customer_id == KNOWN
    assert isinstance(unknown, Problem)
    assert (unknown.code, unknown.field) == (grpc.StatusCode.NOT_FOUND, "customer_ids")
    assert isinstance(empty, Problem)
    assert (empty.code, empty.field) == (grpc.StatusCode.INVALID_ARGUMENT, "customer_ids")
    assert client.score_many([]) == []


def test_a_batch_says_what_single_calls_say(client: ScoringClient) -> None:
    ids = [str(number) for number in range(1, 60)]
    for together in client.score_many(ids):
        if isinstance(together, Problem):
            continue
        alone = client.score(together.customer_id)
        assert alone.churn.probability == pytest.approx(together.churn.probability, abs=1e-4)
        assert alone.expected_spend == pytest.approx(together.expected_spend, rel=1e-4)


def test_an_offer_can_be_priced_without_retraining(client: ScoringClient) -> None:
    usual = client.score(KNOWN)
    dear = client.score(KNOWN, economics=Economics(churn=Offer(contact_cost=5.0)))
    worthless = client.score(KNOWN, economics=Economics(margin=0.0))
    free = Offer(contact_cost=0, offer_cost=0, success_rate=1, budget_price=0)
    certain = client.score(KNOWN, economics=Economics(churn=free))
    assert usual.churn.threshold < dear.churn.threshold
    assert usual.propensity.threshold == pytest.approx(dear.propensity.threshold, rel=1e-6)
    assert (worthless.churn.threshold, worthless.churn.alert) == (1.0, False)
    assert certain.churn.threshold < usual.churn.threshold
    rich = client.score(KNOWN, economics=Economics(churn=Offer(value_if_won=1e6)))
    assert rich.churn.value_if_won == 1e6
    assert rich.churn.threshold == pytest.approx(0.01)
    assert rich.propensity.value_if_won == pytest.approx(usual.propensity.value_if_won, rel=1e-6)


def test_a_threshold_is_the_published_formula(client: ScoringClient, small_registry: Path) -> None:
    figures = bundle.read(small_registry).manifest.economics
    scores = [score for score in client.score_many([str(n) for n in range(1, 200)]) if isinstance(score, Score)]
    assert len(scores) > 150
    for score in scores:
        for offer, alert in (("churn", score.churn), ("propensity", score.propensity)):
            cost, contact, success, redemption, price = (
                figures[f"{offer}.{name}"]
                for name in ("offer_cost", "contact_cost", "success_rate", "redemption_rate", "budget_price")
            )
            beyond = alert.value_if_won - cost
            expected = 1.0
            if beyond > 0:
                least, most = contact + price + redemption * cost, success * beyond + redemption * cost
                expected = min(max(least / most, 0.01), 1.0)
            assert alert.threshold == pytest.approx(expected, rel=1e-4)


def test_damaged_states_cost_nobody_else_their_score(
    client: ScoringClient, loaded_redis: str, small_registry: Path
) -> None:
    layout = StateLayout(bundle.read(small_registry).manifest.features)
    good = layout.pack_many(np.array([time.time()]), layout.identity[np.newaxis])[0]
    damaged = {
        "torn": good[:-1],
        "longer": good + b"\0",
        "foreign": b"{}",
        "other-fingerprint": good[:4] + b"\0\0\0\0" + good[8:],
        "not-a-number": good[:8] + b"\xff" * (len(good) - 8),
    }
    with StateWriter(loaded_redis, layout) as redis:
        redis.write(list(damaged), list(damaged.values()))
        results = client.score_many([*damaged, KNOWN])
        redis.delete(list(damaged))
    for problem in results[:-1]:
        assert isinstance(problem, Problem)
        assert (problem.code, problem.reason) == (grpc.StatusCode.DATA_LOSS, "STATE_UNREADABLE")
    assert isinstance(results[-1], Score)
