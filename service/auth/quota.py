"""What a caller may have in a while: a bucket that fills by so much a second, and the methods that take from it.

The unit is a customer scored, shown or changed, or an event recorded: a batch of 256 ids takes 256.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Final

from service.api import customers as convert_customers
from service.api import events as convert_events
from service.api.methods import Handlers, Stream, Unary
from service.api.scoring import Method
from service.call_context import CallContext
from service.errors import QuotaExceededError
from service.scoring.scorer import ScoreRequest

MOST_WAITING: Final = 8
"""Streams of one caller that are held back at a time; each keeps a message in memory."""
USED_UP: Final = "the caller's quota of customers and events a second is used up: send less at a time, or later"


class Bucket:
    """Holds at most ``burst`` units, and gets ``rate`` a second.

    What is larger than the bucket is given when it is full, and owed: so a large batch passes in the end, and over any
    time no more than rate · seconds + the larger of burst and one call is given.
    """

    def __init__(self, caller: str, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.caller: Final = caller
        self._rate: Final = rate
        self._burst: Final = burst
        self._clock: Final = clock
        self._level = burst
        self._at = clock()
        self._waiting = 0

    def take(self, units: int) -> float:
        """Take so many and return 0.0; or take none, and return the seconds after which they could be had."""
        if wait_s := self._missing_s(units):
            return wait_s
        self._level -= units
        return 0.0

    def _missing_s(self, units: int) -> float:
        now = self._clock()
        self._level = min(self._burst, self._level + (now - self._at) * self._rate)
        self._at = now
        return max(0.0, min(units, self._burst) - self._level) / self._rate

    def charge(self, units: int) -> None:
        """Take so many; QuotaExceededError where that is not possible now."""
        if wait_s := self.take(units):
            raise self._exceeded(wait_s)

    async def wait(self, units: int) -> None:
        """Take so many as soon as they are there; QuotaExceededError where too many wait already."""
        if self._waiting >= MOST_WAITING:
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
        return QuotaExceededError(self.caller, USED_UP, wait_s)


def metered_scores(methods: Mapping[str, Method], bucket: Bucket) -> dict[str, Method]:
    """The same methods, which take from the bucket when a request has been read."""

    def decode(plain: Callable[[bytes], ScoreRequest], request: bytes) -> ScoreRequest:
        part = plain(request)
        bucket.charge(len(part.customer_ids))
        return part

    return {path: replace(method, decode=partial(decode, method.decode)) for path, method in methods.items()}


def metered_handlers(handlers: Handlers, bucket: Bucket) -> Handlers:
    """The same methods; a stream is not refused but held back, until its next message can be paid for."""
    unary = {path: _metered(path, handler, bucket) for path, handler in handlers.unary.items()}
    streams = {path: partial(_PacedStream, begin, bucket) for path, begin in handlers.streams.items()}
    return Handlers(unary, streams)


def _metered(path: str, handler: Unary, bucket: Bucket) -> Unary:
    if (units := UNITS.get(path.split("/")[1])) is None:
        return handler

    async def metered(request: bytes, context: CallContext) -> bytes:
        bucket.charge(units(request))
        return await handler(request, context)

    return metered


class _PacedStream:
    """A stream of events at the pace that the quota allows: its client waits, because its window stays closed."""

    def __init__(self, begin: Callable[[CallContext], Stream], bucket: Bucket, context: CallContext) -> None:
        self._stream: Final = begin(context)
        self._bucket: Final = bucket

    async def add(self, request: bytes) -> None:
        """The next request, when it can be paid for."""
        await self._bucket.wait(convert_events.count(request))
        await self._stream.add(request)

    def reply(self) -> bytes:
        """When there are no more."""
        return self._stream.reply()


UNITS: Final[Mapping[str, Callable[[bytes], int]]] = {
    convert_events.SERVICE: convert_events.count,
    convert_customers.SERVICE: lambda _: 1,
}
"""What a request takes, by service; others take nothing."""
