"""Several processes on one port: started, watched and stopped together.

The kernel spreads connections over them (SO_REUSEPORT), so each worker is a whole server of its own, with its own loop
and its own copy of the model. A worker that dies is replaced; one that cannot start ends them all; and should this
process be killed, its workers see the pipe close and stop.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Final

from feature_store.errors import InputError
from service.exposition import exposed
from service.settings import Settings

logger: Final = logging.getLogger("tidemark")

Work = Callable[[Settings, int, Connection, Connection], None]
"""Serves on a shared port until told to stop or the first pipe closes; says READY, or why it cannot, into that pipe.

At the second pipe it is asked for its metrics.
"""

READY: Final = "ready"
AT_LEAST_S: Final = 5.0
"""A worker that ends sooner is not replaced: the next one would end as soon."""
CHECK_S: Final = 0.2


@dataclass(frozen=True)
class _Worker:
    process: SpawnProcess
    pipe: Connection
    asking: Connection
    began: float


def supervise(settings: Settings, work: Work) -> None:
    """Run ``settings.workers`` processes of ``work`` until SIGINT or SIGTERM.

    InputError or OSError where they cannot start.
    """
    stopping: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _frame: stopping.append(number))
    workers: list[_Worker] = []
    with _held_port(settings) as held, exposed(settings, lambda: dict(enumerate(w.asking for w in workers))):
        port = held.getsockname()[1]
        try:
            workers += [_start(settings, port, work) for _ in range(settings.workers)]
            for worker in workers:
                _await_ready(worker, stopping)
            if not stopping:
                logger.info("serving on %s:%d with %d workers", settings.host_of_address, port, settings.workers)
            while not stopping:
                wait([worker.process.sentinel for worker in workers], CHECK_S)
                for at, worker in enumerate(workers):
                    if not worker.process.is_alive() and not stopping:
                        workers[at] = _replaced(worker, settings, port, work)
                        _await_ready(workers[at], stopping)
        finally:
            _stop(workers, settings.grace_s)


def _held_port(settings: Settings) -> socket.socket:
    """A port that workers can share, and that nobody else has: sharing alone would take calls from another server."""
    family, _, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
    try:
        with socket.socket(family) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
            address = trial.getsockname()
        held = socket.socket(family)
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):  # connections of before may linger; workers share
            held.setsockopt(socket.SOL_SOCKET, option, 1)
        held.bind(address)
    except OSError as error:
        raise InputError(f"cannot listen on {settings.host_of_address}:{settings.port}: {error.strerror}") from error
    return held


def _start(settings: Settings, port: int, work: Work) -> _Worker:
    context = multiprocessing.get_context("spawn")  # a fork would share threads' locks
    (ours, theirs), (asking, asked) = context.Pipe(), context.Pipe()
    process = context.Process(target=work, args=(settings, port, theirs, asked))
    process.start()
    theirs.close()
    asked.close()
    return _Worker(process, ours, asking, time.monotonic())


def _await_ready(worker: _Worker, stopping: list[int]) -> None:
    said = ""
    while not stopping and not said:
        if worker.pipe.poll(CHECK_S):
            try:
                said = worker.pipe.recv()
            except EOFError:
                worker.process.join()
                said = f"a worker ended at once, with code {worker.process.exitcode}"
    if said not in ("", READY):
        raise InputError(said)


def _replaced(worker: _Worker, settings: Settings, port: int, work: Work) -> _Worker:
    code = worker.process.exitcode
    if time.monotonic() < worker.began + AT_LEAST_S:
        raise InputError(f"a worker ended as soon as it had started, with code {code}")
    logger.error("a worker ended with code %s: starting another", code)
    worker.pipe.close()
    worker.asking.close()
    return _start(settings, port, work)


def _stop(workers: list[_Worker], grace_s: float) -> None:
    for worker in workers:
        worker.process.terminate()
    end = time.monotonic() + grace_s + AT_LEAST_S
    for worker in workers:
        worker.process.join(max(0.0, end - time.monotonic()))
        worker.process.kill()
        worker.process.join()
