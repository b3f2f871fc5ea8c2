"""Everything that is exposed, under its name, and where it is read: the README has the same table."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

from service.batching import Batcher
from service.front_aio import AioFront
from service.front_lean import LeanFront
from service.metrics import Metrics, Value
from service.models import Model
from service.recorder import Recorder
from service.scorer import Scorer

BEGAN: Final = time.time()
STATM: Final = Path("/proc/self/statm")
"""Of Linux: sizes in pages, the resident one second."""


def expose(
    metrics: Metrics, front: LeanFront | AioFront, batcher: Batcher, scorer: Scorer, model: Model, recorder: Recorder
) -> None:
    """Name all that there is to read."""
    _calls(metrics, batcher)
    _parts(metrics, scorer, model, recorder)
    _process(metrics, front)


def _calls(metrics: Metrics, batcher: Batcher) -> None:
    counter, gauge, histogram = metrics.counter, metrics.gauge, metrics.histogram
    counter("tidemark_calls_total", "Calls that have ended.", metrics.calls, "method", "code")
    histogram("tidemark_call_seconds", "Time from a call's headers to its end.", metrics.call_seconds, "method")
    counter("tidemark_errors_total", "Calls that failed with a reason.", lambda: metrics.errors, "reason")
    counter("tidemark_rows_total", "Customers asked for: scored, or why not.", lambda: metrics.rows, "outcome")
    histogram("tidemark_batch_rows", "Customers in a batch.", lambda: metrics.batch_rows)
    histogram("tidemark_stage_seconds", "Time of a batch in each stage.", lambda: metrics.stages, "stage")
    histogram("tidemark_feature_age_seconds", "Age of the features of scored customers.", metrics.feature_ages)
    gauge("tidemark_waiting_calls", "Calls that wait for a batch.", batcher.waiting, "lane")


def _parts(metrics: Metrics, scorer: Scorer, model: Model, recorder: Recorder) -> None:
    def served() -> dict[tuple[str, ...], Value]:
        return {(model.version, model.layout.fingerprint): 1}

    metrics.gauge("tidemark_model_info", "The model that is served; always 1.", served, "version", "fingerprint")
    metrics.counter("tidemark_spikes_total", "Windows in which far more alerted than usual.", lambda: scorer.spikes)
    metrics.counter("tidemark_events_total", "Events by what became of them.", lambda: recorder.counts, "outcome")


def _process(metrics: Metrics, front: LeanFront | AioFront) -> None:
    counter, gauge = metrics.counter, metrics.gauge
    gauge("tidemark_serving", "Whether health is SERVING.", lambda: front.serving)
    if isinstance(front, LeanFront):
        gauge("tidemark_connections", "Open connections. Lean only.", lambda: len(front.connections))
    metrics.histogram(
        "tidemark_loop_lag_seconds", "How late the event loop was, ten times a second.", lambda: metrics.lag
    )
    counter("tidemark_cpu_seconds_total", "CPU time of the process.", time.process_time)
    gauge("tidemark_started_seconds", "Unix time at which the process began.", lambda: BEGAN)
    if STATM.exists():
        gauge("tidemark_resident_bytes", "Memory of the process. Linux only.", _resident_bytes)


def _resident_bytes() -> float:
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
