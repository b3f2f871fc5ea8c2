"""Whether Redis is worth asking. No I/O, no tasks: who asks tells what came of it.

::

    closed ──── a call failed ────► open: every call is refused at once
       ▲                              │ ▲
       └──── the probe was answered ──┘ └─ the probe was not: the next one in a moment, never two at once

One failure is enough, because being wrong costs so little: the first probe goes out at once, and a Redis that was only
slow for a moment is asked again within a millisecond. One that keeps failing though probes are answered gets a rest
before each first probe, which doubles.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final

PROBE_EVERY_S: Final = 0.1
"""Between an unanswered probe and the next: what recovery takes at most, beside the probe itself."""
STEADY_S: Final = 5.0
"""Who fails again within this time of being back gets a rest."""
FIRST_REST_S: Final = 0.05
LONGEST_REST_S: Final = 0.5


class Breaker:
    """Open while Redis is away. ``open``, ``opened`` (how often it has been) and ``why`` may be read at any time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.open = False
        self.opened = 0
        self.why = ""
        self._probing = False
        self._rest_s = 0.0
        self._closed_at = -math.inf
        self._probe_at = math.inf

    def failed(self, began: int, why: str) -> bool:
        """A call failed that began when ``opened`` was ``began``: one from before it was last open says nothing.

        Returns whether that opened it.
        """
        if self.open or began != self.opened:
            return False
        now = self._clock()
        steady = now - self._closed_at >= STEADY_S
        self._rest_s = 0.0 if steady else min(max(2 * self._rest_s, FIRST_REST_S), LONGEST_REST_S)
        self.open, self.why, self._probe_at = True, why, now + self._rest_s
        self.opened += 1
        return True

    def until_probe(self) -> float | None:
        """Seconds until the next probe is due; None while it is closed, or one is under way."""
        if not self.open or self._probing:
            return None
        return max(0.0, self._probe_at - self._clock())

    def probe(self) -> bool:
        """Begin a probe, if one is due."""
        if self.until_probe() != 0.0:
            return False
        self._probing = True
        return True

    def probed(self, *, answered: bool, why: str = "") -> None:
        """The probe is over: closes it, or puts the next one off."""
        if not self._probing:
            return
        self._probing = False
        now = self._clock()
        if answered:
            self.open, self._closed_at = False, now
        else:
            self.why, self._probe_at = why, now + PROBE_EVERY_S
