"""Metrics and traces as the settings ask for them: none, one of them, or both."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, Self

from feature_store.errors import InputError
from service.settings import Settings
from service.telemetry.batch_stages import BatchObserver, Tracer
from service.telemetry.metrics import Metrics

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""OpenTelemetry's own settings for an endpoint, which replace --otlp-endpoint; the SDK reads these and its others."""
LAG_INTERVAL_S: Final = 0.1


class ClosingTracer(Tracer, Protocol):
    """A tracer that is closed at the end of the process."""

    async def close(self) -> None:
        """Send the spans that have not been sent yet, if that does not take long."""


@dataclass(frozen=True)
class Telemetry:
    """What a server measures of itself.

    Attributes:
        metrics: Counts calls; None if no metrics are exposed.
        tracer: Traces calls; None if none are traced.
        observer: Is notified of batches; None if there are neither metrics nor traces.
    """

    metrics: Metrics | None = None
    tracer: ClosingTracer | None = None
    observer: BatchObserver | None = None

    @classmethod
    def of(cls, settings: Settings, methods: Sequence[str], uncounted: Sequence[str] = ()) -> Self:
        """Metrics and traces as the settings ask for them.

        Args:
            settings: The settings of the server.
            methods: The paths of the methods that are counted and traced.
            uncounted: The paths of the methods that are neither counted nor traced, such as health checks: probes
                would be most of what a quiet server does.

        Raises:
            InputError: Traces are asked for, and OpenTelemetry is not installed.
        """
        metrics = Metrics(methods, uncounted) if settings.metrics_port else None
        tracer = _tracer(settings, methods)
        if metrics is None and tracer is None:
            return cls()
        # Over grpcio a reply is encoded in the task of its call, some time after its batch.
        observer = BatchObserver(metrics, encodes=settings.transport == "lean", traced=tracer is not None)
        return cls(metrics, tracer, observer)


def _tracer(settings: Settings, methods: Sequence[str]) -> ClosingTracer | None:
    if settings.otlp_endpoint is None and not any(map(os.environ.get, ENDPOINTS)):
        return None
    try:
        from service.telemetry.tracing import OtelTracer  # noqa: PLC0415  # OpenTelemetry is an optional dependency
    except ModuleNotFoundError as error:
        wanted = "otlp_endpoint" if settings.otlp_endpoint else " or ".join(ENDPOINTS)
        message = f"{wanted} is set, and OpenTelemetry is not installed: pip install 'tidemark[service,otel]'"
        raise InputError(message) from error
    process = {"process.pid": str(os.getpid())}
    return OtelTracer(settings.otlp_endpoint, settings.trace_share, methods, process)


async def watch_loop(metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
    """Measure how late the event loop runs its timers, until cancelled."""
    while True:
        due = clock() + LAG_INTERVAL_S
        await asyncio.sleep(LAG_INTERVAL_S)
        metrics.lag.observe(max(0.0, clock() - due))
