"""Admission control for a queue that is bounded by time. Times in, decisions out; no I/O.

::

    batches done ─► time of a batch ─► time until new work starts ─┬─► above the bound: shed, with a time to retry
                                                                   └─► and ends: after its deadline: refused

The bound has two sizes, as in CoDel-style controlled delay (Maurer, "Fail at Scale", ACM Queue 2015): a burst may fill
the queue to the whole bound, but a queue that has not been empty for a while is no burst, and is held at a fifth of it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final

from service.errors import Reason, RequestError

FIRST_BATCH_S: Final = 0.002
"""The assumed time of a batch before any was measured."""
WEIGHT: Final = 0.2
"""Weight of the newest batch in the moving average, which follows a change within about five batches."""
OUTLIER_FACTOR: Final = 2.0
"""A batch counts as at most this multiple of the average, or as the one before: a single pause changes little."""
FASTEST_GROWTH: Final = 1.01
"""The fastest time grows by this factor with each batch, so that it follows when batches become slower."""
FRESH_S: Final = 1.0
"""The fastest time expires after this many idle seconds: the next call is admitted, and measures it again."""
STANDING_SHARE: Final = 0.2
"""The share of the bound at which a standing queue is held."""
INTERVAL_S: Final = 0.1
"""A queue that was not empty for this long is standing, until nothing was shed for this long or all work is done."""
RETRY_SHARE: Final = 0.5
"""Share of the capacity that is offered to retries; the rest is for first attempts."""
MAX_RETRY_S: Final = 5.0
RETRY_JITTER: Final = tuple(0.75 + (at * 7 % 16) / 30 for at in range(16))
"""Factors from 0.75 to 1.25, interleaved. A fixed set, so that encoded replies can be cached."""


class BatchTimes:
    """Estimates how long a batch takes: on average, and at best.

    Attributes:
        average_s: The moving average.
    """

    def __init__(self) -> None:
        self.average_s = FIRST_BATCH_S
        self._previous_s = 0.0
        self._fastest_s = math.inf
        self._measured_at = -math.inf

    def add(self, seconds: float, now: float) -> None:
        """Add a batch that took this many seconds."""
        limit = max(OUTLIER_FACTOR * self.average_s, self._previous_s)
        self.average_s += WEIGHT * (min(seconds, limit) - self.average_s)
        self._previous_s = seconds
        self._fastest_s = min(seconds, FASTEST_GROWTH * self._fastest_s)
        self._measured_at = now

    def fastest_s(self, now: float) -> float:
        """The time of the fastest of the latest batches; 0 if that was measured too long ago."""
        return self._fastest_s if now < self._measured_at + FRESH_S else 0.0


class StandingQueue:
    """Decides whether a queue is standing: rows wait for longer than a burst explains."""

    def __init__(self) -> None:
        self.standing = False
        self._waiting_since = math.inf

    def batch_done(self, rows_waiting: int, last_shed: float, now: float) -> None:
        """A batch was done, for which these rows were left waiting; calls were shed at ``last_shed``."""
        if rows_waiting:
            self._waiting_since = min(self._waiting_since, now)
        elif not self.standing or now - last_shed > INTERVAL_S:
            self._waiting_since = math.inf
        self.standing = now - self._waiting_since > INTERVAL_S

    def emptied(self) -> None:
        """All work is done."""
        self._waiting_since = math.inf
        self.standing = False


class RetrySchedule:
    """Decides when calls that are shed should come back: one after another, at a share of the capacity.

    Attributes:
        last_shed: When a batch was done after calls had been shed, most recently.
    """

    def __init__(self, min_retry_s: float) -> None:
        self.last_shed = -math.inf
        self._min_retry_s: Final = min(min_retry_s, MAX_RETRY_S)
        self._retry_s = self._min_retry_s
        self._shed_rows = self._shed_calls = 0
        self._last_return = -math.inf

    def after_s(self, rows: int) -> float:
        """Seconds after which a call of this many rows, which is shed now, should come back."""
        self._shed_rows += rows
        self._shed_calls += 1
        return self._retry_s * RETRY_JITTER[self._shed_calls % len(RETRY_JITTER)]

    def batch_done(self, row_s: float, now: float) -> None:
        """Queue the calls that were shed since the last batch behind those shed before; a row takes ``row_s``."""
        if not self._shed_rows:
            return
        after_s = self._shed_rows * row_s / RETRY_SHARE
        self._shed_rows, self.last_shed = 0, now
        self._last_return = min(max(self._last_return, now) + after_s, now + MAX_RETRY_S)
        # Two digits: there are few different times, so that a cache of encoded replies holds them.
        self._retry_s = float(f"{self._min_retry_s + self._last_return - now:.2g}")


class AdmissionControl:
    """Decides which calls a queue admits.

    Attributes:
        max_wait_s: The bound: how long a row may wait.
        max_rows: Rows that may wait; a call that comes when there are more is shed.
        ample_time_s: A deadline at least this far away can always be met, so the exact check may be skipped.
    """

    def __init__(
        self,
        max_wait_s: float = math.inf,
        *,
        batch_rows: int = 1,
        workers: int = 1,
        standing_share: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make the admission control of a queue.

        Args:
            max_wait_s: How long a row may wait.
            batch_rows: Rows of a batch.
            workers: Batches that run at the same time.
            standing_share: The share of the bound at which a standing queue is held. It is 1 for a queue that is never
                empty, because its callers send the next call as soon as they have an answer.
            clock: Seconds of a clock that never goes back.
        """
        self.max_wait_s: Final = max_wait_s
        self.max_rows: float = math.inf
        self.ample_time_s = math.inf
        self._batch_rows: Final = batch_rows
        self._rows_at_once: Final = batch_rows * workers
        self._standing_wait_s: Final = max_wait_s * standing_share
        self._clock: Final = clock
        self._times: Final = BatchTimes()
        self._queue: Final = StandingQueue()
        self._retries: Final = RetrySchedule(max_wait_s)
        self._set_bound()

    @property
    def standing(self) -> bool:
        """Whether rows wait for longer than a burst explains."""
        return self._queue.standing

    @property
    def batch_s(self) -> float:
        """The average time of a batch."""
        return self._times.average_s

    def batch_done(self, seconds: float, rows_waiting: int) -> None:
        """A batch took this many seconds; these rows were left waiting when it was formed."""
        now = self._clock()
        self._times.add(seconds, now)
        self._retries.batch_done(self.batch_s / self._rows_at_once, now)
        self._queue.batch_done(rows_waiting, self._retries.last_shed, now)
        self._set_bound()

    def queue_emptied(self) -> None:
        """All work is done: what comes next is a burst, and a tight bound would let the workers run dry."""
        was_standing = self.standing
        self._queue.emptied()
        if was_standing:
            self._set_bound()

    def _set_bound(self) -> None:
        wait_s = self._standing_wait_s if self.standing else self.max_wait_s
        # One batch may always wait beside those that the workers take at once, or they would run dry.
        self.max_rows = max(self._batch_rows + self._rows_at_once, (wait_s / self.batch_s - 0.5) * self._rows_at_once)
        self.ample_time_s = self.max_wait_s + 3 * self.batch_s

    def wait_s(self, rows_ahead: int) -> float:
        """Seconds until work starts behind this many rows, while a batch is running."""
        return self.batch_s * (0.5 + rows_ahead / self._rows_at_once)

    def deadline_error(self, left_s: float, rows_ahead: int, rounds: int, *, busy: bool) -> RequestError | None:
        """The error of a call whose deadline is too short; None if it can be met.

        Args:
            left_s: Seconds until the deadline.
            rows_ahead: Rows that wait before the call.
            rounds: How often the call has to wait for its turn.
            busy: Whether the call has to wait at all. If not, it is refused only if not even the fastest of the latest
                batches would have met the deadline.
        """
        if busy:
            later_rounds_s = (rounds - 1) * self.batch_s * (1 + rows_ahead / self._rows_at_once)
            needed_s = self.wait_s(rows_ahead) + self.batch_s + later_rounds_s
        else:
            needed_s = self._times.fastest_s(self._clock())
        if left_s >= needed_s:
            return None
        message = f"the deadline leaves {left_s * 1e3:.3g} ms and about {needed_s * 1e3:.2g} ms are needed: allow more"
        return RequestError(Reason.DEADLINE_TOO_SHORT, message)

    def retry_after_s(self, rows: int = 1) -> float:
        """Seconds after which a call of this many rows, which is shed now, should come back."""
        return self._retries.after_s(rows)


def overloaded(retry_s: float) -> RequestError:
    """The error of a call that is shed."""
    message = "the server has more to do than it can: come back after the time in RetryInfo"
    return RequestError(Reason.OVERLOADED, message, retry_s=retry_s)


def expired() -> RequestError:
    """The error of a call whose deadline passed while it waited."""
    return RequestError(Reason.DEADLINE_TOO_SHORT, "the deadline went by while the call waited: allow more")
