"""How long calls wait in grpcio's own queue, measured by probe calls.

grpc.aio takes one call at a time from a queue that it does not show, and past capacity all waiting happens there. So a
probe call is sent through it regularly, over a socket that only this user can reach.
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

INTERVAL_S: Final = 0.02
"""Seconds between probes while there are calls. A probe costs as much as a call, so about a hundredth of a core."""
PROBE: Final = "/grpc.health.v1.Health/Check"
MAX_SHED_SHARE: Final = 0.9
"""Largest share of calls that is shed: shedding costs grpcio half of a score, so shedding all would answer nothing."""


class QueueProbe:
    """Measures while a server runs."""

    def __init__(self, max_wait_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """``max_wait_s``: how long calls may wait; beyond it a growing share of them is shed."""
        self._max_wait_s: Final = max_wait_s
        self._clock: Final = clock
        self._shed_debt = 0.0
        self._folder: Path | None = None
        self._address = ""
        self._last_s = 0.0
        self._probed_at: float | None = None
        self._had_calls = False
        self._task: asyncio.Task[None] | None = None

    def seconds(self) -> float:
        """The wait of a call that arrives now: what the last probe took, or has been waiting already."""
        self._had_calls = True
        return self._last_s if self._probed_at is None else max(self._last_s, self._clock() - self._probed_at)

    def sheds(self) -> bool:
        """Whether to shed the call that arrives now: no call at the bound, nearly all at twice the bound."""
        self._shed_debt += min(MAX_SHED_SHARE, self.seconds() / self._max_wait_s - 1)
        shed = self._shed_debt >= 1
        self._shed_debt = max(0.0, self._shed_debt - shed)
        return shed

    def address(self) -> str:
        """The address of the probe, where the server must listen as well."""
        self._folder = Path(tempfile.mkdtemp(prefix="tidemark-"))  # of this user alone
        self._address = f"unix:{self._folder / 'probe'}"
        return self._address

    def start(self) -> None:
        """Start probing, on the running event loop. The server must be listening."""
        self._task = asyncio.get_running_loop().create_task(self._measure())

    async def stop(self) -> None:
        """Stop probing."""
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
                await asyncio.sleep(0 if self._beyond else INTERVAL_S)
                await self._look(lambda: probe(b""))

    @property
    def _beyond(self) -> bool:
        return self._last_s > self._max_wait_s

    async def _look(self, probe: Callable[[], Awaitable[object]]) -> None:
        """Measure once, if there were calls since the last probe, or calls are shed: the cause may be over."""
        if not (self._had_calls or self._beyond):
            self._last_s = 0.0
            return
        self._had_calls, self._probed_at = False, self._clock()
        try:
            await probe()
            self._last_s = self._clock() - self._probed_at
        except grpc.aio.AioRpcError:  # the server stops
            self._last_s = 0.0
        finally:
            self._probed_at = None
