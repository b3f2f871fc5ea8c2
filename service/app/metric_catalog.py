"""Everything that is exposed, under its name, and where it is read: the README has the same table."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

from feature_store.bundles.bundle import OFFERS
from service.app.components import Parts
from service.batching.event_batcher import EventBatcher
from service.batching.score_batcher import ScoreBatcher
from service.errors import Reason
from service.scoring.model_router import ModelRouter
from service.scoring.shadow import Differences, Shadow
from service.telemetry.metrics import Metrics, Value
from service.transport.interface import Transport

BEGAN: Final = time.time()
STATM: Final = Path("/proc/self/statm")
"""Of Linux: sizes in pages, the resident one second."""
CAUSES: Final = ("shed", "refused", "expired", "cancelled")
"""Why a call is not worked on: too much to do, too short a deadline, too late, nobody waits any more."""
STRANGERS: Final = (Reason.CREDENTIALS_MISSING, Reason.CREDENTIALS_INVALID, Reason.SCOPE_MISSING)
NO_DIFFERENCES: Final = {offer: Differences() for offer in OFFERS}


def expose(metrics: Metrics, parts: Parts) -> None:
    """Name all that there is to read."""
    _calls(metrics, parts.batcher)
    _queues(metrics, parts.batcher, parts.recorder)
    _answers(metrics, parts)
    _redis(metrics, parts)
    _models(metrics, parts)
    _shadow(metrics, parts.router)
    _process(metrics, parts.transport)


def _calls(metrics: Metrics, batcher: ScoreBatcher) -> None:
    counter, gauge, histogram = metrics.counter, metrics.gauge, metrics.histogram
    counter("tidemark_calls_total", "Calls that have ended.", metrics.calls, "method", "code")
    histogram("tidemark_call_seconds", "Time from a call's headers to its end.", metrics.call_seconds, "method")
    counter("tidemark_errors_total", "Calls that failed with a reason.", lambda: metrics.errors, "reason")
    counter("tidemark_rows_total", "Customers asked for: scored, or why not.", lambda: metrics.rows, "outcome")
    histogram("tidemark_batch_rows", "Customers in a batch.", lambda: metrics.batch_rows)
    histogram("tidemark_stage_seconds", "Time of a batch in each stage.", lambda: metrics.stages, "stage")
    histogram("tidemark_feature_age_seconds", "Age of the features of scored customers.", metrics.feature_ages)
    gauge("tidemark_waiting_calls", "Calls that wait for a batch.", batcher.waiting, "lane")


def _queues(metrics: Metrics, batcher: ScoreBatcher, recorder: EventBatcher) -> None:
    def dropped() -> dict[tuple[str, ...], Value]:
        queues = {"scoring": batcher.drops, "events": recorder.drops}
        return {(name, cause): getattr(drops, cause) for name, drops in queues.items() for cause in CAUSES}

    meaning = "Calls that were not worked on, or not to their end."
    metrics.counter("tidemark_dropped_calls_total", meaning, dropped, "queue", "cause")


def _answers(metrics: Metrics, parts: Parts) -> None:
    scorers, recorder, counter = parts.scorers, parts.recorder, metrics.counter

    def strangers() -> dict[str, Value]:
        refused = Counter[Reason]() if parts.access is None else parts.access.refused
        return {reason: refused[reason] for reason in STRANGERS}

    counter("tidemark_explained_total", "Scores that were explained.", lambda: scorers.counts["explained"])
    counter("tidemark_spikes_total", "Windows in which far more alerted than usual.", lambda: scorers.spikes)
    counter("tidemark_events_total", "Events by what became of them.", lambda: recorder.counts, "outcome")
    counter("tidemark_access_refused_total", "Calls refused for who made them.", strangers, "reason")


def _redis(metrics: Metrics, parts: Parts) -> None:
    breaker, scorers, counter, gauge = parts.store.breaker, parts.scorers, metrics.counter, metrics.gauge
    gauge("tidemark_breaker_open", "Whether Redis is away, and not asked.", lambda: breaker.open)
    counter("tidemark_breaker_opened_total", "Times that Redis turned out to be away.", lambda: breaker.opened)
    gauge("tidemark_recent_states", "States that are kept in case Redis is away.", lambda: scorers.recent[0])
    gauge("tidemark_recent_bytes", "Memory that they take.", lambda: scorers.recent[1])
    counter("tidemark_stale_total", "Scores of such states, marked stale.", lambda: scorers.counts["stale"])


def _models(metrics: Metrics, parts: Parts) -> None:
    router, watch, counter, gauge = parts.router, parts.watch, metrics.counter, metrics.gauge

    def used() -> dict[tuple[str, ...], Value]:
        model_set = router.model_set
        roles = {"active": model_set.active, "canary": model_set.canary, "shadow": model_set.shadow}
        found = {role: one.model for role, one in roles.items() if one is not None}
        return {(model.version, model.layout.fingerprint, role): 1 for role, model in found.items()}

    labels = "version", "fingerprint", "role"
    gauge("tidemark_model_info", "The models in use; always 1.", used, *labels)
    counter("tidemark_model_switches_total", "Times that another model became active.", lambda: watch.switches)
    counter("tidemark_model_refusals_total", "Bundles and rollouts refused.", lambda: watch.loader.refusals)
    gauge("tidemark_canary_share", "Share of customers whom a canary answers.", lambda: router.model_set.share)


def _shadow(metrics: Metrics, router: ModelRouter) -> None:
    def by_offer(read: Callable[[Differences], float]) -> Callable[[], dict[str, Value]]:
        def found() -> dict[str, Value]:
            shadow = router.model_set.shadow
            differences = NO_DIFFERENCES if shadow is None else shadow.differences
            return {offer: read(seen) for offer, seen in differences.items()}

        return found

    def rows() -> dict[str, Value]:
        shadow: Shadow | None = router.model_set.shadow
        return {outcome: getattr(shadow, outcome, 0) for outcome in ("compared", "unscored", "dropped")}

    counter, gauge = metrics.counter, metrics.gauge
    alerts = by_offer(lambda seen: seen.alerts)
    total, largest = by_offer(lambda seen: seen.total), by_offer(lambda seen: seen.largest)
    counter("tidemark_shadow_rows_total", "Customers answered beside a shadow: compared, or why not.", rows, "outcome")
    counter("tidemark_shadow_alerts_total", "Of these, alerts of one and not the other.", alerts, "offer")
    counter("tidemark_shadow_difference_total", "Sum of the probabilities' absolute differences.", total, "offer")
    gauge("tidemark_shadow_difference_largest", "The largest of them.", largest, "offer")


def _process(metrics: Metrics, transport: Transport) -> None:
    counter, gauge = metrics.counter, metrics.gauge
    gauge("tidemark_serving", "Whether health is SERVING.", lambda: transport.serving)
    transport.expose(metrics)
    metrics.histogram(
        "tidemark_loop_lag_seconds", "How late the event loop was, ten times a second.", lambda: metrics.lag
    )
    counter("tidemark_cpu_seconds_total", "CPU time of the process.", time.process_time)
    gauge("tidemark_started_seconds", "Unix time at which the process began.", lambda: BEGAN)
    if STATM.exists():
        gauge("tidemark_resident_bytes", "Memory of the process. Linux only.", _resident_bytes)


def _resident_bytes() -> float:
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
