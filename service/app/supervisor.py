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
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Final

from feature_store.errors import InputError
from service.app.worker_slot import MIN_LIFE_S, Worker, WorkerSlot
from service.settings import Settings
from service.telemetry.prometheus import exposed

logger: Final = logging.getLogger("tidemark")

Work = Callable[[Settings, socket.socket, Connection, Connection], None]
"""Serves on a listener until a signal, or until the first pipe is closed; sends READY or its problem through that pipe.

The second pipe asks it for its metrics.
"""

CHECK_S: Final = 0.2
"""Seconds between looks at signals and workers."""


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
        self._slots: list[WorkerSlot] = []
        self._extra: Worker | None = None
        """A worker that starts or finishes while another one has its place."""
        self._signals: set[int] = set()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, _frame: self._signals.add(number))

    def _stopping(self) -> bool:
        return bool(self._signals - {signal.SIGHUP})

    def asking(self) -> dict[int, Connection]:
        """The pipes that ask for metrics, by the number of the worker."""
        # These are never closed: a thread may wait for one while its worker is replaced.
        return {at: slot.worker.asking for at, slot in enumerate(self._slots)}

    def run(self) -> None:
        """Start the workers, and supervise them until a signal to stop."""
        settings, port = self._settings, self._listeners[0].getsockname()[1]
        self._slots += [WorkerSlot(partial(self._start, at)) for at in range(settings.workers)]
        for slot in self._slots:
            if problem := self._problem(slot.worker):
                raise InputError(problem)
        if not self._stopping():
            logger.info("serving on %s:%d with %d workers", settings.host_of_address, port, settings.workers)
        while not self._stopping():
            wait([slot.worker.process.sentinel for slot in self._slots if not slot.is_empty], CHECK_S)
            self._tick()
            if signal.SIGHUP in self._signals and not self._stopping():
                self._signals.discard(signal.SIGHUP)
                self._restart()

    def stop(self) -> None:
        """Stop all workers, and wait until they have ended."""
        end = time.monotonic() + self._settings.drain_s + self._settings.grace_s + MIN_LIFE_S
        workers = [*(slot.worker for slot in self._slots), *([self._extra] if self._extra else [])]
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.process.join(max(0.0, end - time.monotonic()))
            worker.end()

    def _start(self, at: int) -> Worker:
        """Start a worker on the listener of that number."""
        context = multiprocessing.get_context("spawn")  # a fork would share threads' locks
        (ours, theirs), (asking, asked) = context.Pipe(), context.Pipe()
        process = context.Process(target=self._work, args=(self._settings, self._listeners[at], theirs, asked))
        process.start()
        theirs.close()
        asked.close()
        return Worker(process, ours, asking, time.monotonic())

    def _problem(self, worker: Worker, meanwhile: Callable[[], None] = lambda: None) -> str:
        """Wait for a worker to start. Why it cannot; empty if it is ready, or the supervisor stops."""
        problem = ""
        while not (self._stopping() or worker.ready or problem):
            wait([worker.pipe], CHECK_S)
            problem = worker.look(time.monotonic())
            meanwhile()
        return problem

    def _tick(self) -> None:
        for slot in self._slots:
            if not self._stopping():
                slot.tick()

    def _restart(self) -> None:
        """Replace all workers one by one, so that each listener always has a worker that accepts connections."""
        logger.info("restarting the workers one by one")
        for at, slot in enumerate(self._slots):
            if not self._replace(slot, at):
                return
        logger.info("restarted: %d new workers", len(self._slots))

    def _replace(self, slot: WorkerSlot, at: int) -> bool:
        """Replace a worker and let the old one finish; False if it was not replaced."""
        self._extra = new = self._start(at)
        problem = self._problem(new, meanwhile=self._tick)
        if self._stopping():
            return False
        if problem:
            logger.error("a new worker cannot start, the old workers stay: %s", problem)
            self._end(new)
            return False
        self._extra = old = slot.put(new)
        end = time.monotonic() + self._settings.grace_s + MIN_LIFE_S
        while old.process.is_alive() and time.monotonic() < end:
            old.process.join(CHECK_S)
            if self._stopping():
                return False
            self._tick()
        self._end(old)
        return True

    def _end(self, worker: Worker) -> None:
        """End a worker that has no place among the workers, or no longer has one."""
        worker.end()
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
