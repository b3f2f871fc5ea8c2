"""Redis killed, paused, emptied or a cluster, as callers of the whole server see it, on both fronts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import numpy as np
import pytest
import redis
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tidemark.v1 import scoring_pb2, scoring_pb2_grpc

from feature_store.online.state_writer import StateWriter
from feature_store.state.layout import State, StateLayout
from service.scoring.model import Model
from tests.conftest import Trained
from tests.e2e.conftest import RedisProcess, refused, until_answered
from tests.e2e.server_process import ServerProcess
from tests.redis_processes import cluster
from tests.waiting import PATIENCE_S, until
from tidemark import CallFailedError, CustomerClient, Event, EventClient, Problem, Score, ScoringClient

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
ONCE = [("grpc.enable_retries", 0)]
HOUR = timedelta(hours=1)
NAMES = [f"c{i}" for i in range(50)]
REDIS_TIMEOUT_S = 1.0


def fill(url: str, registry: Path) -> int:
    """States for all names, and when they are as of."""
    layout = Model.current(registry).layout
    moment = round(time.time() - 60.0)
    with StateWriter(url, layout) as writer:
        writer.write(NAMES, [layout.pack(some_state(layout, moment, n)) for n in range(len(NAMES))])
        writer.record_load({"as_of": moment})
    return moment


def some_state(layout: StateLayout, moment: float, number: int) -> State:
    slots = np.where(np.isfinite(layout.identity), float(number), layout.identity)
    slots[[f.aggregate in ("latest", "earliest") for f in layout.features]] = -86_400.0 * (1 + number)
    return State(moment, slots)


@dataclass(frozen=True)
class Shop:
    """A server with usual settings, but that it remembers states, and its Redis, which a test may harm."""

    server: ServerProcess
    redis: RedisProcess


@pytest.fixture(scope="module")
def shop(front: str, toy: Trained, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    assert front  # set before the server starts
    folder = tmp_path_factory.mktemp("o")
    redis = RedisProcess(folder)
    options = ["--registry", str(toy.registry), "--redis", redis.url, "--port", "0", "--stale-cache-bytes", "100000"]
    options += ["--redis-timeout-s", str(REDIS_TIMEOUT_S)]
    with ServerProcess(folder, *options) as server:
        server.wait_for("health is SERVING")
        yield Shop(server, redis)
    redis.resume()
    redis.kill()


@pytest.fixture
def moment(shop: Shop, toy: Trained) -> Iterator[int]:
    """When the states in Redis are as of; they are there, and the server knows it, before the test and after."""
    result = fill(shop.redis.url, toy.registry)
    with grpc.insecure_channel(shop.server.target, ONCE) as channel:
        until_answered(lambda: one_score(channel))
        await_health(channel, SERVING)
    yield result
    shop.redis.resume()
    if shop.redis.process.poll() is not None:
        shop.redis.start()
    with redis.Redis.from_url(shop.redis.url) as connection:
        connection.flushall()


@pytest.fixture
def running(shop: Shop, moment: int) -> ServerProcess:
    assert moment
    return shop.server


@pytest.fixture
def own_redis(shop: Shop) -> RedisProcess:
    return shop.redis


@pytest.fixture
def channel(running: ServerProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(running.target, ONCE) as result:
        yield result


@pytest.fixture
def client(running: ServerProcess) -> Iterator[ScoringClient]:
    with ScoringClient(running.target, timeout_s=PATIENCE_S) as result:
        yield result


def await_health(channel: grpc.Channel, wanted: int) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    until(lambda: stub.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S).status == wanted)


def one_score(channel: grpc.Channel) -> scoring_pb2.ScoreCustomerResponse:
    stub = scoring_pb2_grpc.ScoringServiceStub(channel)
    reply: scoring_pb2.ScoreCustomerResponse = stub.ScoreCustomer(
        scoring_pb2.ScoreCustomerRequest(customer_id="c1"), timeout=PATIENCE_S
    )
    return reply


@pytest.mark.parametrize("how", ["kill", "pause"])
def test_an_outage_is_told_at_once_and_ends_by_itself(
    how: str, running: ServerProcess, channel: grpc.Channel, own_redis: RedisProcess
) -> None:
    one_score(channel)
    getattr(own_redis, how)()
    with refused(grpc.StatusCode.UNAVAILABLE) as reported:
        one_score(channel)
    assert "RetryInfo" in str(reported[0].details)
    await_health(channel, NOT_SERVING)
    took = []
    for _ in range(21):
        start = time.monotonic()
        with refused(grpc.StatusCode.UNAVAILABLE):
            one_score(channel)
        took.append(time.monotonic() - start)
    # At once: calls that asked a paused Redis would each take its timeout.
    assert sorted(took)[10] < REDIS_TIMEOUT_S / 2
    own_redis.start() if how == "kill" else own_redis.resume()
    until_answered(lambda: one_score(channel))
    await_health(channel, SERVING)
    assert "Traceback" not in running.log


@pytest.mark.parametrize("how", ["kill", "pause"])
def test_health_follows_though_nobody_calls(how: str, channel: grpc.Channel, own_redis: RedisProcess) -> None:
    await_health(channel, SERVING)
    getattr(own_redis, how)()
    await_health(channel, NOT_SERVING)
    own_redis.start() if how == "kill" else own_redis.resume()
    await_health(channel, SERVING)


def test_events_and_customers_are_refused_at_once_too(running: ServerProcess, own_redis: RedisProcess) -> None:
    with (
        EventClient(running.target, timeout_s=PATIENCE_S) as events,
        CustomerClient(running.target, timeout_s=PATIENCE_S) as customers,
    ):
        events.record([Event("c1", "view", event_id="e1")])
        own_redis.kill()
        for call in (
            lambda: events.record([Event("c1", "view", event_id="e2")]),
            lambda: customers.get("c1"),
            lambda: customers.delete("c1"),
        ):
            with pytest.raises(CallFailedError) as caught:
                call()
            assert caught.value.problem.reason == "FEATURE_STORE_UNAVAILABLE"
            assert caught.value.problem.retry_after is not None


def test_who_allows_it_gets_a_score_of_before_that_says_so(
    client: ScoringClient, channel: grpc.Channel, own_redis: RedisProcess, moment: int
) -> None:
    fresh = client.score("c1", allow_stale=HOUR)
    assert not fresh.stale
    client.score("c2")
    own_redis.kill()
    await_health(channel, NOT_SERVING)
    result = client.score_many(["c1", "c3", "c2", ""], allow_stale=HOUR)
    first, unknown, second, bad = result
    assert isinstance(first, Score)
    assert isinstance(second, Score)
    assert (first.stale, second.stale) == (True, True)
    assert first.feature_time == fresh.feature_time == datetime.fromtimestamp(moment, UTC)
    assert first.churn.probability == pytest.approx(fresh.churn.probability, abs=1e-3)
    assert isinstance(unknown, Problem)
    assert (unknown.reason, unknown.field) == ("FEATURE_STORE_UNAVAILABLE", "allow_stale")
    assert isinstance(bad, Problem)
    assert bad.reason == "CUSTOMER_ID_INVALID"
    assert client.score("c1", allow_stale=HOUR).stale
    for options, reason in (
        ({}, "FEATURE_STORE_UNAVAILABLE"),
        ({"allow_stale": timedelta(0)}, "FEATURE_STORE_UNAVAILABLE"),
        ({"allow_stale": HOUR, "max_feature_age": timedelta(seconds=1)}, "FEATURES_TOO_OLD"),
        ({"allow_stale": timedelta(seconds=-1)}, "ALLOW_STALE_INVALID"),
    ):
        with pytest.raises(CallFailedError) as caught:
            client.score("c1", **options)  # type: ignore[arg-type]  # durations all
        assert caught.value.problem.reason == reason


def test_what_a_customer_withdrew_is_not_scored_from_memory(
    running: ServerProcess, client: ScoringClient, own_redis: RedisProcess
) -> None:
    with CustomerClient(running.target, timeout_s=PATIENCE_S) as customers:
        client.score_many(["c1", "c2", "c3"])
        customers.delete("c1")
        customers.set_consent("c2", scoring=False)
        with pytest.raises(CallFailedError, match="CONSENT_WITHHELD"):
            client.score("c2")
    own_redis.kill()
    reasons = [
        result.reason if isinstance(result, Problem) else "scored"
        for result in client.score_many(["c1", "c2", "c3"], allow_stale=HOUR)
    ]
    assert reasons == ["FEATURE_STORE_UNAVAILABLE", "CONSENT_WITHHELD", "scored"]


def test_a_redis_that_comes_back_empty_makes_nobody_unknown(
    client: ScoringClient, channel: grpc.Channel, own_redis: RedisProcess, toy: Trained
) -> None:
    client.score("c1")
    with pytest.raises(CallFailedError, match="CUSTOMER_UNKNOWN"):
        client.score("nobody")
    own_redis.kill()
    for path in own_redis.path.parent.glob("appendonlydir/*"):
        path.unlink()
    own_redis.start()
    with refused(grpc.StatusCode.FAILED_PRECONDITION) as reported:
        until_answered(lambda: one_score(channel))
    assert "FEATURES_NOT_LOADED" in str(reported[0].details)
    await_health(channel, SERVING)
    fill(own_redis.url, toy.registry)
    assert client.score("c1").customer_id == "c1"


def test_a_server_over_a_cluster_scores_and_refuses_events(toy: Trained, tmp_path: Path) -> None:
    with cluster(tmp_path / "cluster", 2) as nodes:
        url = f"redis+cluster://127.0.0.1:{nodes[0].port}"
        fill(url, toy.registry)
        options = ["--registry", str(toy.registry), "--redis", url, "--port", "0"]
        with ServerProcess(tmp_path, *options) as server:
            server.wait_for("health is SERVING")
            with (
                ScoringClient(server.target, timeout_s=PATIENCE_S) as client,
                EventClient(server.target, timeout_s=PATIENCE_S) as events,
            ):
                assert not any(isinstance(result, Problem) for result in client.score_many(NAMES))
                with pytest.raises(CallFailedError) as caught:
                    events.record([Event("c1", "view")])
                problem = caught.value.problem
                assert (problem.code, problem.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NOT_IN_CLUSTER")
            with (
                CustomerClient(server.target, timeout_s=PATIENCE_S) as customers,
                ScoringClient(server.target, timeout_s=PATIENCE_S) as client,
            ):
                customers.delete("c1")
                with pytest.raises(CallFailedError, match="CUSTOMER_UNKNOWN"):
                    client.score("c1")
                with pytest.raises(CallFailedError, match="NOT_IN_CLUSTER"):
                    customers.merge("c2", "c3")
            assert "Traceback" not in server.log
