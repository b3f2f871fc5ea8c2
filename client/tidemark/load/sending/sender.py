"""A sending process: it starts each call when it is due, whatever became of the others, and records how it ended.

Latency counts from the time at which a call was *due*, so that nothing is left out while the server, or this process,
is stuck (this avoids coordinated omission); how late this process itself was is recorded beside it. The loop waits in
``select``, which is precise to microseconds; the timers of epoll and uvloop are precise to milliseconds only.
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

from tidemark.load.outcomes import INCOMPLETE_MESSAGE, NO_ANSWER, OK, Outcome, of_status
from tidemark.load.plan import Plan
from tidemark.load.sending.arrivals import BLOCK, IdSampler, arrival_times
from tidemark.load.sending.connection import PREFIX_BYTES, Call
from tidemark.load.sending.connection_pool import ConnectionPool

READY: Final = "ready"
STOP: Final = "stop"
"""The message that ends a step early."""
SHIP_INTERVAL_S: Final = 0.1
SWEEP_INTERVAL_S: Final = 0.01
MAX_STARTS: Final = 64
"""Calls that start in a row before replies are read."""
MAX_BEHIND_S: Final = 1.0
"""A step starts no more calls once it has fallen this far behind."""
STOP_TIMEOUT_S: Final = 1.0
"""How long calls in flight may take when a step is stopped."""
NEVER: Final = float("inf")


@dataclass(frozen=True)
class Step:
    """``rate`` calls a second by this process, from ``start`` on the monotonic clock, after a warm-up."""

    rate: float
    start: float
    phase: float


@dataclass(frozen=True)
class Records:
    """What became of calls.

    Attributes:
        rows: float64 rows of (seconds from the start, latency in s, lag in s, index into ``outcomes``), as bytes.
        outcomes: the outcomes that the rows refer to.
        customers: outcomes of single customers without a score, in batches that were answered.
        models: customers scored by each model version.
        last: ends a step: the calls that there was no time to start, and the CPU seconds of this process.
    """

    rows: bytes
    outcomes: list[Outcome]
    customers: Counter[Outcome] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    last: tuple[int, float] | None = None


def run_sender(plan: Plan, ids: Sequence[str], number: int, pipe: multiprocessing.connection.Connection) -> None:
    """Run a sending process: it carries out the steps that the pipe brings until the pipe closes.

    Args:
        plan: the load test.
        ids: customer ids to ask for.
        number: index of this process among those of the plan.
        pipe: brings :class:`Step` and ``STOP``; takes ``READY`` or an error message, then :class:`Records`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then sends STOP
    with asyncio.Runner(loop_factory=_make_loop) as runner:
        runner.run(Sender(plan, ids, number, pipe).run())


def _make_loop() -> asyncio.AbstractEventLoop:
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


