"""Where the time of a batch goes: told by batcher and scorer, to histograms and to the traces of the calls in it.

::

    call ──► waits ──► taken with a batch ──► Redis ──► graph ──► replies are written
             queue                            redis     graph     encode
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final, Protocol

from feature_store.state.layout import Floats
from service.errors import RequestError
from service.scoring.scorer import Scores
from service.telemetry.metrics import Metrics

SCORED: Final = "scored"
"""The outcome of customers who got a score; the others' is a reason."""


class Trace(Protocol):
    """A call that is traced."""

    def joined(self, batch: Batch) -> None:
        """Its customers, or some of them, are scored with this batch."""

    def end(self, code: int, error: Exception | None = None) -> None:
        """It has ended, with this status code."""


class Tracer(Protocol):
    """Begins traces."""

    def begin(
        self, path: bytes | str, parent: bytes | str | None, state: bytes | str | None, began: float
    ) -> Trace | None:
        """The trace of a call, None where it has none; ``parent`` and ``state`` are as W3C's headers have them."""


class Job(Protocol):
    """What waits for a batch."""

    @property
    def asked(self) -> float:
        """When it began to."""

    @property
    def trace(self) -> Trace | None:
        """Its call's, where it has one."""


@dataclass(slots=True, eq=False)
class Batch:
    """A batch that traced calls share. Times are of the monotonic clock; ``stages`` are names, begins and ends."""

    taken: float
    calls: int
    rows: int
    traces: Sequence[Trace]
    stages: list[tuple[str, float, float]] = field(default_factory=list)


SHARED: Final[ContextVar[Batch | None]] = ContextVar("SHARED", default=None)
"""The batch that the running task works on, where calls in it are traced."""


class BatchObserver:
    """Takes in what there is to tell of batches."""

    def __init__(self, metrics: Metrics | None, *, encodes: bool, traced: bool) -> None:
        """``metrics``: None where only traces are wanted; ``traced``: whether calls may have one.

        ``encodes``: whether replies are written as they are delivered, and not later by the front.
        """
        self._metrics = metrics
        self._encodes = encodes
        self._traced = traced

    def taken(self, batch: Sequence[tuple[Job, int, int]]) -> None:
        """A batch begins: jobs, each with the first of its customers that are in, and the one after the last."""
        now = time.monotonic()
        rows = sum(stop - start for _, start, stop in batch)
        if (metrics := self._metrics) is not None:
            metrics.batch_rows.observe(rows)
            for job, start, _ in batch:
                if not start:  # the first that does not go on from another batch has waited longest
                    metrics.stages["queue"].observe(now - job.asked)
                    break
        if self._traced:
            traces = [job.trace for job, _, _ in batch if job.trace is not None]
            shared = Batch(now, len(batch), rows, traces) if traces else None
            SHARED.set(shared)
            if shared is not None:
                for trace in traces:
                    trace.joined(shared)

    def took(self, stage: str, began: float) -> None:
        """A stage of the running batch is done."""
        now = time.monotonic()
        if self._metrics is not None:
            self._metrics.stages[stage].observe(now - began)
        if self._traced and (batch := SHARED.get()) is not None:
            batch.stages.append((stage, began, now))

    def aged(self, ages: Floats) -> None:
        """The features of scored customers of the running batch were so old: float64 ``[n]`` seconds."""
        if self._metrics is not None:
            self._metrics.aged(ages)

    def answered(
        self, batch: Sequence[tuple[Job, int, int]], outcomes: Sequence[Scores | RequestError], began: float
    ) -> None:
        """Outcomes have been delivered, beginning at ``began``."""
        if (metrics := self._metrics) is None:
            return
        if self._encodes:
            metrics.stages["encode"].observe(time.monotonic() - began)
        rows, scored = metrics.rows, sum(stop - start for _, start, stop in batch)
        for at in [at for at, told in enumerate(outcomes) if isinstance(told, RequestError) or told.errors]:
            outcome, (_, start, stop) = outcomes[at], batch[at]
            if isinstance(outcome, RequestError):
                rows[outcome.reason] += stop - start
                scored -= stop - start
            else:
                rows.update(error.reason for error in outcome.errors.values())
                scored -= len(outcome.errors)
        rows[SCORED] += scored
