"""The processes that send, and steps carried out with them."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import FrameType
from typing import Final, Self

from feature_store.errors import InputError
from tidemark.load.plan import Plan
from tidemark.load.results import Result, Tally
from tidemark.load.sending.sender import OVERTIME_S, READY, STOP, STOP_S, Rows, Step, work

START_S: Final = 60.0
SOON_S: Final = 0.2
"""By then every process knows of a step."""
GLANCE_S: Final = 0.1
PATIENCE_S: Final = 10.0
"""Beyond what a step may take at most."""

Seen = Callable[[Tally, float], None]
"""Told every now and then: what there is, and seconds since the warm-up began."""


class Crew:
    """Processes with connections to the target, for a ``with`` statement; InputError where they cannot be made."""

    def __init__(self, plan: Plan, ids: Sequence[str]) -> None:
        self._plan, self._ids = plan, ids
        self._pipes: list[Connection] = []
        self._processes: list[SpawnProcess] = []
        self.stopped = False
        """Whether Ctrl-C has ended a step."""

    def __enter__(self) -> Self:
        context = multiprocessing.get_context("spawn")  # a fork would share threads' locks
        try:
            for number in range(self._plan.processes):
                ours, theirs = context.Pipe()
                process = context.Process(target=work, args=(self._plan, self._ids, number, theirs), daemon=True)
                process.start()
                theirs.close()
                self._pipes.append(ours)
                self._processes.append(process)
            self._await_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _await_ready(self) -> None:
        for pipe in self._pipes:
            if (said := _said(pipe)) != READY:
                raise InputError(str(said))

    def __exit__(self, *_: object) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(STOP_S)
            process.kill()
            process.join()

    def run(self, rate: float, seen: Seen) -> Result:
        """A step at a rate. Ctrl-C ends it early: then :attr:`stopped` is set, and the result is of what there was."""
        plan, tally = self._plan, Tally(self._plan, rate)
        start = time.monotonic() + SOON_S + plan.warm_up_s
        for number, pipe in enumerate(self._pipes):
            pipe.send(Step(rate / len(self._pipes), start, number / len(self._pipes)))
        end = start + plan.duration_s + OVERTIME_S + plan.deadline_s + PATIENCE_S
        waiting, stop = list(self._pipes), start + plan.duration_s
        with self._told() as told:
            while waiting:
                if told and not self.stopped:
                    stop = min(stop, told[0])
                    self._stop()
                waiting = self._listen(waiting, tally)
                seen(tally, time.monotonic() - start + plan.warm_up_s)
                if time.monotonic() > end:
                    raise InputError("a sending process does not answer")
        return tally.result(max(0.0, stop - start), stopped=self.stopped)

    def _listen(self, waiting: list[Connection], tally: Tally) -> list[Connection]:
        """Take in rows; who still has some to come."""
        done = []
        ready = wait(waiting, GLANCE_S)
        for pipe in (pipe for pipe in waiting if pipe in ready):
            found = _said(pipe)
            if not isinstance(found, Rows):
                raise InputError(str(found))
            tally.add(found)
            if found.last is not None:
                done.append(pipe)
        return [pipe for pipe in waiting if pipe not in done]

    @contextmanager
    def _told(self) -> Iterator[list[float]]:
        """Times of signals that ask to stop. One must not come between two halves of a message; a second one may."""
        times: list[float] = []

        def hear(_number: int, _frame: FrameType | None) -> None:
            times.append(time.monotonic())
            if len(times) > 1:
                raise KeyboardInterrupt

        before = [(number, signal.signal(number, hear)) for number in (signal.SIGINT, signal.SIGTERM)]
        try:
            yield times
        finally:
            for number, handler in before:
                signal.signal(number, handler)

    def _stop(self) -> None:
        self.stopped = True
        for pipe in self._pipes:
            pipe.send(STOP)


def _said(pipe: Connection) -> object:
    try:
        return pipe.recv() if pipe.poll(START_S) else "a sending process does not start"
    except (EOFError, ConnectionError):
        return "a sending process has ended by itself; what it said stands above"
