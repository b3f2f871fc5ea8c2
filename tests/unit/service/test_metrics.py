"""Counters are those of a metrics library, have no label that a caller can make up, and reach the page."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import prometheus_client
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from feature_store.bundles.bundle import OUTPUTS
from feature_store.errors import InputError
from service.errors import Code, Reason, RequestError
from service.scoring.types import Scores, rows_of
from service.settings import Settings
from service.telemetry.batch_stages import BatchObserver, Trace
from service.telemetry.metrics import AGES_AT_ONCE, SECONDS, Histogram, Metrics
from service.telemetry.prometheus import WorkerCollector, answer_scrapes, exposed, families
from service.telemetry.setup import Telemetry, watch_loop
from tests.waiting import PATIENCE_S, until

SCORE = "/tidemark.v1.ScoringService/ScoreCustomer"
HEALTH = "/grpc.health.v1.Health/Check"
PLAIN = Settings(registry=Path("r"), redis="redis://x")
values_in_seconds = st.lists(
    st.one_of(st.sampled_from(SECONDS), st.floats(0, 100, allow_nan=False, allow_subnormal=False)), max_size=50
)


def samples(found: Mapping[str, Metric], name: str) -> dict[tuple[tuple[str, str], ...], float]:
    """Samples of a name, by labels without the worker."""
    return {
        tuple(sorted((k, v) for k, v in sample.labels.items() if k != "worker")): sample.value
        for family in found.values()
        for sample in family.samples
        if sample.name == name
    }


def page(*snapshots: object) -> dict[str, Metric]:
    """Families of workers, through the page that Prometheus reads and back."""

    class Told(prometheus_client.registry.Collector):
        def collect(self) -> list[Metric]:
            reported = {number: json.loads(json.dumps(snapshot)) for number, snapshot in enumerate(snapshots)}
            return list(families(reported).values())

    registry = prometheus_client.CollectorRegistry()
    registry.register(Told())
    text = prometheus_client.generate_latest(registry).decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


@given(values_in_seconds, values_in_seconds)
def test_a_histogram_counts_as_the_library_does(one_by_one: list[float], at_once: list[float]) -> None:
    registry = prometheus_client.CollectorRegistry()
    theirs = prometheus_client.Histogram("h", "…", buckets=SECONDS, registry=registry)
    ours, metrics = Histogram(SECONDS), Metrics([])
    metrics.histogram("h", "…", lambda: ours)
    for value in one_by_one:
        ours.observe(value)
    ours.observe_all(np.array(at_once))
    for value in one_by_one + at_once:
        theirs.observe(value)
    expected = {
        family.name: family
        for family in text_string_to_metric_families(prometheus_client.generate_latest(registry).decode())
    }
    result = page(metrics.snapshot())

    def buckets(families: Mapping[str, Metric]) -> dict[float, float]:
        return {float(dict(labels)["le"]): count for labels, count in samples(families, "h_bucket").items()}

    assert buckets(result) == buckets(expected)
    assert samples(result, "h_count") == samples(expected, "h_count")
    assert samples(result, "h_sum")[()] == pytest.approx(samples(expected, "h_sum")[()])


def test_calls_are_counted_by_method_and_code_and_health_is_not() -> None:
    metrics = Metrics([SCORE], [HEALTH])
    metrics.counter("calls_total", "…", metrics.calls, "method", "code")
    metrics.histogram("call_seconds", "…", metrics.call_seconds, "method")
    for _ in range(3):
        metrics.ended(SCORE.encode(), Code.OK, 0.003)
    metrics.ended(SCORE, Code.NOT_FOUND, 0.001, RequestError(Reason.CUSTOMER_UNKNOWN, "…"))
    metrics.ended(SCORE, Code.INTERNAL, 0.001, ValueError("customer 17"))
    metrics.ended(HEALTH.encode(), Code.OK, 0.001)
    result, method = page(metrics.snapshot()), ("method", SCORE[1:])
    assert samples(result, "calls_total") == {
        (("code", "OK"), method): 3.0,
        (("code", "NOT_FOUND"), method): 1.0,
        (("code", "INTERNAL"), method): 1.0,
    }
    assert samples(result, "call_seconds_count") == {(method,): 5.0}
    assert metrics.errors == {"CUSTOMER_UNKNOWN": 1, "INTERNAL": 1}


@given(st.lists(st.one_of(st.text(), st.binary()), max_size=30))
def test_all_unknown_paths_share_one_label(paths: list[str | bytes]) -> None:
    metrics = Metrics([SCORE])
    metrics.ended(SCORE, Code.OK, 0.001)
    for path in paths:
        metrics.ended(path, Code.UNIMPLEMENTED, 0.0)
    counts = {key: count for key, count in metrics.calls().items() if key[0] != SCORE[1:]}
    assert counts == ({("unknown", "UNIMPLEMENTED"): len(paths)} if paths else {})


def test_every_code_of_grpc_has_a_name() -> None:
    metrics = Metrics([SCORE])
    for code in range(17):
        metrics.ended(SCORE, code, 0.0)
    assert len(metrics.calls()) == 17


def test_ages_are_counted_though_they_are_put_into_buckets_together() -> None:
    metrics = Metrics([])
    for _ in range(AGES_AT_ONCE + 3):
        metrics.features_aged(np.array([5.0, 7200.0]))
    result = metrics.feature_ages()
    assert result.counts[result.bounds.index(10.0)] == AGES_AT_ONCE + 3
    assert sum(result.counts) == 2 * (AGES_AT_ONCE + 3)
    assert sum(metrics.feature_ages().counts) == sum(result.counts)  # asked again, nothing is counted twice


def test_two_metrics_cannot_have_the_same_name() -> None:
    metrics = Metrics([])
    metrics.gauge("g", "…", lambda: 1)
    with pytest.raises(ValueError, match="a metric g already"):
        metrics.counter("g", "…", lambda: 1)


def test_samples_are_labelled_by_worker_and_each_name_is_one_family() -> None:
    def one(spikes: int) -> Metrics:
        metrics = Metrics([])
        metrics.counter("spikes_total", "Spikes.", lambda: spikes)
        metrics.gauge("waiting", "Waiting.", lambda: {"small": spikes, "large": 0}, "lane")
        return metrics

    result = page(one(3).snapshot(), one(4).snapshot())
    assert list(result) == ["spikes", "waiting"]
    assert [(s.labels, s.value) for s in result["spikes"].samples] == [({"worker": "0"}, 3.0), ({"worker": "1"}, 4.0)]
    assert {(s.labels["worker"], s.labels["lane"]) for s in result["waiting"].samples} == {
        (worker, lane) for worker in "01" for lane in ("small", "large")
    }


def collected(pipes: dict[int, Connection]) -> dict[str, Metric]:
    return {family.name: family for family in WorkerCollector(lambda: pipes).collect()}


def test_a_worker_that_is_gone_or_late_is_left_out_and_its_late_answer_is_thrown_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.telemetry.prometheus.SCRAPE_TIMEOUT_S", 0.05)
    metrics, calls = Metrics([]), 0

    def read() -> int:
        nonlocal calls
        calls += 1
        return calls

    metrics.counter("reads_total", "…", read)

    async def scrape() -> None:
        (ours, asked), (gone, theirs) = Pipe(), Pipe()
        theirs.close()
        with closing(ours), closing(asked), closing(gone):
            late = await asyncio.to_thread(collected, {0: ours, 1: gone})  # nobody answers yet
            assert late["tidemark_workers"].samples[0].value == 0
            monkeypatch.setattr("service.telemetry.prometheus.SCRAPE_TIMEOUT_S", PATIENCE_S)
            answer_scrapes(asked, metrics.snapshot)
            await asyncio.to_thread(until, lambda: calls)  # the first question is answered now, too late
            result = await asyncio.to_thread(collected, {0: ours, 1: gone})
            assert result["tidemark_workers"].samples[0].value == 1
            assert result["reads"].samples[0].value == 2
            ours.close()
            await asyncio.sleep(0.05)  # nobody will ask any more, and the loop goes on

    asyncio.run(scrape())


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = PLAIN.model_copy(update={"metrics_port": port})
        with pytest.raises(InputError, match=f"cannot listen on 127.0.0.1:{port} for metrics"), exposed(settings, dict):
            pass


def test_nothing_is_counted_without_a_port() -> None:
    assert Telemetry.of(PLAIN, [SCORE]) == Telemetry()
    with exposed(PLAIN, dict):  # and nobody listens
        pass


def test_tracing_without_its_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "service.telemetry.tracing", None)
    settings = PLAIN.model_copy(update={"otlp_endpoint": "http://127.0.0.1:4317"})
    with pytest.raises(InputError, match=r"^otlp_endpoint is set, .* pip install 'tidemark\[service,otel\]'$"):
        Telemetry.of(settings, [SCORE])
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317")
    with pytest.raises(InputError, match="OTEL_EXPORTER_OTLP_ENDPOINT is set"):
        Telemetry.of(PLAIN, [SCORE])


def test_a_loop_that_is_held_up_is_late() -> None:
    metrics = Metrics([])

    async def held_up() -> None:
        watching = asyncio.create_task(watch_loop(metrics))
        await asyncio.sleep(0.05)
        time.sleep(0.25)  # noqa: ASYNC251  # what must not happen
        await asyncio.sleep(0.05)
        watching.cancel()

    asyncio.run(held_up())
    assert metrics.lag.sum > 0.1


class Waiting:
    """A job of a batch."""

    def __init__(self, queued_at: float, trace: Trace | None = None) -> None:
        self.queued_at, self.trace = queued_at, trace


def test_the_observer_counts_rows_outcomes_and_stages_of_a_batch() -> None:
    metrics = Metrics([])
    observer = BatchObserver(metrics, encodes=True, traced=False)
    now = time.monotonic()
    batch = [
        (Waiting(now - 9.0), 128, 200),  # goes on, so what it waited was counted before
        (Waiting(now - 3.0), 0, 2),
        (Waiting(now - 1.0), 0, 1),
    ]
    observer.batch_taken(batch)
    observer.stage_done("redis", time.monotonic() - 0.5)
    unknown = RequestError(Reason.CUSTOMER_UNKNOWN, "…")
    rows = rows_of(np.zeros((72, len(OUTPUTS) + 1)))
    away = RequestError(Reason.FEATURE_STORE_UNAVAILABLE, "…")
    observer.batch_answered(batch, [Scores(rows, {}, "v"), Scores(rows[:2], {1: unknown}, "v"), away], time.monotonic())
    assert metrics.rows == {"scored": 73, "CUSTOMER_UNKNOWN": 1, "FEATURE_STORE_UNAVAILABLE": 1}
    assert metrics.batch_rows.sum == 75
    assert metrics.stages["queue"].sum == pytest.approx(3.0, abs=0.5)
    assert metrics.stages["redis"].sum == pytest.approx(0.5, abs=0.2)
    counts = {name: sum(stage.counts) for name, stage in metrics.stages.items()}
    assert counts == {"queue": 1, "redis": 1, "graph": 0, "explain": 0, "encode": 1}
