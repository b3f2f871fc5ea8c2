"""Worker processes that share one port: started, supervised, replaced one by one, and stopped together.

Each worker has its own listener on the port (SO_REUSEPORT), among which the kernel spreads connections, and is a
complete server with its own event loop and its own copy of the model. The listeners belong to this process: connections
that wait for a worker that is replaced, or dies, are accepted by its successor.

::

    SIGHUP ──► for each worker: start another on the same listener ─► ready ─► the old one stops: health, GOAWAY, grace
                                        └ cannot start: the old workers stay

A worker that dies is replaced. If its successor cannot start, another attempt follows after a pause that doubles each
time, while the other workers serve. Only at first all of them end if one cannot start. If this process is killed, its
workers see their pipe close and stop.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Final

from feature_store.errors import InputError
from service.settings import Settings
from service.telemetry.prometheus import exposed

logger: Final = logging.getLogger("tidemark")

Work = Callable[[Settings, socket.socket, Connection, Connection], None]
"""Serves on a listener until a signal, or until the first pipe is closed; sends READY or its problem through that pipe.

The second pipe asks it for its metrics.
"""

READY: Final = "ready"
MIN_LIFE_S: Final = 5.0
"""A worker that ends sooner counts as one that could not start: its successor may end as soon."""
MIN_PAUSE_S: Final = 0.5
MAX_PAUSE_S: Final = 30.0
"""Pauses before the next attempt to start a worker that could not start."""
START_S: Final = 120.0
"""Seconds within which a new worker must be ready."""
CHECK_S: Final = 0.2
"""Seconds between looks at signals and workers."""


@dataclass
class _Worker:
    """A worker process.

    Attributes:
        since: When it was started and, once it is ready, when it became ready.
        ready: Whether it takes calls.
        failures: Workers in its place before it that could not start, one after the other.
        retry_at: When to start another in its place; None if it is not known to have ended.
    """

    process: SpawnProcess
    pipe: Connection
    asking: Connection
    since: float
    ready: bool = False
    failures: int = 0
    retry_at: float | None = None


def supervise(settings: Settings, work: Work) -> None:
    """Run ``settings.workers`` processes of ``work`` until SIGINT or SIGTERM; SIGHUP replaces them one by one.

    InputError or OSError where they cannot start.
    """
    with ExitStack() as stack:
        listeners = [stack.enter_context(listener) for listener in _listeners(settings)]
        supervisor = _Supervisor(settings, work, listeners)
        stack.enter_context(exposed(settings, supervisor.asking))
        try:
            supervisor.run()
        finally:
            for listener in listeners:  # from now on only workers that still take calls accept connections
                listener.close()
            supervisor.stop()


class _Supervisor:
    """The workers, each on its own listener."""

    def __init__(self, settings: Settings, work: Work, listeners: list[socket.socket]) -> None:
        self._settings = settings
        self._work = work
        self._listeners = listeners
        self._workers: list[_Worker] = []
        self._extra: _Worker | None = None
        """A worker that starts or finishes while another one has its place."""
        self._signals: set[int] = set()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, _frame: self._signals.add(number))

    def _stopping(self) -> bool:
        return bool(self._signals - {signal.SIGHUP})

    def asking(self) -> dict[int, Connection]:
        """The pipes that ask for metrics, by the number of the worker."""
        # These are never closed: a thread may wait for one while its worker is replaced.
        return {at: worker.asking for at, worker in enumerate(self._workers)}

    def run(self) -> None:
        """Start the workers, and supervise them until a signal to stop."""
        settings, port = self._settings, self._listeners[0].getsockname()[1]
        self._workers += [self._start(at) for at in range(settings.workers)]
        for worker in self._workers:
            if problem := self._problem(worker, START_S):
                raise InputError(problem)
        if not self._stopping():
            logger.info("serving on %s:%d with %d workers", settings.host_of_address, port, settings.workers)
        while not self._stopping():
            wait([worker.process.sentinel for worker in self._workers if worker.retry_at is None], CHECK_S)
            self._replace_dead()
            if signal.SIGHUP in self._signals and not self._stopping():
                self._signals.discard(signal.SIGHUP)
                self._restart()

    def stop(self) -> None:
        """Stop all workers, and wait until they have ended."""
        end = time.monotonic() + self._settings.drain_s + self._settings.grace_s + MIN_LIFE_S
        workers = [*self._workers, *([self._extra] if self._extra else [])]
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.process.join(max(0.0, end - time.monotonic()))
            worker.process.kill()
            worker.process.join()

    def _start(self, at: int) -> _Worker:
        """Start a worker on the listener of that number."""
        context = multiprocessing.get_context("spawn")  # a fork would share threads' locks
        (ours, theirs), (asking, asked) = context.Pipe(), context.Pipe()
        process = context.Process(target=self._work, args=(self._settings, self._listeners[at], theirs, asked))
        process.start()
        theirs.close()
        asked.close()
        return _Worker(process, ours, asking, time.monotonic())

    def _problem(self, worker: _Worker, limit_s: float) -> str:
        """Wait for a worker to start. Why it cannot; empty if it is ready, or the supervisor stops."""
        answer = ""
        while not self._stopping() and not answer:
            if time.monotonic() > worker.since + limit_s:
                answer = f"it was not ready after {limit_s:g} s"
            if worker.pipe.poll(CHECK_S):
                try:
                    answer = worker.pipe.recv()
                except EOFError:
                    worker.process.join()
                    answer = f"a worker ended at once, with code {worker.process.exitcode}"
        worker.since, worker.ready = time.monotonic(), answer == READY
        return "" if worker.ready else answer

    def _replace_dead(self) -> None:
        """Start workers in the places of those that have ended or cannot start. Never waits for one."""
        for at, worker in enumerate(self._workers):
            if self._stopping():
                return
            now = time.monotonic()
            if worker.retry_at is not None:
                if now >= worker.retry_at:
                    self._workers[at] = self._start(at)
                    self._workers[at].failures = worker.failures
            elif not worker.process.is_alive():
                lasted = worker.ready and now > worker.since + MIN_LIFE_S
                self._retry(worker, f"a worker ended with code {worker.process.exitcode}", at_once=lasted)
            elif not worker.ready:
                self._look(worker)

    def _look(self, worker: _Worker) -> None:
        """See whether a worker that starts in the place of another is ready, or cannot start."""
        answer = ""
        try:
            if worker.pipe.poll():
                answer = worker.pipe.recv()
        except EOFError:
            return  # it is about to end
        if answer == READY:
            worker.since, worker.ready = time.monotonic(), True
            logger.info("the new worker is ready")
        elif answer or time.monotonic() > worker.since + START_S:
            worker.process.kill()
            worker.process.join()
            self._retry(worker, f"a worker cannot start: {answer or f'it was not ready after {START_S:g} s'}")

    def _retry(self, worker: _Worker, reason: str, *, at_once: bool = False) -> None:
        """Have another worker started in the place of one that has ended."""
        worker.failures = 0 if at_once else worker.failures + 1
        pause_s = 0.0 if at_once else min(MIN_PAUSE_S * 2 ** (worker.failures - 1), MAX_PAUSE_S)
        worker.retry_at = time.monotonic() + pause_s
        worker.pipe.close()
        what = "starting another" if at_once else f"starting another in {pause_s:g} s"
        logger.error("%s: %s", reason, what)

    def _restart(self) -> None:
        """Replace all workers one by one, so that each listener always has a worker that accepts connections."""
        logger.info("restarting the workers one by one")
        for at in range(len(self._workers)):
            if not self._replace(at):
                return
        logger.info("restarted: %d new workers", len(self._workers))

    def _replace(self, at: int) -> bool:
        """Replace a worker and let the old one finish; False if it was not replaced."""
        self._extra = new = self._start(at)
        problem = self._problem(new, START_S)
        if self._stopping():
            return False
        if problem:
            logger.error("a new worker cannot start, the old workers stay: %s", problem)
            self._end(new)
            return False
        old, self._workers[at] = self._workers[at], new
        self._extra = old
        if old.retry_at is None:
            old.pipe.close()
        end = time.monotonic() + self._settings.grace_s + MIN_LIFE_S
        while old.process.is_alive() and time.monotonic() < end:
            old.process.join(CHECK_S)
            if self._stopping():
                return False
            self._replace_dead()
        self._end(old)
        return True

    def _end(self, worker: _Worker) -> None:
        """End a worker that has no place among the workers, or no longer has one."""
        worker.process.kill()
        worker.process.join()
        self._extra = None


def _listeners(settings: Settings) -> list[socket.socket]:
    """A socket for each worker on one port. Nobody else may have it: sharing would take calls from another server."""
    addresses = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)
    family, _, _, _, address = min(addresses, key=lambda info: info[0] != socket.AF_INET)
    listeners: list[socket.socket] = []
    try:
        with socket.socket(family) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
            address = trial.getsockname()
        for _ in range(settings.workers):
            listeners.append(listener := socket.socket(family))
            for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):  # connections of an earlier server may linger
                listener.setsockopt(socket.SOL_SOCKET, option, 1)
            listener.bind(address)
    except OSError as error:
        raise InputError(f"cannot listen on {settings.host_of_address}:{settings.port}: {error.strerror}") from error
    return listeners
