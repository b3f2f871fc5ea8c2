"""A pool of worker processes for independent tasks, with results that do not depend on the number of workers.

Tasks are module-level functions of their arguments alone, each of which runs on one thread. With one process there are
no workers: a task runs, and raises, where it is queued.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Final, Generic, ParamSpec, Protocol, Self, TypeVar

from threadpoolctl import threadpool_limits

PRELOADED: Final = (
    "training.models.model_set",
    "training.selection.fold_losses",
    "training.evaluation.evidence_tables",
    "training.report.sections",
    "empulse.metrics",
)
"""Modules that workers need and that take seconds to import: one process imports them, and workers are forked from it.

The fitting process itself must not be forked: it has threads of DuckDB and of the progress display."""

MAX_WORKERS: Final = 8
"""A fit seldom has more tasks at once, and each worker holds the rows of its task."""

P = ParamSpec("P")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class WorkerLostError(Exception):
    """A worker process ended before its task did: somebody killed it, or the system ran out of memory."""


class Task(Protocol[T_co]):
    """A queued call."""

    def result(self) -> T_co:
        """Wait for the task and return what its function returned.

        Raises:
            WorkerLostError: A worker process died.
            Exception: Whatever the function raised.
        """


@dataclass(frozen=True)
class _LocalTask(Generic[T]):
    """A call that this process has made."""

    returned: T

    def result(self) -> T:
        return self.returned


@dataclass(frozen=True)
class _WorkerTask(Generic[T]):
    """A task of a worker."""

    future: Future[T]

    def result(self) -> T:
        try:
            return self.future.result()
        except BrokenProcessPool as error:
            raise WorkerLostError(
                "a worker process ended before its task did: it was killed, or memory ran out. Run the command again "
                "with more memory, or on one core (taskset -c 0 ...), which needs less"
            ) from error


class WorkerPool:
    """Worker processes, as a context manager; leaving it by an exception, Ctrl-C included, ends them at once.

    Workers also end when this process does, even if it is killed.
    """

    def __init__(self, processes: int | None = None) -> None:
        """Set the number of workers; they start when the pool is entered.

        Args:
            processes: Number of workers; None means one for each core that this process may use, at most MAX_WORKERS.
                With 1 there are no workers, and a task runs where it is queued.
        """
        self._processes: Final = processes or min(available_cores(), MAX_WORKERS)
        self._executor: ProcessPoolExecutor | None = None
        self._alive: Connection | None = None

    def __enter__(self) -> Self:
        if self._processes > 1:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(list(PRELOADED))
            ended, self._alive = context.Pipe(duplex=False)
            self._executor = ProcessPoolExecutor(self._processes, context, _prepare_worker, (ended,))
            for _ in range(self._processes):  # so that workers import while this process reads the source
                self._executor.submit(_nothing)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._executor is None or self._alive is None:
            return
        if kind is not None:
            self._alive.close()
        self._executor.shutdown(cancel_futures=kind is not None)
        self._alive.close()

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Task[T]:
        """Queue a call; calls begin in the order in which they were queued.

        Args:
            function: A function of a module, because it is pickled.
            *args: Its arguments, which are pickled too.
            **kwargs: Its named arguments.

        Returns:
            The task, to ask for its result.
        """
        if self._executor is None:
            return _LocalTask(function(*args, **kwargs))
        return _WorkerTask(self._executor.submit(_on_one_thread, partial(function, *args, **kwargs)))


IN_PROCESS: Final = WorkerPool(1)
"""A pool without workers."""


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _on_one_thread(call: Callable[[], T]) -> T:
    # In the worker and around each task: a limit holds only for libraries that are loaded already.
    with threadpool_limits(1):
        return call()


def _nothing() -> None:
    """The task that starts a worker."""


def _prepare_worker(ended: Connection) -> None:
    """Leave Ctrl-C to the fitting process, and end when that one closes its end of the pipe or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        try:
            ended.recv()
        except (EOFError, OSError):
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
