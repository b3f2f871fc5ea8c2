"""Circuit breaker: whether Redis is worth asking. No I/O and no tasks: callers report what happened.

::

    closed ──── a call failed ────► open: every call is refused at once
       ▲                              │ ▲
       └── the probe was answered ────┘ └─ the probe was not answered: the next one soon, never two at once

One failure is enough to open it, because a mistake costs little: the first probe goes out at once, and a Redis that was
only slow for a moment is asked again within a millisecond. If Redis keeps failing although probes are answered, the
first probe is delayed by a back-off that doubles each time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final

PROBE_EVERY_S: Final = 0.1
"""Between an unanswered probe and the next: the longest delay of a recovery, besides the probe itself."""
STEADY_S: Final = 5.0
"""A failure within this time after the breaker closed makes the back-off longer."""
MIN_BACKOFF_S: Final = 0.05
MAX_BACKOFF_S: Final = 0.5


class CircuitBreaker:
    """Open while Redis does not answer.

    Attributes, which may be read at any time:
        open: Whether calls are refused.
        times_opened: How often it has opened.
        reason: Why it opened last, or why the last probe failed.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.open = False
        self.times_opened = 0
        self.reason = ""
        self._probing = False
        self._backoff_s = 0.0
        self._closed_at = -math.inf
        self._probe_at = math.inf

    def record_failure(self, generation: int, reason: str) -> bool:
        """Record that a call failed.

        Args:
            generation: ``times_opened`` when the call began. A call that began before the breaker last opened is
                ignored.
            reason: Why it failed.

        Returns:
            Whether this opened the breaker.
        """
        if self.open or generation != self.times_opened:
            return False
        now = self._clock()
        steady = now - self._closed_at >= STEADY_S
        self._backoff_s = 0.0 if steady else min(max(2 * self._backoff_s, MIN_BACKOFF_S), MAX_BACKOFF_S)
        self.open, self.reason, self._probe_at = True, reason, now + self._backoff_s
        self.times_opened += 1
        return True

    def seconds_until_probe(self) -> float | None:
        """Seconds until the next probe is due; None while the breaker is closed or a probe is under way."""
        if not self.open or self._probing:
            return None
        return max(0.0, self._probe_at - self._clock())

    def begin_probe(self) -> bool:
        """Begin a probe if one is due, and return whether it was."""
        if self.seconds_until_probe() != 0.0:
            return False
        self._probing = True
        return True

    def end_probe(self, *, answered: bool, reason: str = "") -> None:
        """End the probe: close the breaker, or schedule the next probe."""
        if not self._probing:
            return
        self._probing = False
        now = self._clock()
        if answered:
            self.open, self._closed_at = False, now
        else:
            self.reason, self._probe_at = reason, now + PROBE_EVERY_S
