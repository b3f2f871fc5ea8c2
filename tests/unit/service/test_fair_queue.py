"""A fair queue hands out every row once and in order, and lets calls take turns."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

from hypothesis import given
from hypothesis import strategies as st

from service.batching.admission import AdmissionControl
from service.batching.fair_queue import DropCounts, FairQueue, QueuedCall
from service.errors import Reason, RequestError

BATCH_ROWS: Final = 10
SLICE_ROWS: Final = 4
NOW: Final = 100.0


@dataclass(slots=True, eq=False)
class FakeCall(QueuedCall):
    cancelled: bool = field(default=False, init=False)
    done: bool = field(default=False, init=False)
    error: RequestError | None = field(default=None, init=False)

    def is_done(self) -> bool:
        return self.done or self.error is not None

    def is_cancelled(self) -> bool:
        return self.cancelled

    def fail(self, error: RequestError) -> None:
        assert self.error is None
        self.error = error


def call(size: int, deadline: float = math.inf, queued_at: float = NOW) -> FakeCall:
    return FakeCall(size, deadline, queued_at, None)


def queue(max_wait_s: float = math.inf, *, sheds_late: bool = False) -> tuple[FairQueue[FakeCall], DropCounts]:
    drops = DropCounts()
    admission = AdmissionControl(max_wait_s, batch_rows=BATCH_ROWS, clock=lambda: NOW)
    return (
        FairQueue(admission, drops, batch_rows=BATCH_ROWS, slice_rows=SLICE_ROWS, sheds_late=sheds_late),
        drops,
    )


def drained(waiting: FairQueue[FakeCall], room: int = BATCH_ROWS) -> list[list[tuple[FakeCall, int, int]]]:
    """All batches until the queue is empty."""
    batches = []
    while batch := waiting.take(room, NOW):
        batches.append(batch)
    return batches


sizes = st.lists(st.integers(1, 50), max_size=20)
rooms = st.integers(1, 30)


@given(sizes, rooms)
def test_every_row_is_taken_once_and_in_order_within_its_call(sizes: list[int], room: int) -> None:
    waiting, drops = queue()
    calls = [call(size) for size in sizes]
    for each in calls:
        waiting.append(each)
    taken: dict[FakeCall, list[int]] = {each: [] for each in calls}
    for batch in drained(waiting, room):
        assert sum(stop - start for _, start, stop in batch) <= room
        for each, start, stop in batch:
            assert stop - start <= SLICE_ROWS
            taken[each] += range(start, stop)
    assert [taken[each] for each in calls] == [list(range(size)) for size in sizes]
    assert (waiting.rows, len(waiting), drops) == (0, 0, DropCounts())


@given(sizes, rooms)
def test_a_batch_is_full_as_long_as_enough_rows_can_be_taken(sizes: list[int], room: int) -> None:
    waiting, _ = queue()
    for size in sizes:
        waiting.append(call(size))
    while waiting:
        possible = min(room, sum(min(SLICE_ROWS, each.size - each.taken) for each in waiting._calls))
        assert sum(stop - start for _, start, stop in waiting.take(room, NOW)) == possible


@given(sizes, st.integers(1, SLICE_ROWS))
def test_a_new_call_waits_for_at_most_one_slice_of_each_call_ahead_of_it(sizes: list[int], size: int) -> None:
    waiting, _ = queue()
    for other in sizes:
        waiting.append(call(other))
    ahead = waiting.ahead
    assert ahead <= len(sizes) * SLICE_ROWS
    waiting.append(late := call(size))
    before = 0
    for batch in drained(waiting, room=SLICE_ROWS):
        for each, start, stop in batch:
            if each is late:
                assert before <= ahead
                return
            before += stop - start


@given(sizes, st.sets(st.integers(0, 19)), st.sets(st.integers(0, 19)), st.sets(st.integers(0, 19)))
def test_calls_that_need_no_more_work_are_dropped_and_counted(
    sizes: list[int], cancelled: set[int], expired: set[int], done: set[int]
) -> None:
    waiting, drops = queue()
    calls = [call(size, NOW - 1 if at in expired else math.inf) for at, size in enumerate(sizes)]
    for at, each in enumerate(calls):
        waiting.append(each)
        each.cancelled, each.done = at in cancelled, at in done
    taken = {each for batch in drained(waiting) for each, _, _ in batch}
    gone = [at in cancelled | expired | done for at in range(len(calls))]
    assert taken == {each for each, dropped in zip(calls, gone, strict=True) if not dropped}
    known = set(range(len(calls)))
    assert drops.cancelled == len((cancelled - done) & known)
    assert drops.expired == len((expired - cancelled - done) & known)
    errors = [each.error for each in calls if each.error is not None]
    assert {error.reason for error in errors} <= {Reason.DEADLINE_TOO_SHORT}
    assert len(errors) == drops.expired
    assert (waiting.rows, len(waiting)) == (0, 0)


def test_a_call_that_is_half_taken_leaves_no_rows_behind_when_it_is_cancelled() -> None:
    waiting, drops = queue()
    waiting.append(first := call(20))
    waiting.append(second := call(3))
    assert waiting.take(BATCH_ROWS, NOW) == [(first, 0, 4), (second, 0, 3)]
    first.cancelled = True
    assert waiting.take(BATCH_ROWS, NOW) == []
    assert (waiting.rows, drops.cancelled) == (0, 1)


def test_a_call_behind_too_many_rows_is_shed_and_one_without_time_is_refused() -> None:
    waiting, drops = queue(max_wait_s=0.005)
    while waiting.refusal(SLICE_ROWS, math.inf, busy=True) is None:
        waiting.append(call(SLICE_ROWS))
    assert waiting.ahead == math.ceil(waiting.admission.max_rows / SLICE_ROWS) * SLICE_ROWS
    shed = waiting.refusal(1, math.inf, busy=True)
    assert shed is not None
    assert (shed.reason, drops.shed, drops.refused) == (Reason.OVERLOADED, 2, 0)
    waiting.take(BATCH_ROWS, NOW)
    refused = waiting.refusal(1, 1e-6, busy=True)
    assert refused is not None
    assert (refused.reason, drops.shed, drops.refused) == (Reason.DEADLINE_TOO_SHORT, 2, 1)


def test_only_in_a_standing_queue_are_calls_shed_that_have_waited_too_long() -> None:
    now = [NOW]
    admission = AdmissionControl(0.05, batch_rows=BATCH_ROWS, clock=lambda: now[0])
    drops = DropCounts()
    waiting = FairQueue[FakeCall](admission, drops, batch_rows=BATCH_ROWS, slice_rows=SLICE_ROWS, sheds_late=True)
    calls = [call(SLICE_ROWS) for _ in range(5)]
    for each in calls:
        waiting.append(each)
    now[0] += 0.2
    assert [each for each, _, _ in waiting.take(SLICE_ROWS, now[0])] == calls[:1]
    for _ in range(2):
        admission.batch_done(0.001, waiting.rows)
        now[0] += 0.2
    assert admission.standing
    assert [each for each, _, _ in waiting.take(SLICE_ROWS, now[0])] == calls[3:4]
    assert drops.shed == 2  # the next ones are kept: no more than a batch waits behind them
