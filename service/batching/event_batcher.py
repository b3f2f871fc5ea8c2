"""Batches of events: each event is checked, recorded together with what else arrived, and answered when it is stored.

::

    call ─► check each event ─► fair queue ─► up to 64 events: read, fold, commit ─► answer of the call
       │            │                                          │
       │            └ a bad event     rejected, it alone       └ Redis does not answer, archive behind   fails the call
       └ too much waits, or the deadline is too short or has passed                                      fails the call

As with scores nothing waits for a timer: the events that arrive while a batch is stored form the next one. Batches are
small and yield the event loop in between, so that a score never waits long for the loop or for Redis.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from feature_store.errors import ArchiveBehindError, NotInClusterError, StoreUnavailableError
from feature_store.online.customer_store import ConflictError
from feature_store.state.events import Event, Problem, Rules, problem
from feature_store.state.folding import Outcome, Verdict
from service.batching.admission import AdmissionControl
from service.batching.fair_queue import DropCounts, FairQueue, QueuedCall
from service.call_context import NO_CONTEXT, CallContext
from service.errors import Reason, RequestError, not_in_cluster, store_error

logger = logging.getLogger(__name__)

BATCH_ROWS: Final = 64
"""Maximum number of events in a batch."""
BATCH_ROWS_BESIDE_SCORES: Final = 16
"""The maximum while scores are requested: an event costs a third more CPU, but scores wait a fraction of the time."""
YIELDED_TURNS: Final = 4
"""Turns of the event loop that events yield to scores: a score takes about as many to be read, and to be answered."""
WORKERS: Final = 2
"""Batches that run at the same time: one waits for Redis while the other is folded."""


class IndexedProblem(NamedTuple):
    """What is wrong with an event, or was changed in it; ``at`` is its position in the request."""

    at: int
    problem: Problem


@dataclass(slots=True)
class RecordingResult:
    """The result of recording the events of a request.

    Attributes:
        accepted: Number of events that were recorded.
        duplicates: Number of events that had been recorded before.
        rejected: The events that were not recorded, and why.
        guarded: The events that were recorded, but limited by a rule, or of a type that was probably not meant.
        unread: Number of events that were recorded and whose type no feature reads.
    """

    accepted: int = 0
    duplicates: int = 0
    rejected: list[IndexedProblem] = field(default_factory=list)
    guarded: list[IndexedProblem] = field(default_factory=list)
    unread: int = 0

    def add_outcome(self, at: int, outcome: Outcome) -> None:
        """Add what became of the event at this position."""
        verdict, problem, is_read = outcome
        if verdict is Verdict.DUPLICATE:
            self.duplicates += 1
        elif verdict is Verdict.ACCEPTED:
            self.accepted += 1
            self.unread += not is_read
            if problem is not None:
                self.guarded.append(IndexedProblem(at, problem))
        elif problem is not None:
            self.rejected.append(IndexedProblem(at, problem))


@dataclass(slots=True, eq=False)
class _EventCall(QueuedCall):
    """The valid events of a call, and the outcomes of those that are stored."""

    events: Sequence[Event]
    finished: asyncio.Future[list[Outcome]]
    outcomes: dict[int, Sequence[Outcome]] = field(default_factory=dict, init=False)
    left: int = field(init=False)

    def __post_init__(self) -> None:
        self.left = self.size

    def is_done(self) -> bool:
        """Whether a batch with some of its events has failed."""
        return self.finished.done() and not self.finished.cancelled()

    def is_cancelled(self) -> bool:
        """Whether the client waits no longer."""
        return self.finished.cancelled()

    def fail(self, error: RequestError) -> None:
        """Fail the call, if it has no outcome yet."""
        if not self.finished.done():
            self.finished.set_exception(error)

    def add(self, start: int, outcomes: Sequence[Outcome]) -> None:
        """Add the outcomes of a slice; the last slice completes the call."""
        self.outcomes[start] = outcomes
        self.left -= len(outcomes)
        if not self.left and not self.finished.done():
            self.finished.set_result([outcome for first in sorted(self.outcomes) for outcome in self.outcomes[first]])


class EventBatcher:
    """Forms batches of the events of all calls.

    Attributes:
        drops: Calls whose events were not recorded, or not all of them.
        counts: Events by verdict (accepted, duplicates), by the reason why they were rejected or guarded, and accepted
            ones that are unread.
    """

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
        """Make a batcher.

        Args:
            record: Stores the events of a batch; returns what became of each.
            rules: The rules for valid events.
            clock: Unix seconds.
            scoring: Whether scores are requested, to which events yield.
            max_wait_s: Maximum time in the queue.
            monotonic: Seconds of a clock that never goes back.
        """
        self.drops: Final = DropCounts()
        self.counts: Final[Counter[str]] = Counter()
        self._record: Final = record
        self._rules: Final = rules
        self._scoring: Final = scoring
        self._clock: Final = clock
        self._monotonic: Final = monotonic
        self._admission: Final = AdmissionControl(max_wait_s, batch_rows=BATCH_ROWS, workers=WORKERS, clock=monotonic)
        self._queue: Final = FairQueue[_EventCall](
            self._admission, self.drops, batch_rows=BATCH_ROWS, slice_rows=BATCH_ROWS
        )
        self._workers: set[asyncio.Task[None] | None] = set()

    def admit(self, context: CallContext = NO_CONTEXT) -> None:
        """Admit a call before its events are read.

        Raises:
            RequestError: Events would wait for too long, or for longer than the call's deadline allows.
        """
        left_s, busy = context.deadline - self._monotonic(), len(self._workers) >= WORKERS
        if (error := self._queue.refusal(BATCH_ROWS, left_s, busy=busy)) is not None:
            raise error

    async def record(self, events: Sequence[Event], context: CallContext = NO_CONTEXT) -> RecordingResult:
        """Record events.

        Args:
            events: The events of a request.
            context: The deadline of the call.

        Returns:
            What became of each event.

        Raises:
            RequestError: The call failed as a whole. Some of its events may be recorded; if they are sent again, those
                with an event_id are counted only once.
        """
        result = RecordingResult()
        valid, positions = await self._check(events, result)
        if valid:
            for at, outcome in zip(positions, await self._outcomes(valid, context), strict=True):
                result.add_outcome(at, outcome)
            result.rejected.sort()
        self._count(result)
        return result

    async def _check(self, events: Sequence[Event], result: RecordingResult) -> tuple[list[Event], list[int]]:
        """The valid events and their positions; the others are added to the result.

        A large request is checked in slices and yields the event loop in between: 1,000 events would hold it for two
        milliseconds.
        """
        if len(events) > BATCH_ROWS:
            await _yield_loop()
        now, valid, positions = self._clock(), [], []
        for start in range(0, len(events), BATCH_ROWS):
            if start:
                await asyncio.sleep(0)
            for at, event in enumerate(events[start : start + BATCH_ROWS], start):
                if (bad := problem(event, self._rules, now)) is None:
                    valid.append(event)
                    positions.append(at)
                else:
                    result.rejected.append(IndexedProblem(at, bad))
        return valid, positions

    async def _outcomes(self, events: Sequence[Event], context: CallContext) -> list[Outcome]:
        loop = asyncio.get_running_loop()
        call = _EventCall(len(events), context.deadline, self._monotonic(), context.trace, events, loop.create_future())
        self._queue.append(call)
        if len(self._workers) < WORKERS:
            self._workers.add(loop.create_task(self._work()))
        return await call.finished

    async def _work(self) -> None:
        try:
            while batch := self._take():
                await self._record_batch(batch)
        finally:  # at once: a call that comes before the callbacks of this task would wait for no worker
            self._workers -= {asyncio.current_task()}

    def _take(self) -> list[tuple[_EventCall, int, int]]:
        room = BATCH_ROWS_BESIDE_SCORES if self._scoring() else BATCH_ROWS
        return self._queue.take(room, self._monotonic())

    async def _record_batch(self, batch: Sequence[tuple[_EventCall, int, int]]) -> None:
        started, rows_waiting = self._monotonic(), self._queue.rows
        events = [event for call, start, stop in batch for event in call.events[start:stop]]
        try:
            outcomes = await self._record(events)
        except Exception as error:  # of any kind: every caller gets an answer
            for call, _, _ in batch:
                call.fail(_request_error(error))
            return
        first = 0
        for call, start, stop in batch:
            call.add(start, outcomes[first : first + stop - start])
            first += stop - start
        if self._queue and self._scoring():
            await _yield_loop()
        self._admission.batch_done(self._monotonic() - started, rows_waiting)

    def _count(self, result: RecordingResult) -> None:
        self.counts["accepted"] += result.accepted
        self.counts["duplicates"] += result.duplicates
        if result.unread:
            self.counts["unread"] += result.unread
        for detail in (*result.rejected, *result.guarded):
            self.counts[detail.problem.reason] += 1


async def _yield_loop() -> None:
    for _ in range(YIELDED_TURNS):
        await asyncio.sleep(0)


def _request_error(error: Exception) -> RequestError:
    """The error of a call from a failure of the store, without its details."""
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
