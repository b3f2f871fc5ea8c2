"""The catalog of metrics: each one's name, help text, and where its value is read."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

from feature_store.bundles.bundle import OFFERS
from service.app.components import Components
from service.batching.event_batcher import EventBatcher
from service.batching.score_batcher import ScoreBatcher
from service.errors import Reason
from service.scoring.model_router import ModelRouter
from service.scoring.shadow import Differences, Shadow
from service.telemetry.metrics import Metrics, Value
from service.transport.interface import Transport

STARTED: Final = time.time()
STATM: Final = Path("/proc/self/statm")
"""Memory of the process on Linux: sizes in pages; the second is the resident size."""
CAUSES: Final = ("shed", "refused", "expired", "cancelled")
"""Why a call is dropped: overload, a deadline that cannot be met or has passed, or a cancellation by its client."""
ACCESS_REASONS: Final = (Reason.CREDENTIALS_MISSING, Reason.CREDENTIALS_INVALID, Reason.SCOPE_MISSING)
LABELS: Final = {
    "worker": "Number of the worker process, from 0. Every sample has it, except those of `tidemark_workers`.",
    "method": "`package.Service/Method`; `unknown` for every path that is no method.",
    "code": "Status code of gRPC, by name.",
    "reason": "The reason of the error.",
    "outcome": "What came of it: of customers `scored` or the reason why not; of events `accepted`, `duplicates` or "
    "the reason, and also `unread` where no feature reads the type of an accepted one; of the "
    "shadow's customers `compared`, `unscored` or `dropped`.",
    "stage": "`queue` (the wait of the oldest call of a batch), `redis`, `graph`, `explain` or `encode`.",
    "lane": "`small` for calls with up to 64 customers, `large`, or `explained`.",
    "queue": "`scoring` or `events`.",
    "cause": "`shed` (overload), `refused` (the deadline cannot be met), `expired`, or `cancelled` by the client.",
    "version": "Version of a model.",
    "fingerprint": "Fingerprint of the model's features.",
    "role": "`active`, `canary` or `shadow`.",
    "offer": "`churn` or `propensity`.",
}
"""What each label holds. No label holds anything that a caller makes up."""
NO_DIFFERENCES: Final = {offer: Differences() for offer in OFFERS}


def expose(metrics: Metrics, components: Components) -> None:
    """Register all metrics."""
    _calls(metrics, components.score_batcher)
    _queues(metrics, components.score_batcher, components.event_batcher)
    _answers(metrics, components)
    _redis(metrics, components)
    _models(metrics, components)
    _shadow(metrics, components.router)
    _process(metrics, components.transport)


def _calls(metrics: Metrics, score_batcher: ScoreBatcher) -> None:
    counter, gauge, histogram = metrics.counter, metrics.gauge, metrics.histogram
    counter("tidemark_calls_total", "Calls that have ended.", metrics.calls, "method", "code")
    histogram("tidemark_call_seconds", "Time from a call's headers to its end.", metrics.call_seconds, "method")
    counter("tidemark_errors_total", "Calls that failed with a reason.", lambda: metrics.errors, "reason")
    counter(
        "tidemark_rows_total",
        "Customers in scoring calls: scored, or why not.",
        lambda: metrics.rows,
        "outcome",
    )
    histogram("tidemark_batch_rows", "Customers in a batch.", lambda: metrics.batch_rows)
    histogram("tidemark_stage_seconds", "Time of a batch in each stage.", lambda: metrics.stages, "stage")
    histogram("tidemark_feature_age_seconds", "Age of the features of scored customers.", metrics.feature_ages)
    gauge("tidemark_waiting_calls", "Scoring calls that wait for a batch.", score_batcher.waiting, "lane")


def _queues(metrics: Metrics, score_batcher: ScoreBatcher, event_batcher: EventBatcher) -> None:
    def dropped() -> dict[tuple[str, ...], Value]:
        queues = {"scoring": score_batcher.drops, "events": event_batcher.drops}
        return {(name, cause): getattr(drops, cause) for name, drops in queues.items() for cause in CAUSES}

    meaning = "Calls dropped from a queue, by cause."
    metrics.counter("tidemark_dropped_calls_total", meaning, dropped, "queue", "cause")


def _answers(metrics: Metrics, components: Components) -> None:
    scorers, event_batcher, counter = components.scorers, components.event_batcher, metrics.counter

    def refusals() -> dict[str, Value]:
        refused = Counter[Reason]() if components.access is None else components.access.refused
        return {reason: refused[reason] for reason in ACCESS_REASONS}

    counter("tidemark_explained_total", "Scores that were explained.", lambda: scorers.counts["explained"])
    counter("tidemark_spikes_total", "Windows with far more alerts than usual.", lambda: scorers.spikes)
    counter(
        "tidemark_events_total",
        "Events recorded, or why they were not.",
        lambda: event_batcher.counts,
        "outcome",
    )
    counter("tidemark_access_refused_total", "Calls refused because of their credentials or scope.", refusals, "reason")


def _redis(metrics: Metrics, components: Components) -> None:
    breaker, scorers, counter, gauge = components.redis.breaker, components.scorers, metrics.counter, metrics.gauge
    gauge(
        "tidemark_breaker_open",
        "1 while Redis is unavailable and not asked.",
        lambda: breaker.open,
    )
    counter(
        "tidemark_breaker_opened_total",
        "Times Redis has become unavailable.",
        lambda: breaker.times_opened,
    )
    gauge("tidemark_recent_states", "States in the cache for callers with allow_stale.", lambda: scorers.cached_states)
    gauge("tidemark_recent_bytes", "Bytes in the cache for callers with allow_stale.", lambda: scorers.cached_bytes)
    counter(
        "tidemark_stale_total",
        "Scores from cached states, marked stale.",
        lambda: scorers.counts["stale"],
    )


def _models(metrics: Metrics, components: Components) -> None:
    router, watch, counter, gauge = components.router, components.watcher, metrics.counter, metrics.gauge

    def models_in_use() -> dict[tuple[str, ...], Value]:
        model_set = router.model_set
        roles = {"active": model_set.active, "canary": model_set.canary, "shadow": model_set.shadow}
        models = {role: serving.model for role, serving in roles.items() if serving is not None}
        return {(model.version, model.layout.fingerprint, role): 1 for role, model in models.items()}

    labels = "version", "fingerprint", "role"
    gauge("tidemark_model_info", "The models in use; always 1.", models_in_use, *labels)
    counter("tidemark_model_switches_total", "Times another model became active.", lambda: watch.switches)
    counter("tidemark_model_refusals_total", "Bundles and rollouts refused.", lambda: watch.loader.refusals)
    gauge("tidemark_canary_share", "Share of customers answered by the canary.", lambda: router.model_set.share)


def _shadow(metrics: Metrics, router: ModelRouter) -> None:
    def by_offer(read: Callable[[Differences], float]) -> Callable[[], dict[str, Value]]:
        def values() -> dict[str, Value]:
            shadow = router.model_set.shadow
            differences = NO_DIFFERENCES if shadow is None else shadow.differences
            return {offer: read(seen) for offer, seen in differences.items()}

        return values

    def rows() -> dict[str, Value]:
        shadow: Shadow | None = router.model_set.shadow
        return {outcome: getattr(shadow, outcome, 0) for outcome in ("compared", "unscored", "dropped")}

    counter, gauge = metrics.counter, metrics.gauge
    alerts = by_offer(lambda seen: seen.alerts)
    total, largest = by_offer(lambda seen: seen.total), by_offer(lambda seen: seen.largest)
    counter(
        "tidemark_shadow_rows_total",
        "Customers offered to the shadow, by outcome.",
        rows,
        "outcome",
    )
    counter("tidemark_shadow_alerts_total", "Alerts of only the active model or only its shadow.", alerts, "offer")
    counter(
        "tidemark_shadow_difference_total",
        "Sum of the absolute differences in probability to the shadow.",
        total,
        "offer",
    )
    gauge(
        "tidemark_shadow_difference_largest",
        "Largest absolute difference in probability to the shadow.",
        largest,
        "offer",
    )


def _process(metrics: Metrics, transport: Transport) -> None:
    counter, gauge = metrics.counter, metrics.gauge
    gauge("tidemark_serving", "1 while the health service reports SERVING.", lambda: transport.serving)
    transport.expose(metrics)
    metrics.histogram(
        "tidemark_loop_lag_seconds", "Delay of the event loop, sampled ten times a second.", lambda: metrics.lag
    )
    counter("process_cpu_seconds_total", "User and system CPU time of the process in seconds.", time.process_time)
    gauge("process_start_time_seconds", "Unix time at which the process started.", lambda: STARTED)
    if STATM.exists():
        gauge("process_resident_memory_bytes", "Resident memory of the process in bytes. Linux only.", _resident_bytes)


def _resident_bytes() -> float:
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
