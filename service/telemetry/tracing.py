"""Traces calls with OpenTelemetry, which the extra ``otel`` installs. The only module that imports it.

::

    the caller's span ─► call ─┬─ queue     waiting for a batch
                               ├─ batch     linked to the other traced calls that share it
                               │   ├─ redis
                               │   └─ graph
                               └─ encode    until the reply is written

The times are those that are measured for metrics anyway; spans are made of them when the call ends. A call that is not
traced costs one lookup of ``traceparent``.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Link, Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service.errors import Code, Reason, RequestError
from service.telemetry.batch_stages import Batch

FLAG_AT: Final = 54
"""Position of the last flag digit in ``traceparent``, version 00: version, 32 digits, 16 digits, flags, with dashes."""
SAMPLED: Final = frozenset("13579bdf")
MAX_LINKS: Final = 16
"""Links of a batch to the other calls in it: with a link to all, 64 traced calls would make 4,032."""
FLUSH_S: Final = 2.0
"""Time at a stop to send the spans that have not been sent yet."""
SERVER_FAULTS: Final = {
    Code.DEADLINE_EXCEEDED,
    Code.UNIMPLEMENTED,
    Code.INTERNAL,
    Code.UNAVAILABLE,
    Code.DATA_LOSS,
}
"""Codes that mark a server's span as an error, by OpenTelemetry's semantic conventions for RPC."""


class OtelTracer:
    """Starts traces, and sends them to a collector from a thread."""

    def __init__(self, endpoint: str | None, share: float, methods: Iterable[str], attributes: dict[str, str]) -> None:
        """Make a tracer.

        Args:
            endpoint: http(s)://host:port of OTLP over gRPC; None for the value of OTEL_EXPORTER_OTLP_ENDPOINT.
            share: The share of the calls without a caller's trace for which a trace is started.
            methods: Paths of the methods that may be traced.
            attributes: Resource attributes of this process.
        """
        named = "OTEL_SERVICE_NAME" in os.environ
        resource = Resource.create(attributes if named else {"service.name": "tidemark", **attributes})
        # The sampling decision is made before a span: the SDK takes more time to say no than a call takes altogether.
        self._provider: Final = TracerProvider(ALWAYS_ON, resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
        self._tracer: Final = self._provider.get_tracer("tidemark")
        self._share: Final = share
        self._methods: Final = {path.encode(): path for path in methods} | {path: path for path in methods}
        self._read: Final = TraceContextTextMapPropagator()

    def begin(
        self, path: bytes | str, parent: bytes | str | None, state: bytes | str | None, began: float
    ) -> CallTrace | None:
        """The trace of a call, or None if the call is not traced; see ``batch_stages.Tracer``."""
        if parent is None:
            if random.random() >= self._share:  # noqa: S311  # sampling needs no cryptography
                return None
        elif not _sampled(parent):
            return None
        if (name := self._methods.get(path)) is None:
            return None
        headers = {"traceparent": _text(parent), "tracestate": _text(state)}
        return CallTrace(self._tracer, name.lstrip("/"), self._read.extract(headers, Context()), began)

    async def close(self) -> None:
        """Send the spans that have not been sent, if the collector accepts them in time."""
        # In a daemon thread, which the end of the process does not wait for: the SDK may retry for half a minute.
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def shut_down() -> None:
            self._provider.shutdown()
            with suppress(RuntimeError):  # the wait has timed out, and the loop is closed
                loop.call_soon_threadsafe(done.set)

        threading.Thread(target=shut_down, daemon=True).start()
        with suppress(TimeoutError):
            await asyncio.wait_for(done.wait(), FLUSH_S)


def _sampled(parent: bytes | str) -> bool:
    """Whether ``traceparent`` says that the caller's trace is sampled; False if it is malformed."""
    return _text(parent[FLAG_AT : FLAG_AT + 1]) in SAMPLED


def _text(header: bytes | str | None) -> str:
    return header.decode("latin-1") if isinstance(header, bytes) else header or ""


class CallTrace:
    """The spans of one call."""

    __slots__ = ("_batches", "_began", "_epoch", "_tracer", "span")

    def __init__(self, tracer: trace.Tracer, path: str, context: Context, began: float) -> None:
        self._tracer = tracer
        self._began = began
        self._epoch = time.time() - time.monotonic()
        self._batches: list[Batch] = []
        service, _, method = path.partition("/")
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
        self.span: Final[Span] = tracer.start_span(
            path, context, SpanKind.SERVER, attributes, start_time=self._at(began)
        )

    def joined(self, batch: Batch) -> None:
        """Customers of the call are scored with this batch."""
        self._batches.append(batch)

    def end(self, code: int, error: Exception | None = None) -> None:
        """The call has ended: make the spans of its stages, and send all of them."""
        now = time.monotonic()
        within = trace.set_span_in_context(self.span)
        if self._batches:
            self._stage("queue", within, self._began, self._batches[0].taken)
            ends = [self._batch(batch, within) for batch in self._batches]
            self._stage("encode", within, max(ends), now)
        self.span.set_attribute("rpc.grpc.status_code", int(code))
        if error is not None:
            reason = error.reason if isinstance(error, RequestError) else Reason.INTERNAL
            self.span.set_attribute("tidemark.reason", reason.value)
        if code in SERVER_FAULTS:
            self.span.set_status(StatusCode.ERROR)
        self.span.end(self._at(now))

    def _batch(self, batch: Batch, within: Context) -> float:
        """Make the spans of a batch and of its stages; returns the time at which the last of them ended."""
        others = [other for other in batch.traces if other is not self and isinstance(other, CallTrace)]
        links = [Link(other.span.get_span_context()) for other in others[:MAX_LINKS]]
        attributes = {"tidemark.batch.calls": batch.calls, "tidemark.batch.rows": batch.rows}
        span = self._tracer.start_span(
            "batch", within, attributes=attributes, links=links, start_time=self._at(batch.taken)
        )
        inside, end = trace.set_span_in_context(span), batch.taken
        for name, began, ended in batch.stages:
            self._stage(name, inside, began, ended)
            end = max(end, ended)
        span.end(self._at(end))
        return end

    def _stage(self, name: str, within: Context, began: float, ended: float) -> None:
        self._tracer.start_span(name, within, start_time=self._at(began)).end(self._at(ended))

    def _at(self, moment: float) -> int:
        """Converts a time of the monotonic clock into unix nanoseconds."""
        return int((self._epoch + moment) * 1e9)
