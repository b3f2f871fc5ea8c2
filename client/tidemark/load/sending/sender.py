"""A process that sends: it begins each call at its time, whatever has become of the others, and notes how it ended.

Latency counts from the time at which a call *should* begin, so that nothing is left out while the server, or this
process, is stuck; how late this process itself was is noted beside it. The loop waits in ``select``, which keeps
microseconds; epoll's and uvloop's timers keep milliseconds.
"""

from __future__ import annotations

import asyncio
import multiprocessing.connection
import os
import selectors
import signal
import ssl
import time
from array import array
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, count, islice
from typing import Final

import numpy as np
from google.protobuf.message import DecodeError
from tidemark.v1 import scoring_pb2

from tidemark.load.outcomes import NO_ANSWER, NO_MESSAGE, OK, Outcome, of_status
from tidemark.load.plan import Plan
from tidemark.load.sending.arrivals import BLOCK, Ids, times
from tidemark.load.sending.connection import PREFIX, Call
from tidemark.load.sending.connection_pool import Lines

READY: Final = "ready"
STOP: Final = "stop"
"""Told to end a step early."""
SHIP_S: Final = 0.1
SWEEP_S: Final = 0.01
TURN: Final = 64
"""Calls begun in a row, before answers get their turn."""
OVERTIME_S: Final = 1.0
"""A step that has fallen behind by so much goes no further."""
STOP_S: Final = 1.0
"""At a stop, calls in flight have so long."""
NEVER: Final = float("inf")


@dataclass(frozen=True)
class Step:
    """Calls at a rate of this process's own, from ``start`` (monotonic clock) on, after a warm-up before it."""

    rate: float
    start: float
    phase: float


@dataclass(frozen=True)
class Rows:
    """What came of calls: float64 rows of (seconds from the start, latency s, lag s, index into ``outcomes``).

    ``customers``: outcomes for customers within batches that were answered; ``models``: who answered, in customers.
    ``last`` ends a step: calls that there was no time to begin, and this process's CPU seconds.
    """

    rows: bytes
    outcomes: list[Outcome]
    customers: Counter[Outcome] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    last: tuple[int, float] | None = None


