"""What the server sees of itself while it works, as the settings want it: nothing, counters, traces, or both."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass
from typing import Final, Protocol, Self

from google.protobuf.descriptor_pool import Default
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from feature_store.errors import InputError
from service.settings import Settings
from service.telemetry.batch_stages import BatchObserver, Tracer
from service.telemetry.metrics import Metrics
from service.transport.standard_services import SERVICES

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""Of OpenTelemetry's own settings, those that stand in for --otlp-endpoint; the SDK reads them, and the others."""
LAG_EVERY_S: Final = 0.1


class ClosingTracer(Tracer, Protocol):
    """A tracer that sends what it has when it is closed."""

    async def close(self) -> None:
        """Send what has not been sent yet, as far as that does not take long."""


@dataclass(frozen=True)
class Telemetry:
    """Counters, traces, and who tells them of batches; None where nobody wants to know."""

    metrics: Metrics | None = None
    tracer: ClosingTracer | None = None
    stages: BatchObserver | None = None

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Those that the settings ask for; InputError where one of them is not installed."""
        metrics = Metrics(_paths(*SERVICES), _paths(*STANDARD)) if settings.metrics_port else None
        tracer = _tracer(settings)
        if metrics is None and tracer is None:
            return cls()
        # grpcio's front writes a reply in the task of its call, some time after its batch.
        return cls(
            metrics, tracer, BatchObserver(metrics, encodes=settings.transport == "lean", traced=tracer is not None)
        )


STANDARD: Final = (health.SERVICE_NAME, reflection.SERVICE_NAME)
"""Services that are not counted: probes would be most of what a quiet server does."""


def _paths(*services: str) -> list[str]:
    return [f"/{name}/{method.name}" for name in services for method in Default().FindServiceByName(name).methods]


def _tracer(settings: Settings) -> ClosingTracer | None:
    if settings.otlp_endpoint is None and not any(map(os.environ.get, ENDPOINTS)):
        return None
    try:
        from service.telemetry.tracing import OtelTracer  # noqa: PLC0415  # comes with an extra of its own
    except ModuleNotFoundError as error:
        wanted = "otlp_endpoint" if settings.otlp_endpoint else " or ".join(ENDPOINTS)
        message = f"{wanted} is set, and OpenTelemetry is not installed: pip install 'tidemark[service,otel]'"
        raise InputError(message) from error
    process = {"process.pid": str(os.getpid())}
    return OtelTracer(settings.otlp_endpoint, settings.trace_share, _paths(*SERVICES), process)


async def watch_loop(metrics: Metrics) -> None:
    """Count how late the event loop is, until cancelled."""
    while True:
        due = time.monotonic() + LAG_EVERY_S
        await asyncio.sleep(LAG_EVERY_S)
        metrics.lag.observe(max(0.0, time.monotonic() - due))
