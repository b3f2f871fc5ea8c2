"""Batches of score requests: whatever arrives while a batch runs becomes the next batch. Nothing waits for a timer.

Large calls are cut into slices that take turns with all other calls, so a call for 1,000 customers does not delay a
call for one. Calls that would wait too long are shed, calls whose deadline cannot be met are refused, and calls that
their client has given up are dropped before a batch is formed (see ``fair_queue``). The batcher knows nothing of gRPC.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from service.batching.admission import STANDING_SHARE, AdmissionControl
from service.batching.fair_queue import DropCounts, FairQueue, QueuedCall
from service.call_context import NO_CONTEXT, CallContext
from service.errors import Reason, RequestError
from service.scoring.scorer import OFF_LOOP_ROWS
from service.scoring.types import NO_SCORES, ScoreRequest, Scores
from service.telemetry.batch_stages import BatchObserver

logger = logging.getLogger(__name__)

SMALL_ROWS: Final = OFF_LOOP_ROWS
"""Calls of up to this many customers, and batches of them, run on the event loop."""

EXPLAINED_ROWS: Final = 8
"""Maximum number of customers that are explained in one batch, some ten milliseconds of a thread."""

EXPLAINED_WAIT_FACTOR: Final = 40
"""Queue-time bound of explained calls, as a multiple of the normal bound: a batch of them takes that much longer."""

RECENT_S: Final = 0.1
"""The batcher is busy for this long after a score was requested."""

Deliver = Callable[[Scores | RequestError], None]


@dataclass(slots=True, eq=False)
class _ScoreCall(QueuedCall):
    """A submitted request, and the scores of its slices that are done, by their first row."""

    request: ScoreRequest
    deliver: Deliver
    abandoned: Callable[[], bool]
    slices: dict[int, Scores] = field(default_factory=dict, init=False)
    done: bool = field(default=False, init=False)

    def is_done(self) -> bool:
        """Whether the outcome was delivered."""
        return self.done

    def is_cancelled(self) -> bool:
        """Whether the client waits no longer."""
        return self.abandoned()

    def fail(self, error: RequestError) -> None:
        """Deliver an error."""
        self._finish(error)

    def add(self, start: int, outcome: Scores | RequestError) -> None:
        """Add the outcome of a slice; deliver all scores with the last slice, or the first error."""
        if self.done:
            return
        if isinstance(outcome, RequestError) or len(outcome.rows) == self.size:
            self._finish(outcome)
            return
        self.slices[start] = outcome
        if self.taken == self.size and sum(len(scores.rows) for scores in self.slices.values()) == self.size:
            self._finish(Scores.joined([self.slices[first] for first in sorted(self.slices)]))

    def _finish(self, outcome: Scores | RequestError) -> None:
        self.done = True
        try:
            self.deliver(outcome)
        except Exception as error:  # a transport that cannot deliver must not disturb the other calls
            logger.error("an answer could not be delivered: %s", type(error).__name__)


class _Lane:
    """A queue and its workers."""

    def __init__(self, workers: int, batch_rows: int, queue: FairQueue[_ScoreCall]) -> None:
        self.workers: Final = workers
        self.batch_rows: Final = batch_rows
        self.queue: Final = queue
        self.idle: Final[list[asyncio.Future[None]]] = []
        self.tasks: Final[list[asyncio.Task[None]]] = []
        self.crowded = False
        """Whether the last batch had several calls: only then more calls are likely to be on their way."""

    @property
    def busy(self) -> bool:
        """Whether a new call has to wait for a worker."""
        return len(self.tasks) - len(self.idle) >= self.workers


class ScoreBatcher:
    """Forms batches of submitted requests, in a lane for small calls, one for large ones and one for explained ones.

    Small calls, such as a call for one customer, share a batch that runs on the event loop. Large calls are cut into
    slices; two batches of them run at the same time, so that one waits for Redis or writes replies while the other runs
    its model. No lane waits for another: see ``interference_p99`` in the benchmark.

    Attributes:
        drops: Calls that were not scored.
        scored: Customers that went into a batch.
    """

    def __init__(
        self,
        score: Callable[[Sequence[ScoreRequest]], Awaitable[Sequence[Scores | RequestError]]],
        *,
        max_rows: int = 256,
        slice_rows: int = 128,
        turns: int = 0,
        max_wait_s: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
        observer: BatchObserver | None = None,
    ) -> None:
        """Make a batcher.

        Args:
            score: Scores the requests of a batch.
            max_rows: Maximum number of customers in a batch.
            slice_rows: Maximum number of customers of one call in a batch.
            turns: Turns of the event loop to wait for more calls before a batch is formed, for transports that take
                several turns to read a call. With 64 calls in flight over grpc.aio, 16 turns make batches of 5 calls
                out of 2.4, which saves a third of the CPU.
            max_wait_s: Maximum time in the queue.
            clock: Seconds of a clock that never goes back.
            observer: Is notified of batches; None if nobody measures.
        """
        self.drops: Final = DropCounts()
        self.scored = 0
        self._score: Final = score
        self._observer: Final = observer
        self._turns: Final = turns
        self._clock: Final = clock
        self._last_request = -math.inf
        self._slice_rows: Final = slice_rows
        small_rows, explained_rows = min(SMALL_ROWS, max_rows), min(EXPLAINED_ROWS, max_rows)
        self._small: Final = self._lane(1, small_rows, max_wait_s, STANDING_SHARE)
        self._large: Final = self._lane(2, max_rows, max_wait_s)
        self._explained: Final = self._lane(1, explained_rows, EXPLAINED_WAIT_FACTOR * max_wait_s)

    def _lane(self, workers: int, batch_rows: int, max_wait_s: float, standing_share: float = 1.0) -> _Lane:
        admission = AdmissionControl(
            max_wait_s, batch_rows=batch_rows, workers=workers, standing_share=standing_share, clock=self._clock
        )
        queue = FairQueue[_ScoreCall](
            admission, self.drops, batch_rows=batch_rows, slice_rows=self._slice_rows, sheds_late=True
        )
        return _Lane(workers, batch_rows, queue)

    def submit(
        self,
        request: ScoreRequest,
        deliver: Deliver,
        abandoned: Callable[[], bool] = lambda: False,
        context: CallContext = NO_CONTEXT,
    ) -> None:
        """Score a request with the next batch.

        Args:
            request: The request.
            deliver: Receives the scores, or the error of the whole request; not called for an abandoned request.
            abandoned: Whether the client waits no longer; asked when the turn of the request comes.
            context: The deadline and the trace of the call. A request that is sure to miss it is refused at once.
        """
        deadline = context.deadline
        self._last_request = now = self._clock()
        size = len(request.customer_ids)
        if not size:
            deliver(NO_SCORES)
            return
        lane = self._small if size <= SMALL_ROWS else self._large
        if request.max_reasons is not None:
            lane = self._explained
        queue = lane.queue
        if (lane is not self._small or not queue.surely_admits(deadline, now)) and (
            error := queue.refusal(size, deadline - now, busy=lane.busy)
        ) is not None:
            deliver(error)
            return
        queue.append(_ScoreCall(size, deadline, now, context.trace, request, deliver, abandoned))
        if lane.idle:
            lane.idle.pop().set_result(None)
        elif len(lane.tasks) < lane.workers:
            lane.tasks.append(task := asyncio.get_running_loop().create_task(self._work(lane)))
            task.add_done_callback(lane.tasks.remove)  # if a worker ever ends, the next call starts another one

    def shed_unread(self) -> float | None:
        """Shed a call for one customer before it is read, if too many rows wait.

        Returns:
            Seconds after which the call should come back; None if it is not shed.
        """
        queue = self._small.queue
        return None if queue.rows < queue.admission.max_rows else queue.shed()

    def shed_for_lag(self) -> float:
        """Shed a call for one customer since too many calls wait in the transport; returns seconds until a retry."""
        return self._small.queue.shed()

    def busy(self) -> bool:
        """Whether scores were requested a moment ago."""
        return self._clock() < self._last_request + RECENT_S

    def waiting(self) -> dict[str, float]:
        """The number of calls that wait, by lane."""
        lanes = {"small": self._small, "large": self._large, "explained": self._explained}
        return {name: len(lane.queue) for name, lane in lanes.items()}

    async def score(
        self,
        request: ScoreRequest,
        abandoned: Callable[[], bool] = lambda: False,
        context: CallContext = NO_CONTEXT,
    ) -> Scores:
        """Score a request, like :meth:`submit`, and wait for its scores.

        Raises:
            RequestError: The request has no scores.
        """
        future: asyncio.Future[Scores | RequestError] = asyncio.get_running_loop().create_future()

        def deliver(outcome: Scores | RequestError) -> None:
            if not future.done():
                future.set_result(outcome)

        self.submit(request, deliver, lambda: future.done() or abandoned(), context)
        outcome = await future
        if isinstance(outcome, RequestError):
            raise outcome
        return outcome

    async def _work(self, lane: _Lane) -> None:
        loop, queue, admission = asyncio.get_running_loop(), lane.queue, lane.queue.admission
        while True:
            started = self._clock()
            if lane.crowded and queue.rows < lane.batch_rows:
                for _ in range(self._turns):  # calls that the transport is reading now join this batch
                    await asyncio.sleep(0)
            if not (batch := queue.take(lane.batch_rows, self._clock())):
                admission.queue_emptied()
                lane.idle.append(woken := loop.create_future())
                await woken
                continue
            lane.crowded = len(batch) > 1
            rows_waiting = queue.rows
            self.scored += sum(stop - start for _, start, stop in batch)
            if self._observer is not None:
                self._observer.batch_taken(batch)
            outcomes = await self._outcomes([call.request.slice(start, stop) for call, start, stop in batch])
            scored_at = self._clock()
            for (call, start, _), outcome in zip(batch, outcomes, strict=True):
                call.add(start, outcome)
            admission.batch_done(self._clock() - started, rows_waiting)
            if self._observer is not None:
                self._observer.batch_answered(batch, outcomes, scored_at)

    async def _outcomes(self, requests: Sequence[ScoreRequest]) -> Sequence[Scores | RequestError]:
        try:
            return await self._score(requests)
        except RequestError as error:
            return [error] * len(requests)
        except Exception as error:  # of any kind: every caller gets an answer, which shows nothing of the inside
            logger.error("a batch of %d calls failed: %s", len(requests), type(error).__name__)
            message = "the server could not score this: report it with the time"
            return [RequestError(Reason.INTERNAL, message)] * len(requests)
