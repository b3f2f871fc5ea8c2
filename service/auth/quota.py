"""A caller's quota: a token bucket that fills by a rate, and from which each call takes its units.

A unit is a customer scored, read or changed, or an event recorded: a batch of 256 ids takes 256.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from service.errors import QuotaExceededError

MAX_WAITING_STREAMS: Final = 8
"""Streams of one caller that may wait for its quota at a time; each keeps a message in memory."""
QUOTA_USED_UP: Final = "the caller's quota of customers and events per second is used up: send less at a time, or later"


class Bucket:
    """A token bucket: holds at most ``burst`` units, and gains ``rate`` per second.

    A call that is larger than the bucket passes when the bucket is full, and leaves it in debt. So a large batch passes
    in the end, and over any time no more is used than rate · seconds + the larger of burst and one call.
    """

    def __init__(self, caller: str, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.caller: Final = caller
        self._rate: Final = rate
        self._burst: Final = burst
        self._clock: Final = clock
        self._level = burst
        self._updated_at = clock()
        self._waiting = 0

    def take(self, units: int) -> float:
        """Take units and return 0.0; or take none, and return the seconds after which they could be taken."""
        if wait_s := self._missing_s(units):
            return wait_s
        self._level -= units
        return 0.0

    def _missing_s(self, units: int) -> float:
        now = self._clock()
        self._level = min(self._burst, self._level + (now - self._updated_at) * self._rate)
        self._updated_at = now
        return max(0.0, min(units, self._burst) - self._level) / self._rate

    def charge(self, units: int) -> None:
        """Take units at once; QuotaExceededError if the bucket does not hold them."""
        if wait_s := self.take(units):
            raise self._exceeded(wait_s)

    async def wait(self, units: int) -> None:
        """Take units as soon as the bucket holds them; QuotaExceededError if too many streams wait already."""
        if self._waiting >= MAX_WAITING_STREAMS:
            raise self._exceeded(self._missing_s(units))
        self._waiting += 1
        try:
            wait_s = self.take(units)
            while wait_s > 0:
                await asyncio.sleep(wait_s)
                wait_s = self.take(units)
        finally:
            self._waiting -= 1

    def _exceeded(self, wait_s: float) -> QuotaExceededError:
        return QuotaExceededError(self.caller, QUOTA_USED_UP, wait_s)