def _describe(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    return os.strerror(error.errno) if error.errno and not isinstance(error, ssl.SSLError) else type(error).__name__


class Sender:
    """The inside of the process; for the arguments see :func:`run_sender`."""

    def __init__(
        self, plan: Plan, ids: Sequence[str], number: int, pipe: multiprocessing.connection.Connection
    ) -> None:
        self._plan, self._ids, self._pipe = plan, ids, pipe
        self._rng: Final = np.random.default_rng([plan.seed, number])
        sampler = IdSampler(len(ids), plan.draw, plan.zipf_exponent, plan.seed)
        self._indices: Final = chain.from_iterable(sampler.sample(BLOCK, self._rng).tolist() for _ in count())
        connections = plan.connections // plan.processes + (number < plan.connections % plan.processes)
        self._pool: Final = ConnectionPool(plan, connections, self._on_end, time.monotonic)
        self._outcomes: Final[dict[Outcome, int]] = {OK: 0}
        self._rows, self._customers, self._models = array("d"), Counter[Outcome](), Counter[str]()
        self._started: Final[deque[Call]] = deque()
        self._pending = 0
        self._next_due = self._stop_at = NEVER
        self._stopped = False
        self._fault = ""

    async def run(self) -> None:
        """Connect, report that or why not, and carry out steps."""
        try:
            await self._pool.open()
        except OSError as error:
            self._pipe.send(f"cannot connect to {self._plan.target}: {_describe(error)}")
            return
        self._pipe.send(READY)
        loop, steps = asyncio.get_running_loop(), asyncio.Queue[Step | None]()
        loop.set_exception_handler(self._on_fault)
        loop.add_reader(self._pipe.fileno(), self._on_message, steps)
        while (step := await steps.get()) is not None:
            await self._carry_out(step)
        self._pool.close()

    def _on_message(self, steps: asyncio.Queue[Step | None]) -> None:
        try:
            message = self._pipe.recv()
        except (EOFError, OSError):  # the parent has ended, or was killed
            asyncio.get_running_loop().remove_reader(self._pipe.fileno())
            steps.put_nowait(None)
            message = STOP
        if message == STOP:
            self._stop()
        else:
            steps.put_nowait(message)

    def _stop(self) -> None:
        """Start nothing more, and wait only briefly for the calls in flight."""
        self._stopped = True
        self._stop_at = time.monotonic() + STOP_TIMEOUT_S

    # --- a step -----------------------------------------------------------------------------------------------------

    async def _carry_out(self, step: Step) -> None:
        plan, cpu_s = self._plan, time.process_time()
        self._start, self._give_up_at = step.start, step.start + plan.duration_s + MAX_BEHIND_S
        blocks = arrival_times(plan.arrivals, step.rate, -plan.warm_up_s, plan.duration_s, self._rng, step.phase)
        self._due_times: Iterator[float] = chain.from_iterable((block + step.start).tolist() for block in blocks)
        self._next_due = next(self._due_times, NEVER)
        self._step_ended = asyncio.Event()
        self._start_due()
        await asyncio.gather(self._sweep(), self._ship())
        unsent = 0 if self._stopped or self._next_due == NEVER else 1 + sum(1 for _ in self._due_times)
        self._pipe.send(self._take_records((unsent, time.process_time() - cpu_s)))

    def _start_due(self) -> None:
        """Start all calls that are due, and come back for the next one."""
        now, started = time.monotonic(), 0
        if self._stopped or now >= self._give_up_at:
            return
        while self._next_due <= now and started < MAX_STARTS:
            call = Call(self._next_due, now - self._next_due, self._request())
            self._started.append(call)
            self._pending += 1
            self._pool.submit(call)
            self._next_due = next(self._due_times, NEVER)
            started += 1
        self._pool.flush()
        if self._next_due < NEVER:
            asyncio.get_running_loop().call_at(self._next_due, self._start_due)

    def _request(self) -> bytes:
        if self._plan.batch:
            ids = [self._ids[index] for index in islice(self._indices, self._plan.batch)]
            message = scoring_pb2.BatchScoreCustomersRequest(customer_ids=ids).SerializeToString()
        else:
            message = scoring_pb2.ScoreCustomerRequest(customer_id=self._ids[next(self._indices)]).SerializeToString()
        return len(message).to_bytes(PREFIX_BYTES) + message

    async def _sweep(self) -> None:
        """Give up calls whose deadline has passed, and notice the end of the step."""
        while not self._step_ended.is_set():
            now = time.monotonic()
            while self._started and (self._started[0].ended or self._started[0].due + self._plan.deadline_s <= now):
                if not (call := self._started.popleft()).ended:
                    self._give_up(call)
            all_started = self._stopped or self._next_due == NEVER or now >= self._give_up_at
            if self._fault or (all_started and (not self._pending or now >= self._stop_at)):
                self._step_ended.set()
            await asyncio.sleep(SWEEP_INTERVAL_S)
        if self._fault:
            raise RuntimeError(self._fault)

    def _give_up(self, call: Call) -> None:
        connection = call.connection
        self._on_end(call, NO_ANSWER)
        if connection is not None:
            connection.cancel(call)

    def _on_fault(self, _loop: object, context: dict[str, object]) -> None:
        """A callback failed, which must not happen: end the process rather than wait for calls that never end."""
        self._fault = f"{context['message']}: {context.get('exception')!r}"

    # --- how calls ended --------------------------------------------------------------------------------------------

    def _on_end(self, call: Call, outcome: Outcome | None) -> None:
        """Record how a call ended; no outcome means that it has a message."""
        if call.ended:
            return
        now, call.ended = time.monotonic(), True
        self._pending -= 1
        if outcome is None:
            outcome = self._read(call.body, counted=call.due >= self._start)
        index = self._outcomes.setdefault(outcome, len(self._outcomes))
        self._rows.extend((call.due - self._start, now - call.due, call.lag, index))

    def _read(self, body: bytes, *, counted: bool) -> Outcome:
        """Read a reply; unless it belongs to the warm-up, count its models and customers without a score."""
        try:
            if not self._plan.batch:
                version = scoring_pb2.ScoreCustomerResponse.FromString(body[PREFIX_BYTES:]).score.model_version
                self._models[version] += counted
                return OK
            for result in scoring_pb2.BatchScoreCustomersResponse.FromString(body[PREFIX_BYTES:]).results:
                if result.HasField("score"):
                    self._models[result.score.model_version] += counted
                else:
                    self._customers[of_status(result.status)] += counted
        except DecodeError:
            return INCOMPLETE_MESSAGE
        return OK

    async def _ship(self) -> None:
        """Send records to the parent now and then; in a thread, because the pipe may be full."""
        while not self._step_ended.is_set():
            await asyncio.sleep(SHIP_INTERVAL_S)
            if self._rows:
                await asyncio.to_thread(self._pipe.send, self._take_records())

    def _take_records(self, last: tuple[int, float] | None = None) -> Records:
        records = Records(self._rows.tobytes(), list(self._outcomes), self._customers, self._models, last)
        self._rows, self._customers, self._models = array("d"), Counter(), Counter()
        return records
