"""Batches form by themselves: whatever has arrived while the last batch ran is the next one. Nobody waits for a timer.

Large parts are cut into slices that take turns with everything else that waits, so a call for 1000 customers does not
hold up a call for one. Knows nothing of the front that submits.
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

import numpy as np

from service.errors import Reason, RequestError
from service.scorer import OFF_LOOP_ROWS, Part, Scores
from service.stages import Stages, Trace

logger = logging.getLogger(__name__)

SMALL_ROWS: Final = OFF_LOOP_ROWS
"""Parts up to here, and batches of them, run right on the loop."""

MOMENT_S: Final = 0.1

Deliver = Callable[[Scores | RequestError], None]


@dataclass(slots=True, eq=False)
class _Job:
    """A submitted part: since when it waits, how far it has been taken, its finished slices by start, whom to tell."""

    part: Part
    deliver: Deliver
    abandoned: Callable[[], bool]
    asked: float
    trace: Trace | None
    taken: int = 0
    finished: dict[int, Scores] = field(default_factory=dict)
    over: bool = False

    def finish(self, start: int, outcome: Scores | RequestError) -> None:
        """Take in one slice's outcome; tell when it was the last one, or went wrong."""
        if self.over:
            return
        if isinstance(outcome, RequestError):
            self._end(outcome)
            return
        size = len(self.part.customer_ids)
        if len(outcome.table) == size:
            self._end(outcome)
            return
        self.finished[start] = outcome
        if self.taken == size and sum(len(s.table) for s in self.finished.values()) == size:
            self._end(Scores.joined([self.finished[at] for at in sorted(self.finished)]))

    def _end(self, outcome: Scores | RequestError) -> None:
        self.over = True
        self.deliver(outcome)


class _Lane:
    """Jobs that wait for the same workers."""

    def __init__(self, workers: int, most_rows: int) -> None:
        self.workers: Final = workers
        self.most_rows: Final = most_rows
        self.waiting: Final[deque[_Job]] = deque()
        self.idle: Final[list[asyncio.Future[None]]] = []
        self.tasks: Final[list[asyncio.Task[None]]] = []
        self.crowded = False
        """Whether calls come side by side: only then another one may be about to."""


class Batcher:
    """Turns submitted parts into batches for ``score``, in two lanes.

    Small parts, such as a call for one customer, share a batch that runs right on the loop. Large ones are cut into
    slices; two batches of them are under way, so that one waits for Redis or writes replies while the other runs its
    graph. Neither lane waits for the other: ``interference_p99`` in the benchmark shows what that is worth.
    """

    def __init__(
        self,
        score: Callable[[Sequence[Part]], Awaitable[list[Scores]]],
        *,
        max_rows: int = 256,
        slice_rows: int = 128,
        turns: int = 0,
        stages: Stages | None = None,
    ) -> None:
        """``turns`` is for fronts that take several turns of the loop to bring a call in, as grpc.aio does.

        With 64 calls in flight 16 turns make batches of 5 and more out of 2.4, and save a third of the CPU.
        ``stages``: who wants to know of batches.
        """
        self._stages: Final = stages
        self._score = score
        self._slice_rows: Final = slice_rows
        self._turns: Final = turns
        self._asked = -math.inf
        self._small: Final = _Lane(1, min(SMALL_ROWS, max_rows))
        self._large: Final = _Lane(2, max_rows)

    def submit(
        self,
        part: Part,
        deliver: Deliver,
        abandoned: Callable[[], bool] = lambda: False,
        trace: Trace | None = None,
    ) -> None:
        """Score ``part`` with the next batch and hand its scores, or the error of all of it, to ``deliver``.

        What is ``abandoned`` (cancelled, past its deadline) by the time its turn comes is not worked on.
        """
        self._asked = time.monotonic()
        rows = len(part.customer_ids)
        if not rows:
            deliver(Scores(np.empty((0, 0)), {}, ""))
            return
        lane = self._small if rows <= SMALL_ROWS else self._large
        lane.waiting.append(_Job(part, deliver, abandoned, self._asked, trace))
        if lane.idle:
            lane.idle.pop().set_result(None)
        elif len(lane.tasks) < lane.workers:
            lane.tasks.append(task := asyncio.get_running_loop().create_task(self._work(lane)))
            task.add_done_callback(lane.tasks.remove)  # whatever ended it, the next part has a worker again

    def busy(self) -> bool:
        """Whether scores were asked for a moment ago."""
        return time.monotonic() < self._asked + MOMENT_S

    def waiting(self) -> dict[str, float]:
        """Calls that wait for a batch, by the size of call that the lane is for."""
        return {"small": len(self._small.waiting), "large": len(self._large.waiting)}

    async def score(
        self, part: Part, abandoned: Callable[[], bool] = lambda: False, trace: Trace | None = None
    ) -> Scores:
        """Like :meth:`submit`, for a front that waits."""
        future: asyncio.Future[Scores | RequestError] = asyncio.get_running_loop().create_future()

        def deliver(outcome: Scores | RequestError) -> None:
            if not future.done():
                future.set_result(outcome)

        self.submit(part, deliver, lambda: future.done() or abandoned(), trace)
        outcome = await future
        if isinstance(outcome, RequestError):
            raise outcome
        return outcome

    async def _work(self, lane: _Lane) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if lane.crowded:  # what is already on its way in arrives first: turns of the loop, not time
                for _ in range(self._turns):
                    await asyncio.sleep(0)
            if not (batch := self._take(lane)):
                lane.idle.append(woken := loop.create_future())
                await woken
                continue
            lane.crowded = len(batch) > 1
            if self._stages is not None:
                self._stages.taken(batch)
            outcomes = await self._outcomes([job.part.slice(start, stop) for job, start, stop in batch])
            scored = time.monotonic()
            for (job, start, _), outcome in zip(batch, outcomes, strict=True):
                try:
                    job.finish(start, outcome)
                except Exception as error:  # a front that cannot deliver: the others still get theirs
                    logger.error("an answer could not be delivered: %s", type(error).__name__)
            if self._stages is not None:
                self._stages.answered(batch, outcomes, scored)

    def _take(self, lane: _Lane) -> list[tuple[_Job, int, int]]:
        """The next batch: a slice of each waiting job in turn, as far as there is room."""
        batch, unfinished, room, waiting = [], [], lane.most_rows, lane.waiting
        while waiting and room:
            job = waiting.popleft()
            if job.over or job.abandoned():
                continue
            start, size = job.taken, len(job.part.customer_ids)
            job.taken = min(size, start + min(self._slice_rows, room))
            room -= job.taken - start
            batch.append((job, start, job.taken))
            if job.taken < size:
                unfinished.append(job)
        waiting.extend(unfinished)
        return batch

    async def _outcomes(self, parts: Sequence[Part]) -> Sequence[Scores | RequestError]:
        try:
            return await self._score(parts)
        except RequestError as error:
            return [error] * len(parts)
        except Exception as error:  # whatever it is, every caller gets an answer, and none sees the inside
            logger.error("a batch of %d parts failed: %s", len(parts), type(error).__name__)
            return [RequestError(Reason.INTERNAL, "the server could not score this: report it with the time")] * len(
                parts
            )
