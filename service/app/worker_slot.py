"""The place of a worker: it always has a worker that serves, or one that starts, or a time for the next attempt."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Final, Protocol

READY: Final = "ready"
"""What a worker sends once it takes calls; it sends anything else if it cannot start."""
MIN_LIFE_S: Final = 5.0
"""A worker that ends sooner counts as one that could not start: its successor may end as soon."""
MIN_PAUSE_S: Final = 0.5
MAX_PAUSE_S: Final = 30.0
"""Pauses before the next attempt to start a worker that could not start."""
START_S: Final = 120.0
"""Seconds within which a new worker must be ready."""
END_S: Final = 5.0
"""Seconds within which a killed process has ended."""

logger: Final = logging.getLogger("tidemark")


class Process(Protocol):
    """What is needed of :class:`multiprocessing.Process`."""

    @property
    def exitcode(self) -> int | None:
        """None while it runs."""

    @property
    def sentinel(self) -> int:
        """Ready to be read once it has ended."""

    def is_alive(self) -> bool:
        """Whether it runs."""

    def terminate(self) -> None:
        """Send SIGTERM."""

    def kill(self) -> None:
        """Send SIGKILL."""

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended."""


@dataclass
class Worker:
    """A worker process.

    Attributes:
        process: The process.
        pipe: It sends READY or its problem; it stops once the pipe is closed.
        asking: Asks it for its metrics.
        since: When it was started and, once it is ready, when it became ready.
        ready: Whether it takes calls.
    """

    process: Process
    pipe: Connection
    asking: Connection
    since: float
    ready: bool = False

    def look(self, now: float) -> str:
        """See whether it has become ready. Why it cannot start; empty if it is ready, or still has time."""
        if self.ready:
            return ""
        try:
            if self.pipe.poll():
                if (answer := str(self.pipe.recv())) != READY:
                    return answer
                self.since, self.ready = now, True
                return ""
        except (EOFError, OSError):
            self.process.join(END_S)
            return f"a worker ended at once, with code {self.process.exitcode}"
        return f"it was not ready after {START_S:g} s" if now > self.since + START_S else ""

    def end(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.join(END_S)


class WorkerSlot:
    """Replaces a worker that has ended; if its successor cannot start, tries again after pauses that grow."""

    def __init__(self, start: Callable[[], Worker], clock: Callable[[], float] = time.monotonic) -> None:
        """Start the first worker by ``start``."""
        self._start = start
        self._clock = clock
        self.worker = start()
        self._failures = 0
        """Workers that could not start, one after the other."""
        self._retry_at: float | None = None
        """When to start the next worker; None while there is one."""

    @property
    def is_empty(self) -> bool:
        """Whether the worker has ended, and the next one is not started yet."""
        return self._retry_at is not None

    def tick(self) -> None:
        """Look after the worker. Never waits for one to start."""
        now = self._clock()
        if self._retry_at is not None:
            if now >= self._retry_at:
                self.worker, self._retry_at = self._start(), None
            return
        worker, was_ready = self.worker, self.worker.ready
        if not worker.process.is_alive():
            lasted = worker.ready and now > worker.since + MIN_LIFE_S
            self._retry(f"a worker ended with code {worker.process.exitcode}", at_once=lasted)
        elif problem := worker.look(now):
            worker.end()
            self._retry(f"a worker cannot start: {problem}")
        elif worker.ready and not was_ready:
            logger.info("the new worker is ready")

    def put(self, worker: Worker) -> Worker:
        """Put a worker that is ready in place of the one that is there, which is returned."""
        old, self.worker = self.worker, worker
        if self._retry_at is None:
            old.pipe.close()
        self._failures, self._retry_at = 0, None
        return old

    def _retry(self, reason: str, *, at_once: bool = False) -> None:
        """Have another worker started in place of one that has ended."""
        self._failures = 0 if at_once else self._failures + 1
        pause_s = 0.0 if at_once else min(MIN_PAUSE_S * 2 ** (self._failures - 1), MAX_PAUSE_S)
        self._retry_at = self._clock() + pause_s
        self.worker.pipe.close()
        logger.error("%s: starting another%s", reason, "" if at_once else f" in {pause_s:g} s")
