"""Whatever is submitted, given up, late or too much: each call gets exactly one outcome, and only some are scored."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.batching.score_batcher import ScoreBatcher
from service.call_context import CallContext
from service.errors import Reason, RequestError
from service.scoring.types import SCORE_ROW, ScoreRequest, Scores
from tests.waiting import PATIENCE_S, settle


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Gate:
    """A scorer whose batches end when they are let go, and which knows what it was given."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.under_way: list[asyncio.Future[None]] = []

    async def score(self, parts: Sequence[ScoreRequest]) -> list[Scores]:
        self.batches.append([name for part in parts for name in part.customer_ids])
        self.under_way.append(released := asyncio.get_running_loop().create_future())
        await released
        return [Scores(np.zeros(len(part.customer_ids), SCORE_ROW), {}, "v") for part in parts]

    async def release(self) -> None:
        """End the oldest batch, and let everybody go on until nothing moves."""
        if self.under_way:
            self.under_way.pop(0).set_result(None)
        await settle()

    @property
    def seen(self) -> list[str]:
        return [name for batch in self.batches for name in batch]


@dataclass
class Caller:
    """A call with rows named ``number:row``, and what it was told."""

    number: int
    rows: int
    told: list[Scores | RequestError] = field(default_factory=list)
    gone: bool = False

    def submit(self, batcher: ScoreBatcher, deadline: float = math.inf) -> None:
        part = ScoreRequest([f"{self.number}:{row}" for row in range(self.rows)])
        batcher.submit(part, self.told.append, lambda: self.gone, CallContext(deadline))

    @property
    def reason(self) -> Reason | None:
        (outcome,) = self.told
        return outcome.reason if isinstance(outcome, RequestError) else None


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, PATIENCE_S))


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.sampled_from([1, 1, 1, 5, 64, 65, 300]), st.sampled_from([math.inf, 0.004, 1])),
        st.tuples(st.just("leave"), st.integers(0, 30), st.just(0)),
        st.tuples(st.just("wait"), st.sampled_from([0.0005, 0.002, 0.02]), st.just(0)),
        st.tuples(st.just("release"), st.just(0), st.just(0)),
    ),
    max_size=60,
)


@settings(max_examples=150)
@given(STEPS, st.sampled_from([0.0001, 0.004, 0.05, math.inf]))
def test_every_call_gets_exactly_one_outcome(steps: list[tuple[str, Any, Any]], max_wait_s: float) -> None:
    async def main() -> None:
        clock, gate, callers = Clock(), Gate(), list[Caller]()
        batcher = ScoreBatcher(gate.score, max_rows=100, slice_rows=70, max_wait_s=max_wait_s, clock=clock)
        for what, amount, left_s in steps:
            match what:
                case "submit":
                    callers.append(caller := Caller(len(callers), amount))
                    caller.submit(batcher, clock() + left_s)
                case "leave" if amount < len(callers):
                    callers[amount].gone = True
                case "wait":
                    clock.now += amount
                case "release":
                    await gate.release()
            await settle()
        while gate.under_way:
            await gate.release()
        check(callers, gate, batcher)

    run(main())


def check(callers: list[Caller], gate: Gate, batcher: ScoreBatcher) -> None:
    """One outcome each, none of it both scored and refused, in turn, and the counters say so."""
    seen = gate.seen
    assert len(seen) == len(set(seen)) == batcher.scored
    whole = {name.partition(":")[0] for name in seen}
    for caller in callers:
        assert len(caller.told) == 1 or (caller.gone and not caller.told)
        if not caller.told:
            continue
        if caller.reason is None:
            assert {f"{caller.number}:{row}" for row in range(caller.rows)} <= set(seen)
        elif caller.reason is Reason.OVERLOADED:
            assert str(caller.number) not in whole
        else:
            assert caller.reason is Reason.DEADLINE_TOO_SHORT
    begun = list(dict.fromkeys(int(name.partition(":")[0]) for name in seen))
    small = [number for number in begun if callers[number].rows <= 64]
    assert small == sorted(small)
    reasons = [caller.reason for caller in callers if caller.told]
    assert batcher.drops.shed == reasons.count(Reason.OVERLOADED)
    assert batcher.drops.refused + batcher.drops.expired == reasons.count(Reason.DEADLINE_TOO_SHORT)
    assert batcher.drops.cancelled == sum(not caller.told for caller in callers)
    for lane in (batcher._small, batcher._large):
        assert (lane.queue.rows, len(lane.queue)) == (0, 0)


def test_cancelled_and_expired_calls_are_not_scored() -> None:
    async def main() -> None:
        clock, gate = Clock(), Gate()
        batcher = ScoreBatcher(gate.score, clock=clock)
        callers = [Caller(number, 1) for number in range(5)]
        for caller in callers:
            caller.submit(batcher, clock() + (1.0 if caller.number == 3 else math.inf))
            await settle()
        callers[1].gone = True
        clock.now += 2.0
        await gate.release()
        assert gate.batches == [["0:0"], ["2:0", "4:0"]]
        assert callers[3].reason is Reason.DEADLINE_TOO_SHORT
        assert callers[1].told == []
        assert (batcher.drops.cancelled, batcher.drops.expired, batcher.scored) == (1, 1, 3)
        await gate.release()

    run(main())


