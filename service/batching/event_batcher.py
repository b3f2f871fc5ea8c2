"""Events on their way into the store: checked, put together with what else arrives, and answered when they are stored.

::

    call ──► check each ──► waiting events of all calls ──► up to 32 at a time: read, fold, commit ──► call
                 │                                                      │
      │          └ an event is bad       rejected, alone                └ Redis away, archive behind     all of the call
      └ too much waits already, or its deadline is too short or gone by                                  all of the call

As with scores nobody waits for a timer: what has arrived while the last batch was stored is the next one. Batches are
small, and between them others have turns of the loop, so that a score never waits long for the loop or for Redis.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from feature_store.errors import ArchiveBehindError, NotInClusterError, StoreUnavailableError
from feature_store.online.customer_store import ConflictError
from feature_store.state.events import Event, Problem, Rules, problem
from feature_store.state.folding import Outcome, Verdict
from service.batching.admission import AdmissionControl, expired, overloaded
from service.call_context import NO_CONTEXT, CallContext
from service.errors import Reason, RequestError
from service.store_errors import not_in_cluster, store_error

logger = logging.getLogger(__name__)

BATCH: Final = 64
BESIDE_SCORES: Final = 16
"""Smaller batches cost a third more CPU an event, and scores beside them take a fraction of the time."""
TURNS: Final = 4
"""Of the loop, between batches: a score takes about so many to be asked for, and so again to be answered."""
WORKERS: Final = 2
"""Batches under way: one waits for Redis while the other is folded."""


class IndexedProblem(NamedTuple):
    """An event (by its position in the request) and what there is to say about it."""

    at: int
    problem: Problem


@dataclass(slots=True)
class RecordingResult:
    """What became of the events of a request."""

    accepted: int = 0
    duplicates: int = 0
    rejected: list[IndexedProblem] = field(default_factory=list)
    guarded: list[IndexedProblem] = field(default_factory=list)
    rejected_count: int = 0
    guarded_count: int = 0

    def add(self, other: RecordingResult, offset: int, most: int) -> None:
        """Take in what became of further events, which begin at ``offset``; keep at most ``most`` of the details."""
        self.accepted += other.accepted
        self.duplicates += other.duplicates
        self.rejected_count += other.rejected_count
        self.guarded_count += other.guarded_count
        for mine, theirs in ((self.rejected, other.rejected), (self.guarded, other.guarded)):
            mine += [IndexedProblem(offset + at, why) for at, why in theirs[: max(0, most - len(mine))]]


@dataclass(slots=True, eq=False)
class _Job:
    """The good events of a call, how far they have been taken, and what became of those that are done."""

    events: Sequence[Event]
    finished: asyncio.Future[list[Outcome | None]]
    outcomes: list[Outcome | None]
    deadline: float = math.inf
    taken: int = 0
    left: int = 0


class EventBatcher:
    """Records the events of all calls."""

    def __init__(
        self,
        record: Callable[[Sequence[Event]], Awaitable[list[Outcome]]],
        rules: Rules,
        clock: Callable[[], float] = time.time,
        scoring: Callable[[], bool] = lambda: False,
        *,
        max_wait_s: float = math.inf,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``scoring``: whether scores are being asked for, which events then give way to.

        ``max_wait_s``: calls whose events would wait longer are shed.
        """
        self._record = record
        self._rules = rules
        self._scoring = scoring
        self._clock = clock
        self._monotonic = monotonic
        self._pace = AdmissionControl(max_wait_s, rows=BATCH, workers=WORKERS, clock=monotonic)
        self._waiting: deque[_Job] = deque()
        self._rows = 0
        """Events that wait."""
        self._workers: set[asyncio.Task[None] | None] = set()
        self.counts: Final[Counter[str]] = Counter()
        """Events by what became of them: a verdict, or the reason's name."""
        self.shed = self.refused = self.expired = self.cancelled = 0
        """Calls so far that were not recorded to the end: too much to do, too short a deadline, too late, given up."""

    def admit(self, context: CallContext = NO_CONTEXT) -> None:
        """RequestError where new events would wait too long, or for longer than the call's deadline."""
        ahead = min(self._rows, len(self._waiting) * BATCH)
        if ahead >= self._pace.most_rows:
            self.shed += 1
            raise overloaded(self._pace.retry_s(BATCH))
        if (deadline := context.deadline) != math.inf:
            busy = len(self._workers) >= WORKERS
            if error := self._pace.too_short(deadline - self._monotonic(), ahead, 1, busy=busy):
                self.refused += 1
                raise error

    async def record(self, events: Sequence[Event], context: CallContext = NO_CONTEXT) -> RecordingResult:
        """Record events, and say what became of each; RequestError where the call as a whole failed.

        Then some of them may be recorded; sent again, those with an event_id are counted once all the same.
        """
        if len(events) > BATCH:
            await _give_way()
        now, found = self._clock(), RecordingResult()
        good, places = [], []
        for index, event in enumerate(events):
            if (bad := problem(event, self._rules, now)) is None:
                good.append(event)
                places.append(index)
            else:
                found.rejected.append(IndexedProblem(index, bad))
        if good:
            for index, outcome in zip(places, await self._outcomes(good, context.deadline), strict=True):
                _tell(found, index, outcome)
            found.rejected.sort()
        found.rejected_count, found.guarded_count = len(found.rejected), len(found.guarded)
        self._count(found)
        return found

    async def _outcomes(self, events: Sequence[Event], deadline: float) -> list[Outcome | None]:
        finished: asyncio.Future[list[Outcome | None]] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Job(events, finished, [None] * len(events), deadline, left=len(events)))
        self._rows += len(events)
        if len(self._workers) < WORKERS:
            self._workers.add(asyncio.get_running_loop().create_task(self._work()))
        return await finished

    async def _work(self) -> None:
        try:
            await self._record_waiting()
        finally:  # at once: whoever comes before the task's callbacks were called would wait for nobody
            self._workers -= {asyncio.current_task()}

    async def _record_waiting(self) -> None:
        while batch := self._take():
            began, left = self._monotonic(), self._rows
            events = [event for job, start, stop in batch for event in job.events[start:stop]]
            try:
                outcomes = await self._record(events)
            except Exception as error:  # whatever it is, every caller gets an answer
                for job, _, _ in batch:
                    if not job.finished.done():
                        job.finished.set_exception(_failure(error))
                continue
            at = 0
            for job, start, stop in batch:
                job.outcomes[start:stop] = outcomes[at : at + stop - start]
                at += stop - start
                job.left -= stop - start
                if not job.left and not job.finished.done():
                    job.finished.set_result(job.outcomes)
            if self._waiting and self._scoring():
                await _give_way()
            self._pace.took(self._monotonic() - began, left)

    def _take(self) -> list[tuple[_Job, int, int]]:
        """The next batch: some events of each waiting call in turn, as far as there is room."""
        batch, unfinished, room = [], [], BESIDE_SCORES if self._scoring() else BATCH
        now = self._monotonic()
        while self._waiting and room:
            job = self._waiting.popleft()
            if self._dropped(job, now):
                self._rows -= len(job.events) - job.taken
                continue
            start, job.taken = job.taken, min(len(job.events), job.taken + room)
            room -= job.taken - start
            self._rows -= job.taken - start
            batch.append((job, start, job.taken))
            if job.taken < len(job.events):
                unfinished.append(job)
        self._waiting.extend(unfinished)
        return batch

    def _dropped(self, job: _Job, now: float) -> bool:
        """Whether a job is not worked on any further: it failed, nobody waits any more, or it is too late."""
        if job.finished.done():
            self.cancelled += job.finished.cancelled()
            return True
        if now <= job.deadline:
            return False
        self.expired += 1
        job.finished.set_exception(expired())
        return True

    def _count(self, found: RecordingResult) -> None:
        self.counts["accepted"] += found.accepted
        self.counts["duplicates"] += found.duplicates
        for noted in (*found.rejected, *found.guarded):
            self.counts[noted.problem.reason.partition(":")[0]] += 1


async def _give_way() -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)


def _tell(found: RecordingResult, index: int, outcome: Outcome | None) -> None:
    verdict, why = outcome or (Verdict.REJECTED, None)
    if verdict is Verdict.DUPLICATE:
        found.duplicates += 1
    elif verdict is Verdict.ACCEPTED:
        found.accepted += 1
        if why is not None:
            found.guarded.append(IndexedProblem(index, why))
    elif why is not None:
        found.rejected.append(IndexedProblem(index, why))


def _failure(error: Exception) -> RequestError:
    if isinstance(error, StoreUnavailableError):
        return store_error(error, "send the events again, with the same ids")
    if isinstance(error, NotInClusterError):
        return not_in_cluster()
    if isinstance(error, ArchiveBehindError):
        message = "too many events wait for the archive: start the archiver, or find out what stops it"
        return RequestError(Reason.ARCHIVE_BEHIND, message)
    if isinstance(error, ConflictError):
        return RequestError(Reason.CONFLICT, "others keep changing these customers: send the events again")
    logger.error("a batch of events failed: %s", type(error).__name__)
    return RequestError(Reason.INTERNAL, "the server could not record this: report it with the time")
