"""Where the time of a batch goes: reported by batcher and scorer, to histograms and to the traces of the batch's calls.

::

    call ──► waits ──► taken with a batch ──► Redis ──► model ──► replies are written
             queue                            redis     graph     encode
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final, Protocol

from feature_store.state.layout import Floats
from service.errors import RequestError
from service.telemetry.metrics import Metrics

SCORED: Final = "scored"
"""The outcome of a customer with a score; the outcome of every other customer is a reason."""


class Trace(Protocol):
    """A call that is traced."""

    def joined(self, batch: Batch) -> None:
        """Customers of the call are scored with this batch."""

    def end(self, code: int, error: Exception | None = None) -> None:
        """The call has ended with this status code."""


class Tracer(Protocol):
    """Starts the traces of calls."""

    def begin(
        self, path: bytes | str, parent: bytes | str | None, state: bytes | str | None, began: float
    ) -> Trace | None:
        """The trace of a call, or None if the call is not traced.

        Args:
            path: The method's path.
            parent: The value of W3C's ``traceparent`` header.
            state: The value of W3C's ``tracestate`` header.
            began: When the call started, by the monotonic clock.
        """


class QueuedCall(Protocol):
    """A call that waited for a batch."""

    @property
    def queued_at(self) -> float:
        """When it was queued, by the monotonic clock."""

    @property
    def trace(self) -> Trace | None:
        """The trace of the call, if it is traced."""


class ScoreOutcome(Protocol):
    """The scores of a call, as far as they are counted."""

    @property
    def errors(self) -> Mapping[int, RequestError]:
        """Why a customer has no score, by position."""


Slice = tuple[QueuedCall, int, int]
"""A call, the position of its first customer in the batch, and the position behind its last one."""


@dataclass(slots=True, eq=False)
class Batch:
    """A batch that contains traced calls.

    Attributes:
        taken: When the batch was formed, by the monotonic clock.
        calls: Number of calls in the batch.
        rows: Number of customers in the batch.
        traces: The traces of the calls that are traced.
        stages: Name, start and end of each stage, by the monotonic clock.
    """

    taken: float
    calls: int
    rows: int
    traces: Sequence[Trace]
    stages: list[tuple[str, float, float]] = field(default_factory=list)


TRACED_BATCH: Final[ContextVar[Batch | None]] = ContextVar("TRACED_BATCH", default=None)
"""The batch that the current task works on, if calls in it are traced."""


class BatchObserver:
    """Is notified of what happens to batches, and passes it on to metrics and traces."""

    def __init__(
        self,
        metrics: Metrics | None,
        *,
        encodes: bool,
        traced: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make an observer.

        Args:
            metrics: Where times and outcomes are counted; None if only traces are wanted.
            encodes: Whether the transport encodes a reply when it is delivered, so that the time is a batch's.
            traced: Whether calls may be traced.
            clock: Seconds of a clock that never goes back.
        """
        self._metrics: Final = metrics
        self._encodes: Final = encodes
        self._traced: Final = traced
        self._clock: Final = clock

    def batch_taken(self, batch: Sequence[Slice]) -> None:
        """A batch was formed of these slices."""
        now = self._clock()
        rows = sum(stop - start for _, start, stop in batch)
        if (metrics := self._metrics) is not None:
            metrics.batch_rows.observe(rows)
            for call, start, _ in batch:
                if not start:  # of the calls that enter with this batch, the first one has waited longest
                    metrics.stages["queue"].observe(now - call.queued_at)
                    break
        if self._traced:
            traces = [call.trace for call, _, _ in batch if call.trace is not None]
            traced = Batch(now, len(batch), rows, traces) if traces else None
            TRACED_BATCH.set(traced)
            if traced is not None:
                for trace in traces:
                    trace.joined(traced)

    def stage_done(self, stage: str, started: float) -> None:
        """A stage of the current batch, which started at this time by the monotonic clock, is done."""
        now = self._clock()
        if self._metrics is not None:
            self._metrics.stages[stage].observe(now - started)
        if self._traced and (batch := TRACED_BATCH.get()) is not None:
            batch.stages.append((stage, started, now))

    def features_aged(self, ages: Floats) -> None:
        """The ages of the features of the batch's scored customers: float64 ``[n]`` seconds."""
        if self._metrics is not None:
            self._metrics.features_aged(ages)

    def batch_answered(
        self, batch: Sequence[Slice], outcomes: Sequence[ScoreOutcome | RequestError], started: float
    ) -> None:
        """The outcomes of a batch have been delivered; delivering started at this time by the monotonic clock."""
        if (metrics := self._metrics) is None:
            return
        if self._encodes:
            metrics.stages["encode"].observe(self._clock() - started)
        rows, scored = metrics.rows, sum(stop - start for _, start, stop in batch)
        for (_, start, stop), outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, RequestError):
                rows[outcome.reason] += stop - start
                scored -= stop - start
            elif outcome.errors:
                rows.update(error.reason for error in outcome.errors.values())
                scored -= len(outcome.errors)
        rows[SCORED] += scored
