"""Batches form by themselves: whatever has arrived while the last batch ran is the next one. Nobody waits for a timer.

Large parts are cut into slices that take turns with everything else that waits, so a call for 1000 customers does not
hold up a call for one. What would wait too long is shed, what cannot be done in time is refused, and what nobody waits
for any more is dropped before a batch is formed. Knows nothing of the front that submits.

::

    submit ──► waits ──► batch ──► delivered
       │         ├ cancelled                  dropped, nobody is told
       │         ├ expired                    DEADLINE_TOO_SHORT
       │         └ waited too long, and many behind it    OVERLOADED
       ├ its deadline cannot be met           DEADLINE_TOO_SHORT
       └ too much waits already               OVERLOADED
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from service.batching.admission import STANDING, AdmissionControl, expired, overloaded
from service.call_context import NO_CONTEXT, CallContext
from service.errors import Reason, RequestError
from service.scoring.scorer import OFF_LOOP_ROWS
from service.scoring.types import NO_SCORES, ScoreRequest, Scores
from service.telemetry.batch_stages import BatchObserver, Trace

logger = logging.getLogger(__name__)

SMALL_ROWS: Final = OFF_LOOP_ROWS
"""Parts up to here, and batches of them, run right on the loop."""

EXPLAINED_ROWS: Final = 8
"""Most customers that are explained in one go, some ten milliseconds of a thread: then other calls have their turn."""

PATIENCE: Final = 40
"""So many times longer may those wait whose scores are explained: a batch of them takes as much longer, and more."""

MOMENT_S: Final = 0.1

Deliver = Callable[[Scores | RequestError], None]


@dataclass(slots=True, eq=False)
class _Job:
    """A submitted part: since when it waits, how far it has been taken, its finished slices by start, whom to tell."""

    part: ScoreRequest
    deliver: Deliver
    abandoned: Callable[[], bool]
    deadline: float
    queued_at: float
    trace: Trace | None = None
    taken: int = 0
    finished: dict[int, Scores] = field(default_factory=dict)
    over: bool = False

    def finish(self, start: int, outcome: Scores | RequestError) -> None:
        """Take in one slice's outcome; tell when it was the last one, or went wrong."""
        if self.over:
            return
        if isinstance(outcome, RequestError):
            self.end(outcome)
            return
        size = len(self.part.customer_ids)
        if len(outcome.rows) == size:
            self.end(outcome)
            return
        self.finished[start] = outcome
        if self.taken == size and sum(len(s.rows) for s in self.finished.values()) == size:
            self.end(Scores.joined([self.finished[at] for at in sorted(self.finished)]))

    def end(self, outcome: Scores | RequestError) -> None:
        """Tell the one outcome."""
        self.over = True
        self.deliver(outcome)


class _Lane:
    """Jobs that wait for the same workers."""

    def __init__(self, workers: int, most_rows: int, slice_rows: int, pace: AdmissionControl) -> None:
        self.workers: Final = workers
        self.most_rows: Final = most_rows
        self.pace: Final = pace
        self.waiting: Final[deque[_Job]] = deque()
        self.rows = 0
        """Of the jobs that wait, as far as they have not been taken."""
        self.idle: Final[list[asyncio.Future[None]]] = []
        self.tasks: Final[list[asyncio.Task[None]]] = []
        self.crowded = False
        """Whether calls come side by side: only then another one may be about to."""
        self._slice_rows: Final = slice_rows

    @property
    def ahead(self) -> int:
        """Rows that are taken before those of a new job: jobs take turns."""
        return min(self.rows, len(self.waiting) * self._slice_rows)

    @property
    def full(self) -> bool:
        """Whether new work would wait too long."""
        return self.ahead >= self.pace.most_rows

    @property
    def busy(self) -> bool:
        """Whether new work has to wait at all."""
        return len(self.tasks) - len(self.idle) >= self.workers

    def refusal(self, rows: int, left_s: float) -> RequestError | None:
        """Why so many rows with so much time left are not taken in, None if they are."""
        if self.full:
            return overloaded(self.pace.retry_s(rows))
        return self.pace.too_short(left_s, self.ahead, math.ceil(rows / self._slice_rows), busy=self.busy)


