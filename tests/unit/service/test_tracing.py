"""Calls that are traced are one tree of spans in the caller's trace, and all others cost nothing and leave nothing."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, StatusCode

from feature_store.bundles.bundle import OUTPUTS
from service.errors import Code, Reason, RequestError
from service.scoring.types import Scores, rows_of
from service.telemetry.batch_stages import BatchObserver
from service.telemetry.tracing import MAX_LINKS, CallTrace, OtelTracer
from tests.waiting import PATIENCE_S

SCORE = "/tidemark.v1.ScoringService/ScoreCustomer"
TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, NOT_SAMPLED = (f"00-{TRACE_ID}-{SPAN_ID}-{flags}" for flags in ("01", "00"))


class Kept(SpanExporter):
    """Keeps what would be sent."""

    def __init__(self, _endpoint: str | None) -> None:
        self.spans: list[ReadableSpan] = []
        KEPT.append(self)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.spans += spans
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Nothing is open."""


KEPT: list[Kept] = []


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("service.telemetry.tracing.OTLPSpanExporter", Kept)
    yield
    KEPT.clear()


def tracer(share: float = 0.0) -> OtelTracer:
    return OtelTracer("http://127.0.0.1:1", share, [SCORE], {"process.pid": "1"})


def sent(of: OtelTracer) -> list[ReadableSpan]:
    asyncio.run(of.close())
    return KEPT[-1].spans


def begun(of: OtelTracer, parent: str | None = SAMPLED, state: str | None = None) -> CallTrace:
    trace = of.begin(SCORE, parent, state, time.monotonic())
    assert trace is not None
    return trace


class Waiting:
    """A job of a batch."""

    def __init__(self, trace: CallTrace | None) -> None:
        self.queued_at, self.trace = time.monotonic(), trace


def scored(observer: BatchObserver, *traces: CallTrace | None) -> None:
    """A batch of calls for one customer each."""
    batch = [(Waiting(trace), 0, 1) for trace in traces]
    observer.batch_taken(batch)
    for stage in ("redis", "graph"):
        observer.stage_done(stage, time.monotonic())
    observer.batch_answered(
        batch, [Scores(rows_of(np.zeros((1, len(OUTPUTS) + 1))), {}, "v")] * len(batch), time.monotonic()
    )


def test_a_call_and_its_stages_are_a_tree_in_the_callers_trace() -> None:
    of, observer = tracer(), BatchObserver(None, encodes=True, traced=True)
    trace = begun(of, state="vendor=1")
    scored(observer, trace, None)
    trace.end(Code.OK)
    spans = {span.name: span for span in sent(of)}
    call = spans[SCORE[1:]]
    assert {format(span.context.trace_id, "032x") for span in spans.values()} == {TRACE_ID}
    assert call.parent is not None
    assert format(call.parent.span_id, "016x") == SPAN_ID
    assert call.kind is SpanKind.SERVER
    assert call.context is not None
    assert call.context.trace_state.get("vendor") == "1"
    assert call.attributes == {
        "rpc.system": "grpc",
        "rpc.service": "tidemark.v1.ScoringService",
        "rpc.method": "ScoreCustomer",
        "rpc.grpc.status_code": 0,
    }
    parents = {name: span.parent.span_id for name, span in spans.items() if span.parent}
    batch = spans["batch"].context
    assert batch is not None
    assert parents["queue"] == parents["batch"] == parents["encode"] == call.context.span_id
    assert parents["redis"] == parents["graph"] == batch.span_id
    assert spans["batch"].attributes == {"tidemark.batch.calls": 2, "tidemark.batch.rows": 2}
    for span in spans.values():
        assert span.start_time
        assert span.end_time
        assert call.start_time <= span.start_time <= span.end_time <= call.end_time  # type: ignore[operator]
        assert abs(span.start_time / 1e9 - time.time()) < 60
    assert "customer-17" not in "".join(span.to_json() for span in spans.values())


def test_calls_that_share_a_batch_are_linked_within_bounds() -> None:
    of, observer = tracer(), BatchObserver(None, encodes=True, traced=True)
    traces = [begun(of) for _ in range(MAX_LINKS + 5)]
    scored(observer, *traces)
    for trace in traces:
        trace.end(Code.OK)
    alone = begun(of)
    scored(observer, alone)
    alone.end(Code.OK)
    *shared, last = [span for span in sent(of) if span.name == "batch"]
    calls = {trace.span.get_span_context().span_id for trace in traces}
    for batch in shared:
        linked = [link.context.span_id for link in batch.links]
        assert len(linked) == MAX_LINKS
        assert set(linked) <= calls - {batch.parent.span_id if batch.parent else 0}
    assert not last.links


def test_a_call_that_fails_tells_its_code_and_reason() -> None:
    of = tracer()
    begun(of).end(Code.NOT_FOUND, RequestError(Reason.CUSTOMER_UNKNOWN, "…"))
    begun(of).end(Code.INTERNAL, ValueError("customer-17"))
    unknown, broken = sent(of)
    assert unknown.attributes is not None
    assert broken.attributes is not None
    assert unknown.attributes["tidemark.reason"] == "CUSTOMER_UNKNOWN"
    assert unknown.status.status_code is StatusCode.UNSET  # the caller's doing
    assert broken.attributes["tidemark.reason"] == "INTERNAL"
    assert broken.status.status_code is StatusCode.ERROR
    assert "customer-17" not in broken.to_json()


@pytest.mark.parametrize(
    ("path", "parent"),
    [
        (SCORE, None),
        (SCORE, NOT_SAMPLED),
        (SCORE, "nonsense"),
        (SCORE, ""),
        ("/made.up/Path", SAMPLED),
        ("/grpc.health.v1.Health/Check", SAMPLED),
    ],
)
def test_other_calls_are_not_traced(path: str, parent: str | None) -> None:
    of = tracer()
    assert of.begin(path, parent, None, 0.0) is None
    assert of.begin(path.encode(), parent.encode() if parent is not None else None, None, 0.0) is None
    assert sent(of) == []


def test_a_share_of_calls_begins_traces_of_its_own() -> None:
    of = tracer(share=0.5)
    result = [trace for _ in range(400) if (trace := of.begin(SCORE, None, None, 0.0))]
    assert 100 < len(result) < 300
    assert of.begin(SCORE, NOT_SAMPLED, None, 0.0) is None  # the caller has decided
    assert len({trace.span.get_span_context().trace_id for trace in result}) == len(result)


def test_the_front_may_give_headers_as_bytes() -> None:
    trace = tracer().begin(SCORE.encode(), SAMPLED.encode(), b"vendor=1", time.monotonic())
    assert trace is not None
    assert format(trace.span.get_span_context().trace_id, "032x") == TRACE_ID


def test_a_collector_that_takes_nothing_does_not_hold_up_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.telemetry.tracing.FLUSH_S", 0.1)
    taken, ended = threading.Event(), threading.Event()

    def shutdown(_kept: Kept) -> None:
        taken.wait(PATIENCE_S)
        ended.set()

    monkeypatch.setattr(Kept, "shutdown", shutdown)
    of = tracer()

    async def stop() -> None:
        await of.close()
        assert not ended.is_set()

    asyncio.run(stop())
    taken.set()  # what still goes on then finds the loop closed
    assert ended.wait(PATIENCE_S)
    time.sleep(0.1)
