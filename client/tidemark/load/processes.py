"""The sending processes of a load test, and the steps that are carried out with them."""

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

from tidemark.load.errors import InputError
from tidemark.load.plan import Plan
from tidemark.load.results import Result, Tally
from tidemark.load.sending.sender import MAX_BEHIND_S, READY, STOP, STOP_TIMEOUT_S, Records, Step, run_sender

START_TIMEOUT_S: Final = 60.0
LEAD_S: Final = 0.2
"""Time between announcing a step and its start, so that every process knows of it."""
POLL_S: Final = 0.1
EXTRA_TIMEOUT_S: Final = 10.0
"""How much longer than planned a step may take before its processes count as stuck."""

OnProgress = Callable[[Tally, float], None]
"""Called now and then with the counts so far, and the seconds since the warm-up began."""


class SendingProcesses:
    """Processes with connections to the target, for a ``with`` statement.

    Args:
        plan: the load test.
        ids: customer ids to ask for.

    Raises:
        InputError: on entering, if a process cannot connect.
    """

    def __init__(self, plan: Plan, ids: Sequence[str]) -> None:
        self._plan, self._ids = plan, ids
        self._pipes: list[Connection] = []
        self._processes: list[SpawnProcess] = []
        self.stopped = False
        """Whether Ctrl-C has ended a step."""

    def __enter__(self) -> Self:
        context = multiprocessing.get_context("spawn")  # a fork would share the locks of threads
        try:
            for number in range(self._plan.processes):
                ours, theirs = context.Pipe()
                arguments = (self._plan, self._ids, number, theirs)
                process = context.Process(target=run_sender, args=arguments, daemon=True)
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
            if (message := _receive(pipe)) != READY:
                raise InputError(str(message))

    def __exit__(self, *_: object) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(STOP_TIMEOUT_S)
            process.kill()
            process.join()

    def run(self, rate: float, on_progress: OnProgress) -> Result:
        """Carry out a step.

        Ctrl-C ends it early: then :attr:`stopped` is set, and the result covers the time until then.

        Args:
            rate: calls a second of all processes together.
            on_progress: called about ten times a second.

        Raises:
            InputError: a process has ended or does not answer.
        """
        plan, tally = self._plan, Tally(self._plan, rate)
        start = time.monotonic() + LEAD_S + plan.warm_up_s
        for number, pipe in enumerate(self._pipes):
            pipe.send(Step(rate / len(self._pipes), start, number / len(self._pipes)))
        timeout_at = start + plan.duration_s + MAX_BEHIND_S + plan.deadline_s + EXTRA_TIMEOUT_S
        unfinished, end = list(self._pipes), start + plan.duration_s
        with self._stop_signals() as signal_times:
            while unfinished:
                if signal_times and not self.stopped:
                    end = min(end, signal_times[0])
                    self._stop()
                unfinished = self._collect(unfinished, tally)
                on_progress(tally, time.monotonic() - start + plan.warm_up_s)
                if time.monotonic() > timeout_at:
                    raise InputError("a sending process does not answer")
        return tally.result(max(0.0, end - start), stopped=self.stopped)

    def _collect(self, unfinished: list[Connection], tally: Tally) -> list[Connection]:
        """Add the records that have arrived; returns the pipes that will bring more."""
        ready, finished = wait(unfinished, POLL_S), []
        for pipe in (pipe for pipe in unfinished if pipe in ready):
            records = _receive(pipe)
            if not isinstance(records, Records):
                raise InputError(str(records))
            tally.add(records)
            if records.last is not None:
                finished.append(pipe)
        return [pipe for pipe in unfinished if pipe not in finished]

    @contextmanager
    def _stop_signals(self) -> Iterator[list[float]]:
        """Times of the signals to stop. The first must not interrupt a message half-way; the second one may."""
        times: list[float] = []

        def on_signal(_number: int, _frame: FrameType | None) -> None:
            times.append(time.monotonic())
            if len(times) > 1:
                raise KeyboardInterrupt

        previous = [(number, signal.signal(number, on_signal)) for number in (signal.SIGINT, signal.SIGTERM)]
        try:
            yield times
        finally:
            for number, handler in previous:
                signal.signal(number, handler)

    def _stop(self) -> None:
        self.stopped = True
        for pipe in self._pipes:
            pipe.send(STOP)


def _receive(pipe: Connection) -> object:
    """The next message of a process, or in words why there is none."""
    try:
        return pipe.recv() if pipe.poll(START_TIMEOUT_S) else "a sending process does not start"
    except (EOFError, ConnectionError):
        return "a sending process has ended unexpectedly; its error is shown above"
