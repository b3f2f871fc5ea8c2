"""How long calls wait inside grpcio before anybody hears of them, measured by calls of our own.

grpc.aio takes one call at a time from a queue that cannot be seen from here, and past capacity all waiting is done
there. So a call goes through it every now and then, over a socket that only this user can reach.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import grpc.aio

EVERY_S: Final = 0.02
"""While calls come; an own call costs as much as any other, so about a hundredth of a core."""
PROBE: Final = "/grpc.health.v1.Health/Check"
MOST_SHED: Final = 0.9
"""Of the calls: to shed costs grpcio half of what a score does, so to shed all would leave nothing done."""


class Lag:
    """Measures while a server runs."""

    def __init__(self, most_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """``most_s``: how long a call may wait; beyond that more and more of them are shed."""
        self._most_s: Final = most_s
        self._clock: Final = clock
        self._owed = 0.0
        self._folder: Path | None = None
        self._address = ""
        self._last_s = 0.0
        self._asked: float | None = None
        self._called = False
        self._task: asyncio.Task[None] | None = None

    def seconds(self) -> float:
        """For a call that comes now: at least as long as the newest own call took, or waits already."""
        self._called = True
        return self._last_s if self._asked is None else max(self._last_s, self._clock() - self._asked)

    def sheds(self) -> bool:
        """Whether the call that comes now is to be shed: none at the bound, nearly all at twice the bound."""
        self._owed += min(MOST_SHED, self.seconds() / self._most_s - 1)
        shed = self._owed >= 1
        self._owed = max(0.0, self._owed - shed)
        return shed

    def address(self) -> str:
        """Where the server has to listen too."""
        self._folder = Path(tempfile.mkdtemp(prefix="tidemark-"))  # of this user alone
        self._address = f"unix:{self._folder / 'probe'}"
        return self._address

    def start(self) -> None:
        """Begin, on the running loop; the server listens."""
        self._task = asyncio.get_running_loop().create_task(self._measure())

    async def stop(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    async def _measure(self) -> None:
        async with grpc.aio.insecure_channel(self._address) as channel:
            probe: Any = channel.unary_unary(PROBE)
            while True:
                await asyncio.sleep(0 if self._beyond else EVERY_S)
                await self._look(lambda: probe(b""))

    @property
    def _beyond(self) -> bool:
        return self._last_s > self._most_s

    async def _look(self, probe: Callable[[], Awaitable[object]]) -> None:
        """Measure once, where calls came since the last look, or are shed: when a pause is known it may be over."""
        if not (self._called or self._beyond):
            self._last_s = 0.0
            return
        self._called, self._asked = False, self._clock()
        try:
            await probe()
            self._last_s = self._clock() - self._asked
        except grpc.aio.AioRpcError:  # the server stops
            self._last_s = 0.0
        finally:
            self._asked = None