class ScoreBatcher:
    """Turns submitted parts into batches for ``score``, in two lanes, and a slow one for scores that are explained.

    Small parts, such as a call for one customer, share a batch that runs right on the loop. Large ones are cut into
    slices; two batches of them are under way, so that one waits for Redis or writes replies while the other runs its
    graph. No lane waits for another: ``interference_p99`` in the benchmark shows what that is worth.
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
        stages: BatchObserver | None = None,
    ) -> None:
        """``turns`` is for fronts that take several turns of the loop to bring a call in, as grpc.aio does.

        With 64 calls in flight 16 turns make batches of 5 and more out of 2.4, and save a third of the CPU.
        ``max_wait_s``: what would wait longer is shed; ``stages``: who wants to know of batches.
        """
        self._stages: Final = stages
        self._score = score
        self._slice_rows: Final = slice_rows
        self._turns: Final = turns
        self._clock: Final = clock
        self._asked = -math.inf
        few, many = min(SMALL_ROWS, max_rows), max_rows
        small = AdmissionControl(max_wait_s, rows=few, standing=STANDING, clock=clock)
        self._small: Final = _Lane(1, few, slice_rows, small)
        self._large: Final = _Lane(2, many, slice_rows, AdmissionControl(max_wait_s, rows=many, workers=2, clock=clock))
        slow = AdmissionControl(PATIENCE * max_wait_s, rows=min(EXPLAINED_ROWS, max_rows), clock=clock)
        self._explained: Final = _Lane(1, min(EXPLAINED_ROWS, max_rows), slice_rows, slow)
        self.shed = self.refused = self.expired = self.cancelled = 0
        """Calls so far that were not scored: too much to do, too short a deadline, too late, nobody waits any more."""
        self.scored = 0
        """Customers that went into batches so far."""

    def submit(
        self,
        part: ScoreRequest,
        deliver: Deliver,
        abandoned: Callable[[], bool] = lambda: False,
        context: CallContext = NO_CONTEXT,
    ) -> None:
        """Score ``part`` with the next batch and hand its scores, or the error of all of it, to ``deliver``.

        A part that is ``abandoned`` by the time its turn comes is not worked on, and nothing is delivered. A part that
        is sure to miss the deadline of its call is refused at once.
        """
        deadline = context.deadline
        self._asked = now = self._clock()
        rows = len(part.customer_ids)
        if not rows:
            deliver(NO_SCORES)
            return
        lane = self._small if rows <= SMALL_ROWS else self._large
        if part.max_reasons is not None:
            lane = self._explained
        # Nearly all are taken in after a glance.
        close = lane is not self._small or lane.rows >= lane.pace.most_rows or deadline < now + lane.pace.surely_s
        if close and (error := lane.refusal(rows, deadline - now)) is not None:
            self._count(error)
            deliver(error)
            return
        lane.waiting.append(_Job(part, deliver, abandoned, deadline, now, context.trace))
        lane.rows += rows
        if lane.idle:
            lane.idle.pop().set_result(None)
        elif len(lane.tasks) < lane.workers:
            lane.tasks.append(task := asyncio.get_running_loop().create_task(self._work(lane)))
            task.add_done_callback(lane.tasks.remove)  # whatever ended it, the next part has a worker again

    def _count(self, error: RequestError) -> None:
        if error.reason is Reason.OVERLOADED:
            self.shed += 1
        else:
            self.refused += 1

    def shed_unread(self) -> float | None:
        """Shed a call for one customer before it is read: when it should come back, None where it is welcome now."""
        lane = self._small
        if lane.rows < lane.pace.most_rows:
            return None
        self.shed += 1
        return lane.pace.retry_s()

    def shed_for_lag(self) -> float:
        """Shed a call because too much waits before it gets here: when it should come back."""
        self.shed += 1
        return self._small.pace.retry_s()

    def busy(self) -> bool:
        """Whether scores were asked for a moment ago."""
        return self._clock() < self._asked + MOMENT_S

    def waiting(self) -> dict[str, float]:
        """Calls that wait for a batch, by the kind of call that the lane is for."""
        lanes = {"small": self._small, "large": self._large, "explained": self._explained}
        return {name: len(lane.waiting) for name, lane in lanes.items()}

    async def score(
        self,
        part: ScoreRequest,
        abandoned: Callable[[], bool] = lambda: False,
        context: CallContext = NO_CONTEXT,
    ) -> Scores:
        """Like :meth:`submit`, for a front that waits."""
        future: asyncio.Future[Scores | RequestError] = asyncio.get_running_loop().create_future()

        def deliver(outcome: Scores | RequestError) -> None:
            if not future.done():
                future.set_result(outcome)

        self.submit(part, deliver, lambda: future.done() or abandoned(), context)
        outcome = await future
        if isinstance(outcome, RequestError):
            raise outcome
        return outcome

    async def _work(self, lane: _Lane) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began = self._clock()
            if lane.crowded and lane.rows < lane.most_rows:
                # What is already on its way in arrives first: turns of the loop, not time.
                for _ in range(self._turns):
                    await asyncio.sleep(0)
            if not (batch := self._take(lane)):
                lane.pace.rest()
                lane.idle.append(woken := loop.create_future())
                await woken
                continue
            lane.crowded = len(batch) > 1
            left = lane.rows
            if self._stages is not None:
                self._stages.batch_taken(batch)
            outcomes = await self._outcomes([job.part.slice(start, stop) for job, start, stop in batch])
            scored = time.monotonic()
            for (job, start, _), outcome in zip(batch, outcomes, strict=True):
                try:
                    job.finish(start, outcome)
                except Exception as error:  # a front that cannot deliver: the others still get theirs
                    logger.error("an answer could not be delivered: %s", type(error).__name__)
            lane.pace.took(self._clock() - began, left)
            if self._stages is not None:
                self._stages.batch_answered(batch, outcomes, scored)

    def _take(self, lane: _Lane) -> list[tuple[_Job, int, int]]:
        """The next batch: a slice of each waiting job in turn, as far as there is room."""
        batch, unfinished, room, waiting = [], [], lane.most_rows, lane.waiting
        now = self._clock()
        while waiting and room:
            job = waiting.popleft()
            start, size = job.taken, len(job.part.customer_ids)
            if job.over or self._dropped(job, lane, now):
                lane.rows -= size - start
                continue
            job.taken = min(size, start + min(self._slice_rows, room))
            lane.rows -= job.taken - start
            room -= job.taken - start
            batch.append((job, start, job.taken))
            if job.taken < size:
                unfinished.append(job)
        waiting.extend(unfinished)
        self.scored += lane.most_rows - room
        return batch

    def _dropped(self, job: _Job, lane: _Lane, now: float) -> bool:
        """Whether a job is not to be worked on: nobody waits for it, or it has waited too long."""
        if job.abandoned():
            self.cancelled += 1
            return True
        if now > job.deadline:
            self.expired += 1
            self._end(job, expired())
            return True
        if (
            lane.pace.standing
            and now > job.queued_at + lane.pace.most_wait_s
            and not job.taken
            and lane.rows > lane.most_rows
        ):
            # It came with a burst, or before a pause, and there are those behind it who have not waited for nothing.
            self.shed += 1
            self._end(job, overloaded(lane.pace.retry_s(len(job.part.customer_ids))))
            return True
        return False

    @staticmethod
    def _end(job: _Job, error: RequestError) -> None:
        try:
            job.end(error)
        except Exception as failure:  # a front that cannot deliver
            logger.error("an answer could not be delivered: %s", type(failure).__name__)

    async def _outcomes(self, parts: Sequence[ScoreRequest]) -> Sequence[Scores | RequestError]:
        try:
            return await self._score(parts)
        except RequestError as error:
            return [error] * len(parts)
        except Exception as error:  # whatever it is, every caller gets an answer, and none sees the inside
            logger.error("a batch of %d parts failed: %s", len(parts), type(error).__name__)
            return [RequestError(Reason.INTERNAL, "the server could not score this: report it with the time")] * len(
                parts
            )
