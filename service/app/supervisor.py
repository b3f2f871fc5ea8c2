"""Several processes on one port: started, watched, replaced one by one, and stopped together.

The kernel spreads connections over as many listeners (SO_REUSEPORT), and each worker is a whole server of its own on
one of them, with its own loop and its own copy of the model. The listeners belong to this process: a worker that is
replaced, or dies, leaves what waits to be accepted to the one that comes after it.

::

    SIGHUP ──► for each worker: start another on the same listener ─► ready ─► the old one stops: health, GOAWAY, grace
                                        └ cannot start: the old ones go on

A worker that dies is replaced; one that cannot start ends them all at the start; and should this process be killed, its
workers see the pipe close and stop.
"""

from __future__ import annotations

import logging
import math
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
"""Serves on a shared port until told to stop or the first pipe closes; says READY, or why it cannot, into that pipe.

At the second pipe it is asked for its metrics.
"""

READY: Final = "ready"
AT_LEAST_S: Final = 5.0
"""A worker that ends sooner is not replaced: the next one would end as soon."""
START_S: Final = 120.0
"""A new worker must be ready by then to take an old one's place."""
CHECK_S: Final = 0.2


@dataclass
class _Worker:
    """A process; ``since``: when it was started, and then when it was ready."""

    process: SpawnProcess
    pipe: Connection
    asking: Connection
    since: float


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
            for listener in listeners:  # from now on nobody is let in but by workers that still take calls
                listener.close()
            supervisor.stop()


class _Supervisor:
    """The workers, each on a listener of its own."""

    def __init__(self, settings: Settings, work: Work, listeners: list[socket.socket]) -> None:
        self._settings = settings
        self._work = work
        self._listeners = listeners
        self._workers: list[_Worker] = []
        self._beside: _Worker | None = None
        """Who starts or finishes while another one has its place."""
        self._told: set[int] = set()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, _frame: self._told.add(number))

    def _stopping(self) -> bool:
        return bool(self._told - {signal.SIGHUP})

    def asking(self) -> dict[int, Connection]:
        """By place, where the worker that has it is asked for its metrics."""
        # Nobody closes these: a thread may be waiting at one when its worker is replaced.
        return {at: worker.asking for at, worker in enumerate(self._workers)}

    def run(self) -> None:
        """Start the workers, and look after them until told to stop."""
        settings, port = self._settings, self._listeners[0].getsockname()[1]
        self._workers += [self._start(at) for at in range(settings.workers)]
        for worker in self._workers:
            if problem := self._problem(worker):
                raise InputError(problem)
        if not self._stopping():
            logger.info("serving on %s:%d with %d workers", settings.host_of_address, port, settings.workers)
        while not self._stopping():
            wait([worker.process.sentinel for worker in self._workers], CHECK_S)
            self._replace_dead()
            if signal.SIGHUP in self._told and not self._stopping():
                self._told.discard(signal.SIGHUP)
                self._restart()

    def stop(self) -> None:
        """Stop all workers, and wait until they have ended."""
        end = time.monotonic() + self._settings.drain_s + self._settings.grace_s + AT_LEAST_S
        workers = [*self._workers, *([self._beside] if self._beside else [])]
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.process.join(max(0.0, end - time.monotonic()))
            worker.process.kill()
            worker.process.join()

    def _start(self, at: int) -> _Worker:
        """A process on the listener of that number."""
        context = multiprocessing.get_context("spawn")  # a fork would share threads' locks
        (ours, theirs), (asking, asked) = context.Pipe(), context.Pipe()
        process = context.Process(target=self._work, args=(self._settings, self._listeners[at], theirs, asked))
        process.start()
        theirs.close()
        asked.close()
        return _Worker(process, ours, asking, time.monotonic())

    def _problem(self, worker: _Worker, limit_s: float = math.inf) -> str:
        """Why a worker cannot start; empty when it is ready, or is not waited for any more."""
        said = ""
        while not self._stopping() and not said:
            if time.monotonic() > worker.since + limit_s:
                said = f"it was not ready after {limit_s:g} s"
            if worker.pipe.poll(CHECK_S):
                try:
                    said = worker.pipe.recv()
                except EOFError:
                    worker.process.join()
                    said = f"a worker ended at once, with code {worker.process.exitcode}"
        worker.since = time.monotonic()
        return "" if said == READY else said

    def _replace_dead(self) -> None:
        for at, worker in enumerate(self._workers):
            if worker.process.is_alive() or self._stopping():
                continue
            code = worker.process.exitcode
            if time.monotonic() < worker.since + AT_LEAST_S:
                raise InputError(f"a worker ended as soon as it had started, with code {code}")
            logger.error("a worker ended with code %s: starting another", code)
            worker.pipe.close()
            self._workers[at] = self._start(at)
            if problem := self._problem(self._workers[at]):
                raise InputError(problem)

    def _restart(self) -> None:
        """Replace all workers one by one: each place always has one who takes calls."""
        logger.info("restarting the workers one by one")
        for at in range(len(self._workers)):
            if not self._succeed(at):
                return
        logger.info("restarted: %d new workers", len(self._workers))

    def _succeed(self, at: int) -> bool:
        """Put another worker into a place and have the old one finish; False where that did not come to pass."""
        self._beside = new = self._start(at)
        problem = self._problem(new, START_S)
        if self._stopping():
            return False
        if problem:
            logger.error("a new worker cannot start, the old ones go on: %s", problem)
            self._end(new)
            return False
        old, self._workers[at] = self._workers[at], new
        self._beside = old
        old.pipe.close()
        end = time.monotonic() + self._settings.grace_s + AT_LEAST_S
        while old.process.is_alive() and time.monotonic() < end:
            old.process.join(CHECK_S)
            if self._stopping():
                return False
            self._replace_dead()
        self._end(old)
        return True

    def _end(self, worker: _Worker) -> None:
        """End the one that is no more, or not yet, among the workers."""
        worker.process.kill()
        worker.process.join()
        self._beside = None


def _listeners(settings: Settings) -> list[socket.socket]:
    """A socket for each worker on one port that nobody else has: sharing alone would take calls from another server."""
    found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)
    family, _, _, _, address = min(found, key=lambda info: info[0] != socket.AF_INET)
    listeners: list[socket.socket] = []
    try:
        with socket.socket(family) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
            address = trial.getsockname()
        for _ in range(settings.workers):
            listeners.append(held := socket.socket(family))
            for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):  # connections of before may linger
                held.setsockopt(socket.SOL_SOCKET, option, 1)
            held.bind(address)
    except OSError as error:
        raise InputError(f"cannot listen on {settings.host_of_address}:{settings.port}: {error.strerror}") from error
    return listeners
