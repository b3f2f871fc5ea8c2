"""How long work waits, and what follows for work that comes: a queue bounded by time. Times in, decisions out; no I/O.

::

    batches done ──► time of a batch ──► time until new work is begun ──┬─► beyond the bound: shed until later
                                                                        └─► and done ──► beyond its deadline: refused

The bound has two sizes, as controlled delay has (Maurer, "Fail at Scale", ACM Queue 2015): a burst may fill the queue
to the whole of it, but a queue that has not been empty for a while is no burst, and is held at a fifth.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final

from service.errors import Reason, RequestError

FIRST_S: Final = 0.002
"""What a batch is taken to take before there was one."""
WEIGHT: Final = 0.2
"""Of the newest batch in the average: it follows within about five."""
OUTLIER: Final = 2.0
"""A batch counts as no longer than so many times the average, or than the one before: a pause comes alone."""
FORGET: Final = 1.01
"""How the least time grows with each batch, so that it follows too."""
FRESH_S: Final = 1.0
"""So long the least time is believed while nothing is done: then a call is let through to find out."""
STANDING: Final = 0.2
"""Of the bound, once the queue has been standing."""
INTERVAL_S: Final = 0.1
"""After so long with a queue that was never empty it is standing; until nobody was shed for as long, or all is done."""
RETRY_SHARE: Final = 0.5
"""Of the pace that those who are sent away may come back at: the rest is for those who come first."""
MOST_RETRY_S: Final = 5.0
SPREAD: Final = tuple(0.75 + (at * 7 % 16) / 30 for at in range(16))
"""Jitter of those who come back: a quarter earlier to a quarter later, neighbours far apart, and few different ones."""


class AdmissionControl:
    """The pace of one queue, and its bound."""

    def __init__(
        self,
        most_wait_s: float = math.inf,
        *,
        rows: int = 1,
        workers: int = 1,
        standing: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``rows`` of work fit into a batch, ``workers`` batches are under way at once.

        ``standing``: the share of ``most_wait_s`` that is the bound of a standing queue; 1 for work of which some
        always waits, as callers send the next as soon as they have an answer.
        """
        self.most_wait_s: Final = most_wait_s
        self._rows: Final = rows
        self._a_time: Final = rows * workers
        self._standing_wait_s: Final = most_wait_s * standing
        self._clock: Final = clock
        self.batch_s = FIRST_S
        """Average time of a batch."""
        self._before_s = 0.0
        self._least_s = math.inf
        self._learnt = -math.inf
        self._waits_since = math.inf
        self._back = -math.inf
        self._shed = self._sent_away = 0
        self._shed_at = -math.inf
        self._retry_s = min(most_wait_s, MOST_RETRY_S)
        self.standing = False
        """Whether work has been waiting for longer than a burst would explain."""
        self.most_rows: float = math.inf
        """Rows that may wait; with more, new work is shed."""
        self.surely_s = math.inf
        """So much time is enough for what waits once, whatever else waits: a quick look that saves a closer one."""
        self._bound()

    def took(self, seconds: float, waiting: int) -> None:
        """A batch took so long; so many rows were left waiting when it was formed."""
        self._learnt = now = self._clock()
        self.batch_s += WEIGHT * (min(seconds, max(OUTLIER * self.batch_s, self._before_s)) - self.batch_s)
        self._before_s = seconds
        self._least_s = min(seconds, FORGET * self._least_s)
        if self._sent_away:
            self._move_back(now)
        if waiting:
            self._waits_since = min(self._waits_since, now)
        elif not self.standing or now - self._shed_at > INTERVAL_S:
            self._waits_since = math.inf
        self.standing = now - self._waits_since > INTERVAL_S
        self._bound()

    def rest(self) -> None:
        """There is no work: whatever comes next is a burst, and a bound that lets the workers run dry is too tight."""
        self._waits_since = math.inf
        if self.standing:
            self.standing = False
            self._bound()

    def _move_back(self, now: float) -> None:
        """Those sent away since the last batch come back in turn, behind those before them, at a share of the pace."""
        after_s = self._sent_away * self.batch_s / self._a_time / RETRY_SHARE
        self._sent_away, self._shed_at = 0, now
        self._back = min(max(self._back, now) + after_s, now + MOST_RETRY_S)
        self._retry_s = float(f"{min(self.most_wait_s, MOST_RETRY_S) + self._back - now:.2g}")

    def _bound(self) -> None:
        wait_s = self._standing_wait_s if self.standing else self.most_wait_s
        # A batch may always wait, beside those that workers take at once: with less they would run dry.
        self.most_rows = max(self._rows + self._a_time, (wait_s / self.batch_s - 0.5) * self._a_time)
        self.surely_s = self.most_wait_s + 3 * self.batch_s

    def wait_s(self, ahead: int) -> float:
        """Until work is begun with so many rows ahead, while a batch is under way."""
        return self.batch_s * (0.5 + ahead / self._a_time)

    def too_short(self, left_s: float, ahead: int, rounds: int, *, busy: bool) -> RequestError | None:
        """The refusal of work that cannot be done in the time left, and has to wait its turn ``rounds`` times.

        On an idle server only what is less than the fastest of the latest batches took cannot be done.
        """
        if busy:
            needed_s = self.wait_s(ahead) + self.batch_s + (rounds - 1) * self.batch_s * (1 + ahead / self._a_time)
        else:
            needed_s = self._least_s if self._clock() < self._learnt + FRESH_S else 0.0
        if left_s >= needed_s:
            return None
        message = f"the deadline leaves {left_s * 1e3:.3g} ms and about {needed_s * 1e3:.2g} ms are needed: allow more"
        return RequestError(Reason.DEADLINE_TOO_SHORT, message)

    def retry_s(self, rows: int = 1) -> float:
        """When work that is shed now should come back."""
        self._sent_away += rows
        self._shed += 1
        return self._retry_s * SPREAD[self._shed & 15]


def overloaded(retry_s: float) -> RequestError:
    """The refusal of work that is shed."""
    message = "the server has more to do than it can: come back after the time in RetryInfo"
    return RequestError(Reason.OVERLOADED, message, retry_s=retry_s)


def expired() -> RequestError:
    """The refusal of work whose deadline went by while it waited."""
    return RequestError(Reason.DEADLINE_TOO_SHORT, "the deadline went by while the call waited: allow more")