def test_a_large_call_that_expires_half_way_is_not_continued() -> None:
    async def main() -> None:
        clock, gate = Clock(), Gate()
        batcher = ScoreBatcher(gate.score, max_rows=100, slice_rows=100, clock=clock)
        caller = Caller(0, 1000)
        caller.submit(batcher, clock() + 1.0)
        await settle()
        clock.now += 2.0
        while gate.under_way:
            await gate.release()
        assert caller.reason is Reason.DEADLINE_TOO_SHORT
        assert len(gate.seen) == 100

    run(main())


def test_a_deadline_that_the_queue_leaves_no_time_for_is_refused_at_once() -> None:
    async def main() -> None:
        clock, gate = Clock(), Gate()
        batcher = ScoreBatcher(gate.score, clock=clock)
        Caller(0, 1).submit(batcher)
        await settle()
        for number in range(1, 1000):  # 16 batches of 2 ms, as is taken for granted at first
            Caller(number, 1).submit(batcher)
        hurried, patient = Caller(2000, 1), Caller(2001, 1)
        hurried.submit(batcher, clock() + 0.02)
        patient.submit(batcher, clock() + 0.05)
        assert hurried.reason is Reason.DEADLINE_TOO_SHORT
        assert patient.told == []
        assert batcher.drops.refused == 1
        while gate.under_way:
            await gate.release()
        assert patient.reason is None

    run(main())


def test_too_much_is_shed_before_it_is_read_and_room_lets_in_again() -> None:
    async def main() -> None:
        clock, gate = Clock(), Gate()
        batcher = ScoreBatcher(gate.score, max_wait_s=0.005, clock=clock)
        Caller(0, 1).submit(batcher)
        await settle()
        welcome = 0
        while (retry_s := batcher.shed_unread()) is None:
            welcome += 1
            Caller(welcome, 1).submit(batcher)
        assert welcome == 128  # two batches of 64 rows and 2 ms, and half of the one under way
        assert 0.003 <= retry_s <= 0.007
        late = Caller(1000, 1)
        late.submit(batcher)
        assert late.reason is Reason.OVERLOADED
        assert batcher.drops.shed == 2
        await gate.release()
        assert batcher.shed_unread() is None
        while gate.under_way:
            await gate.release()

    run(main())


def test_large_calls_are_shed_by_how_many_take_turns_not_by_how_large_they_are() -> None:
    async def main() -> None:
        clock, gate = Clock(), Gate()
        batcher = ScoreBatcher(gate.score, max_wait_s=0.051, clock=clock)
        callers = [Caller(number, 1000) for number in range(150)]
        for caller in callers:
            caller.submit(batcher)
        await settle()
        shed = [caller.number for caller in callers if caller.told]
        assert shed == list(range(100, 150))  # 100 slices of 128 are 50 batches of 2 ms for two workers
        while gate.under_way:
            await gate.release()
        assert all(len(caller.told) == 1 for caller in callers)

    run(main())


def test_the_oldest_of_a_standing_queue_make_room() -> None:
    async def main() -> None:
        clock, gate = Clock(), Gate()
        batcher = ScoreBatcher(gate.score, max_wait_s=0.05, clock=clock)
        callers = [Caller(number, 1) for number in range(1500)]
        for caller in callers:
            caller.submit(batcher)
            if caller.number == 0:
                await settle()
        clock.now += 0.08  # a pause
        for _ in range(4):
            await gate.release()
            clock.now += 0.06  # and so slow after it that nothing would be in time
        shed = [caller.number for caller in callers if caller.told and caller.reason is Reason.OVERLOADED]
        assert shed
        assert shed == list(range(shed[0], shed[-1] + 1))
        while gate.under_way:
            await gate.release()
        assert all(len(caller.told) == 1 for caller in callers)
        answered = [caller.number for caller in callers if caller.reason is None]
        assert len(answered) + batcher.drops.shed == 1500

    run(main())


@pytest.mark.parametrize("when", ["waiting", "under way"])
def test_a_cancelled_caller_leaves_nothing_behind(when: str) -> None:
    async def main() -> None:
        gate = Gate()
        batcher = ScoreBatcher(gate.score)
        first = asyncio.create_task(batcher.score(ScoreRequest(["first"])))
        await settle()
        leaver = asyncio.create_task(batcher.score(ScoreRequest(["leaver"])))
        await settle()
        if when == "under way":
            await gate.release()
        leaver.cancel()
        await asyncio.gather(leaver, return_exceptions=True)
        while gate.under_way:
            await gate.release()
        await first
        assert ("leaver" in gate.seen) is (when == "under way")
        assert batcher.drops.cancelled == (when == "waiting")
        assert not batcher._small.queue
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert len(left) <= 2  # the worker, and the time limit of this test

    run(main())


def test_a_refusal_that_cannot_be_delivered_disturbs_no_other_call() -> None:
    def broken(_: Scores | RequestError) -> None:
        raise ValueError

    async def main() -> None:
        clock, gate = Clock(), Gate()
        batcher = ScoreBatcher(gate.score, clock=clock)
        Caller(0, 1).submit(batcher)
        await settle()
        batcher.submit(ScoreRequest(["x"]), broken, context=CallContext(clock() + 1))
        after = Caller(1, 1)
        after.submit(batcher)
        clock.now += 2
        while gate.under_way:
            await gate.release()
        assert after.reason is None

    run(main())
