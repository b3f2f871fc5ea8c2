"""Traces reach a collector, joined with the caller's; calls that nobody wants traced do not."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from tidemark.v1 import events_pb2, scoring_pb2, scoring_pb2_grpc

from tests.conftest import Run
from tests.e2e.live import ALONE, Live, event
from tests.e2e.server_process import ServerProcess
from tests.waiting import PATIENCE_S, until

SCORE = "tidemark.v1.ScoringService/ScoreCustomer"
RECORD = "tidemark.v1.EventService/RecordEvents"
KNOWN, SECRET = "900", "secret-customer"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps all spans that it is sent."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.requests: list[trace_service_pb2.ExportTraceServiceRequest] = []

    def Export(self, request: Any, _context: Any) -> Any:  # noqa: N802  # gRPC's name
        with self._lock:
            self.requests.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()

    def spans(self, trace_id: str) -> list[Span]:
        """Those of a trace so far."""
        with self._lock:
            return [
                span
                for request in self.requests
                for resource in request.resource_spans
                for scope in resource.scope_spans
                for span in scope.spans
                if span.trace_id.hex() == trace_id
            ]

    def await_spans(self, trace_id: str, count: int) -> list[Span]:
        """Those of a trace, when there are so many."""
        until(lambda: len(self.spans(trace_id)) >= count)
        return self.spans(trace_id)

    def traces(self) -> set[str]:
        """The ids of all traces so far."""
        with self._lock:
            return {
                span.trace_id.hex()
                for request in self.requests
                for resource in request.resource_spans
                for scope in resource.scope_spans
                for span in scope.spans
            }


class Traced(NamedTuple):
    """A server and what it sends its traces to."""

    server: ServerProcess
    collector: Collector


@pytest.fixture(scope="module")
def traced(
    front: str,  # noqa: ARG001  # set before the server starts
    loaded_redis: str,
    small_registry: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Traced]:
    collector, backend = Collector(), grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, backend)
    port = backend.add_insecure_port("127.0.0.1:0")
    backend.start()
    options = ["--registry", str(small_registry), "--redis", loaded_redis, "--port", "0"]
    options += ["--otlp-endpoint", f"http://127.0.0.1:{port}"]
    soon = {"OTEL_BSP_SCHEDULE_DELAY": "100"}
    with ServerProcess(tmp_path_factory.mktemp("traced"), *options, environment=soon) as process:
        process.wait_for("health is SERVING")
        yield Traced(process, collector)
    backend.stop(None)


def parent(number: int, *, sampled: bool = True) -> tuple[str, list[tuple[str, str]]]:
    """A trace's id, and the metadata of a caller that is in it."""
    trace_id = f"{number:032x}"
    return trace_id, [("traceparent", f"00-{trace_id}-{number:016x}-0{int(sampled)}"), ("tracestate", "vendor=1")]


def score(channel: grpc.Channel, customer_id: str, metadata: list[tuple[str, str]]) -> None:
    request = scoring_pb2.ScoreCustomerRequest(customer_id=customer_id)
    scoring_pb2_grpc.ScoringServiceStub(channel).ScoreCustomer(request, timeout=PATIENCE_S, metadata=metadata)


@pytest.mark.both_fronts
def test_a_call_and_its_stages_are_in_the_callers_trace(traced: Traced) -> None:
    trace_id, metadata = parent(7)
    with grpc.insecure_channel(traced.server.target, ALONE) as channel:
        score(channel, KNOWN, metadata)
    spans = {span.name: span for span in traced.collector.await_spans(trace_id, 6)}
    assert set(spans) == {SCORE, "queue", "batch", "redis", "graph", "encode"}
    call, batch = spans[SCORE], spans["batch"]
    assert call.parent_span_id.hex() == f"{7:016x}"
    assert call.trace_state == "vendor=1"
    assert {spans[name].parent_span_id for name in ("queue", "batch", "encode")} == {call.span_id}
    assert {spans[name].parent_span_id for name in ("redis", "graph")} == {batch.span_id}
    in_order = [spans[name].start_time_unix_nano for name in ("queue", "batch", "redis", "graph", "encode")]
    assert in_order == sorted(in_order)
    assert call.start_time_unix_nano <= in_order[0]
    assert max(span.end_time_unix_nano for span in spans.values()) == call.end_time_unix_nano
    (resource,) = {
        attribute.value.string_value
        for request in traced.collector.requests
        for result in request.resource_spans
        for attribute in result.resource.attributes
        if attribute.key == "service.name"
    }
    assert resource == "tidemark"


