"""A queue with admission control whose calls take turns: a large call does not delay a small one behind it.

::

    refusal ─► append ─► waits ─► take: a slice of each call in turn, as far as the batch has room ─► batch
       │                   ├ the client has left                        cancelled
       │                   ├ the deadline has passed                    expired
       │                   └ waited too long in a standing queue        shed
       ├ the deadline cannot be met                                     refused
       └ too many rows wait already                                     shed

A call keeps its place in the turn until all of its rows are taken. The queue knows nothing of what a row is.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from service.batching.admission import AdmissionControl, expired, overloaded
from service.errors import RequestError
from service.telemetry.batch_stages import Trace


@dataclass(slots=True)
class DropCounts:
    """Calls that were not worked on, or not to their end.

    Attributes:
        shed: Too many rows waited.
        refused: The deadline could not be met.
        expired: The deadline passed while the call waited.
        cancelled: The client left while the call waited.
    """

    shed: int = 0
    refused: int = 0
    expired: int = 0
    cancelled: int = 0


@dataclass(slots=True, eq=False)
class QueuedCall:
    """A call that waits; a queue of calls of some kind extends it.

    Attributes:
        size: The number of its rows.
        deadline: When its client stops waiting, by the monotonic clock.
        queued_at: When it was queued, by the monotonic clock.
        trace: The trace of the call, if it is traced.
        taken: The number of its rows that were taken.
    """

    size: int
    deadline: float
    queued_at: float
    trace: Trace | None
    taken: int = field(default=0, init=False)

    def is_done(self) -> bool:
        """Whether the call has its outcome already, since one of its slices failed."""
        raise NotImplementedError

    def is_cancelled(self) -> bool:
        """Whether the client waits no longer."""
        raise NotImplementedError

    def fail(self, error: RequestError) -> None:
        """Answer the call with an error; must not raise."""
        raise NotImplementedError


Call = TypeVar("Call", bound=QueuedCall)


class FairQueue(Generic[Call]):
    """Calls that wait for the same workers.

    Attributes:
        admission: Decides which calls are admitted.
        rows: Rows that wait.
    """

    def __init__(
        self,
        admission: AdmissionControl,
        drops: DropCounts,
        *,
        batch_rows: int,
        slice_rows: int,
        sheds_late: bool = False,
    ) -> None:
        """Make an empty queue.

        Args:
            admission: Decides which calls are admitted.
            drops: Where dropped calls are counted; queues may share it.
            batch_rows: Rows of a batch.
            slice_rows: Maximum number of rows of one call in a batch.
            sheds_late: Whether calls are shed that have waited for longer than the bound in a standing queue: they came
                with a burst or before a pause, and the calls behind them can still be answered in time.
        """
        self.admission: Final = admission
        self.rows = 0
        self._drops: Final = drops
        self._batch_rows: Final = batch_rows
        self._slice_rows: Final = slice_rows
        self._sheds_late: Final = sheds_late
        self._calls: Final[deque[Call]] = deque()

    def __len__(self) -> int:
        """The number of calls that wait."""
        return len(self._calls)

    @property
    def ahead(self) -> int:
        """Rows that are taken before the first row of a new call."""
        return min(self.rows, len(self._calls) * self._slice_rows)

    def surely_admits(self, deadline: float, now: float) -> bool:
        """Whether a call that fits into one slice is surely admitted: a quick test for the usual case."""
        return self.rows < self.admission.max_rows and deadline >= now + self.admission.ample_time_s

    def refusal(self, size: int, left_s: float, *, busy: bool) -> RequestError | None:
        """The error of a call that is not admitted, which is counted; None if it is admitted.

        Args:
            size: The number of its rows.
            left_s: Seconds until its deadline.
            busy: Whether all workers are busy.
        """
        ahead = self.ahead
        if ahead >= self.admission.max_rows:
            return overloaded(self.shed(size))
        rounds = math.ceil(size / self._slice_rows)
        error = self.admission.deadline_error(left_s, ahead, rounds, busy=busy)
        self._drops.refused += error is not None
        return error

    def shed(self, size: int = 1) -> float:
        """Count a call of this many rows as shed; returns the seconds after which it should come back."""
        self._drops.shed += 1
        return self.admission.retry_after_s(size)

    def append(self, call: Call) -> None:
        """Queue a call that was admitted."""
        self._calls.append(call)
        self.rows += call.size

    def take(self, room: int, now: float) -> list[tuple[Call, int, int]]:
        """Form a batch.

        Args:
            room: Maximum number of rows.
            now: The time by the monotonic clock.

        Returns:
            Slices: a call, its first row in the batch, and the row behind the last one. Calls that need no more work
            are dropped on the way.
        """
        batch, unfinished, calls = [], [], self._calls
        while calls and room:
            call = calls.popleft()
            start, size = call.taken, call.size
            if call.is_done() or self._dropped(call, now):
                self.rows -= size - start
                continue
            call.taken = stop = min(size, start + min(self._slice_rows, room))
            self.rows -= stop - start
            room -= stop - start
            batch.append((call, start, stop))
            if stop < size:
                unfinished.append(call)
        calls.extend(unfinished)
        return batch

    def _dropped(self, call: Call, now: float) -> bool:
        if call.is_cancelled():
            self._drops.cancelled += 1
        elif now > call.deadline:
            self._drops.expired += 1
            call.fail(expired())
        elif self._sheds_late and self._is_late(call, now):
            call.fail(overloaded(self.shed(call.size)))
        else:
            return False
        return True

    def _is_late(self, call: Call, now: float) -> bool:
        late = self.admission.standing and now > call.queued_at + self.admission.max_wait_s
        return late and not call.taken and self.rows > self._batch_rows