def work(plan: Plan, ids: Sequence[str], number: int, pipe: multiprocessing.connection.Connection) -> None:
    """Run a sending process: carries out the steps that come by the pipe until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then says STOP
    with asyncio.Runner(loop_factory=_loop) as runner:
        runner.run(Sender(plan, ids, number, pipe).run())


def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


def _why(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    return os.strerror(error.errno) if error.errno and not isinstance(error, ssl.SSLError) else type(error).__name__


class Sender:
    """The inside of the process."""

    def __init__(
        self, plan: Plan, ids: Sequence[str], number: int, pipe: multiprocessing.connection.Connection
    ) -> None:
        self._plan, self._ids, self._pipe = plan, ids, pipe
        self._rng: Final = np.random.default_rng([plan.seed, number])
        drawer = Ids(len(ids), plan.draw, plan.zipf_exponent, plan.seed)
        self._drawn: Final = chain.from_iterable(drawer.draw(BLOCK, self._rng).tolist() for _ in count())
        share = plan.connections // plan.processes + (number < plan.connections % plan.processes)
        self._lines: Final = Lines(plan, share, self._ended, time.monotonic)
        self._indices: Final[dict[Outcome, int]] = {OK: 0}
        self._rows, self._customers, self._models = array("d"), Counter[Outcome](), Counter[str]()
        self._open: Final[deque[Call]] = deque()
        self._pending = 0
        self._next = self._end = NEVER
        self._stopped = False
        self._fault = ""

    async def run(self) -> None:
        """Connect, say so or why not, and carry out steps."""
        try:
            await self._lines.open()
        except OSError as error:
            self._pipe.send(f"cannot connect to {self._plan.target}: {_why(error)}")
            return
        self._pipe.send(READY)
        loop, told = asyncio.get_running_loop(), asyncio.Queue[Step | None]()
        loop.set_exception_handler(self._break)
        loop.add_reader(self._pipe.fileno(), self._hear, told)
        while (step := await told.get()) is not None:
            await self._carry_out(step)
        self._lines.close()

    def _hear(self, told: asyncio.Queue[Step | None]) -> None:
        try:
            found = self._pipe.recv()
        except (EOFError, OSError):  # the parent has ended, or was killed
            asyncio.get_running_loop().remove_reader(self._pipe.fileno())
            told.put_nowait(None)
            found = STOP
        if found == STOP:
            self._stop()
        else:
            told.put_nowait(found)

    def _stop(self) -> None:
        """Begin nothing more, and wait only a little for what is in flight."""
        self._stopped = True
        self._end = time.monotonic() + STOP_S

    # --- a step -----------------------------------------------------------------------------------------------------

    async def _carry_out(self, step: Step) -> None:
        plan, cpu = self._plan, time.process_time()
        self._start, self._late = step.start, step.start + plan.duration_s + OVERTIME_S
        blocks = times(plan.arrivals, step.rate, -plan.warm_up_s, plan.duration_s, self._rng, step.phase)
        self._times: Iterator[float] = chain.from_iterable((block + step.start).tolist() for block in blocks)
        self._next = next(self._times, NEVER)
        self._over = asyncio.Event()
        self._due()
        await asyncio.gather(self._sweep(), self._ship())
        unsent = 0 if self._stopped or self._next == NEVER else 1 + sum(1 for _ in self._times)
        self._pipe.send(self._take_rows((unsent, time.process_time() - cpu)))

    def _due(self) -> None:
        """Begin what should have begun by now, and come again for the next."""
        now, begun = time.monotonic(), 0
        if self._stopped or now >= self._late:
            return
        while self._next <= now and begun < TURN:
            self._begin(Call(self._next, now - self._next, self._request()))
            self._next = next(self._times, NEVER)
            begun += 1
        self._lines.flush()
        if self._next < NEVER:
            asyncio.get_running_loop().call_at(self._next, self._due)

    def _begin(self, call: Call) -> None:
        self._open.append(call)
        self._pending += 1
        self._lines.place(call)

    def _request(self) -> bytes:
        if self._plan.batch:
            ids = [self._ids[at] for at in islice(self._drawn, self._plan.batch)]
            message = scoring_pb2.BatchScoreCustomersRequest(customer_ids=ids).SerializeToString()
        else:
            message = scoring_pb2.ScoreCustomerRequest(customer_id=self._ids[next(self._drawn)]).SerializeToString()
        return len(message).to_bytes(PREFIX) + message

    async def _sweep(self) -> None:
        """Give up calls whose time is over, and see whether the step is."""
        while not self._over.is_set():
            now = time.monotonic()
            while self._open and (self._open[0].over or self._open[0].at + self._plan.deadline_s <= now):
                if not (call := self._open.popleft()).over:
                    self._give_up(call)
            begun = self._stopped or self._next == NEVER or now >= self._late
            if self._fault or (begun and (not self._pending or now >= self._end)):
                self._over.set()
            await asyncio.sleep(SWEEP_S)
        if self._fault:
            raise RuntimeError(self._fault)

    def _give_up(self, call: Call) -> None:
        line = call.line
        self._ended(call, NO_ANSWER)
        if line is not None:
            line.cancel(call)

    def _break(self, _loop: object, context: dict[str, object]) -> None:
        """Something in a callback went wrong that must not: end, in place of waiting for what will never come."""
        self._fault = f"{context['message']}: {context.get('exception')!r}"

    # --- what came of it --------------------------------------------------------------------------------------------

    def _ended(self, call: Call, outcome: Outcome | None) -> None:
        """Note how a call ended; None: with a message."""
        if call.over:
            return
        now, call.over = time.monotonic(), True
        self._pending -= 1
        counted = call.at >= self._start
        found = self._read(call.body, counted) if outcome is None else outcome
        index = self._indices.setdefault(found, len(self._indices))
        self._rows.extend((call.at - self._start, now - call.at, call.lag, index))

    def _read(self, body: bytes, counted: int) -> Outcome:
        """Count (0 or 1 times) who answered, and whom of a batch there is no score for."""
        try:
            if not self._plan.batch:
                self._models[scoring_pb2.ScoreCustomerResponse.FromString(body[PREFIX:]).model_version] += counted
                return OK
            for result in scoring_pb2.BatchScoreCustomersResponse.FromString(body[PREFIX:]).results:
                if result.HasField("score"):
                    self._models[result.score.model_version] += counted
                else:
                    self._customers[of_status(result.status)] += counted
        except DecodeError:
            return NO_MESSAGE
        return OK

    async def _ship(self) -> None:
        """Hand over what there is, now and then; in a thread, should the pipe be full."""
        while not self._over.is_set():
            await asyncio.sleep(SHIP_S)
            if self._rows:
                await asyncio.to_thread(self._pipe.send, self._take_rows())

    def _take_rows(self, last: tuple[int, float] | None = None) -> Rows:
        found = Rows(self._rows.tobytes(), list(self._indices), self._customers, self._models, last)
        self._rows, self._customers, self._models = array("d"), Counter(), Counter()
        return found