def test_calls_that_share_a_batch_are_linked(traced: Traced) -> None:
    ids = [parent(number) for number in range(1000, 1032)]
    with grpc.insecure_channel(traced.server.target, ALONE) as channel, ThreadPoolExecutor(32) as pool:
        list(pool.map(lambda one: score(channel, KNOWN, one[1]), ids))
    batches = {
        trace_id: span
        for trace_id, _ in ids
        for span in traced.collector.await_spans(trace_id, 6)
        if span.name == "batch"
    }
    shared = {trace_id: span for trace_id, span in batches.items() if span.links}
    assert shared, "32 calls at once, and none of them shared a batch"
    for trace_id, span in shared.items():
        linked = {link.trace_id.hex() for link in span.links}
        assert trace_id not in linked
        assert linked <= set(batches)
        calls = {attribute.key: attribute.value.int_value for attribute in span.attributes}["tidemark.batch.calls"]
        assert len(linked) == min(16, calls - 1)


def test_a_call_that_fails_and_one_of_another_service_are_traced(traced: Traced) -> None:
    unknown, metadata = parent(2000)
    with grpc.insecure_channel(traced.server.target, ALONE) as channel:
        with pytest.raises(grpc.RpcError):
            score(channel, f"{SECRET}-unknown", metadata)
        recorded, metadata = parent(2001)
        call: Any = channel.unary_unary(f"/{RECORD}")
        call(
            events_pb2.RecordEventsRequest(events=[event(SECRET)]).SerializeToString(),
            timeout=PATIENCE_S,
            metadata=metadata,
        )
        Live(channel).delete(SECRET)
    (failed,) = [span for span in traced.collector.await_spans(unknown, 6) if span.name == SCORE]
    reported = {attribute.key: attribute.value for attribute in failed.attributes}
    assert reported["rpc.grpc.status_code"].int_value == grpc.StatusCode.NOT_FOUND.value[0]
    assert reported["tidemark.reason"].string_value == "CUSTOMER_UNKNOWN"
    (alone,) = traced.collector.await_spans(recorded, 1)
    assert alone.name == RECORD


def test_what_is_not_sampled_is_not_traced_and_no_customer_is_in_any_span(traced: Traced) -> None:
    unwanted, not_sampled = parent(3000, sampled=False)
    wanted, sampled = parent(3001)
    made_up, anywhere = parent(3002)
    before = traced.collector.traces()
    with grpc.insecure_channel(traced.server.target, ALONE) as channel:
        score(channel, KNOWN, not_sampled)
        score(channel, KNOWN, [])
        score(channel, KNOWN, [("traceparent", SECRET)])
        call: Any = channel.unary_unary(f"/{SECRET}/Method")
        with pytest.raises(grpc.RpcError):
            call(b"", timeout=PATIENCE_S, metadata=anywhere)
        score(channel, KNOWN, sampled)
    traced.collector.await_spans(wanted, 6)
    assert traced.collector.spans(unwanted) == traced.collector.spans(made_up) == []
    assert traced.collector.traces() - before == {wanted}
    sent = b"".join(request.SerializeToString() for request in traced.collector.requests)
    assert SECRET.encode() not in sent
    assert SECRET not in traced.server.log


def test_a_collector_that_is_away_costs_no_call_and_no_long_stop(
    loaded_redis: str, small_registry: Path, tmp_path: Path
) -> None:
    options = ["--registry", str(small_registry), "--redis", loaded_redis, "--port", "0", "--trace-share", "1"]
    nowhere = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    with ServerProcess(tmp_path, *options, environment=nowhere) as process:
        with grpc.insecure_channel(process.target, ALONE) as channel:
            for _ in range(10):
                score(channel, KNOWN, [])
        began = time.monotonic()
        assert process.stop() == 0
        assert time.monotonic() - began < 60  # an exporter alone tries again for longer
        assert "Traceback" not in process.log


@pytest.mark.parametrize("endpoint", ["collector", "http://", "grpc://somewhere:4317"])
def test_an_endpoint_that_is_none_is_one_line(run_service: Run, small_registry: Path, endpoint: str) -> None:
    options = ["--registry", small_registry, "--redis", "redis://127.0.0.1:1", "--port", "0"]
    ended = run_service(*options, "--otlp-endpoint", endpoint)
    assert ended.is_bad_input, ended
    assert "--otlp-endpoint" in ended.err
