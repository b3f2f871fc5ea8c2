"""A queue bounded by time: what it learns from batches, whom it sheds, whom it refuses, and when they may come back."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.batching.admission import (
    FIRST_S,
    INTERVAL_S,
    MOST_RETRY_S,
    STANDING,
    AdmissionControl,
    expired,
    overloaded,
)
from service.errors import Code, Reason


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def paced(clock: Clock, batch_s: float = 0.001, *, standing: float = STANDING) -> AdmissionControl:
    """A queue with batches of 64 that has settled at ``batch_s``, and a bound of 50 ms."""
    pace = AdmissionControl(0.05, rows=64, standing=standing, clock=clock)
    for _ in range(60):
        pace.took(batch_s, 0)
    pace.rest()
    return pace


def test_the_bound_in_rows_follows_the_time_of_a_batch() -> None:
    clock = Clock()
    assert paced(clock, 0.001).most_rows == pytest.approx(49.5 * 64, rel=0.01)  # the one under way is half done
    assert paced(clock, 0.010).most_rows == pytest.approx(4.5 * 64, rel=0.01)


def test_a_batch_may_always_wait_however_slow_they_are() -> None:
    assert paced(Clock(), 3.0).most_rows == 64 + 64  # the worker may not have taken the first yet


def test_one_pause_is_no_pace() -> None:
    pace = paced(Clock())
    pace.took(1.0, 500)
    assert pace.batch_s < 0.0013
    pace.took(1.0, 500)
    pace.took(1.0, 500)
    assert pace.batch_s > 0.3  # it goes on


def test_a_burst_may_fill_the_queue_and_a_standing_queue_is_held_at_a_fifth() -> None:
    clock = Clock()
    pace = paced(clock)
    for _ in range(int(INTERVAL_S / 0.001)):
        pace.took(0.001, 500)
        clock.now += 0.001
    assert pace.most_rows == pytest.approx(49.5 * 64, rel=0.01)
    clock.now += 0.002
    pace.took(0.001, 500)
    assert pace.most_rows == pytest.approx(9.5 * 64, rel=0.01)
    pace.retry_s()  # somebody is shed
    pace.took(0.001, 0)  # and then the queue is empty for a moment
    assert pace.most_rows == pytest.approx(9.5 * 64, rel=0.01)
    clock.now += INTERVAL_S + 0.001
    pace.took(0.001, 0)
    assert pace.most_rows == pytest.approx(49.5 * 64, rel=0.01)


def test_when_all_work_is_done_whatever_comes_next_is_a_burst() -> None:
    clock = Clock()
    pace = paced(clock)
    for _ in range(300):
        pace.retry_s()
        pace.took(0.001, 500)
        clock.now += 0.001
    assert pace.most_rows == pytest.approx(9.5 * 64, rel=0.01)
    pace.rest()
    assert pace.most_rows == pytest.approx(49.5 * 64, rel=0.01)


def test_work_of_which_some_always_waits_keeps_the_whole_bound() -> None:
    clock = Clock()
    pace = paced(clock, standing=1.0)
    for _ in range(300):
        pace.took(0.001, 500)
        clock.now += 0.001
    assert pace.most_rows == pytest.approx(49.5 * 64, rel=0.01)


def test_a_deadline_that_the_queue_does_not_leave_time_for_is_refused_and_told_what_is_needed() -> None:
    pace = paced(Clock())
    assert pace.too_short(0.010, 64, 1, busy=True) is None
    refused = pace.too_short(0.010, 64 * 20, 1, busy=True)
    assert refused is not None
    assert (refused.reason, refused.code) == (Reason.DEADLINE_TOO_SHORT, Code.DEADLINE_EXCEEDED)
    assert "10 ms" in refused.message
    assert "22 ms" in refused.message
    assert refused.retry_after_s is None


def test_work_that_takes_turns_needs_more_time() -> None:
    pace = paced(Clock())
    assert pace.too_short(0.010, 64, 1, busy=True) is None
    assert pace.too_short(0.010, 64, 8, busy=True) is not None


@given(st.lists(st.floats(1e-4, 10), max_size=30), st.floats(1e-3, 10))
def test_an_idle_server_refuses_no_deadline_that_it_has_just_met(batches: list[float], deadline_s: float) -> None:
    clock = Clock()
    pace = AdmissionControl(0.05, rows=64, clock=clock)
    for seconds in batches:
        pace.took(seconds, 500)
    if not batches or batches[-1] <= deadline_s:
        assert pace.too_short(deadline_s, 0, 1, busy=False) is None
    clock.now += 1.1  # nobody can know how fast it is now
    assert pace.too_short(deadline_s, 0, 1, busy=False) is None


def test_an_idle_server_refuses_what_no_batch_was_ever_as_fast_as() -> None:
    assert paced(Clock()).too_short(0.0001, 0, 1, busy=False) is not None


def test_a_server_that_has_done_nothing_yet_takes_everything() -> None:
    pace = AdmissionControl(0.05, rows=64, clock=Clock())
    assert pace.batch_s == FIRST_S
    assert pace.too_short(1e-6, 0, 1, busy=False) is None


def test_who_is_shed_comes_back_later_the_more_there_are_and_not_all_at_once() -> None:
    clock = Clock()
    pace = paced(clock)
    first = [pace.retry_s() for _ in range(16)]
    assert len(set(first)) == 16
    assert 0.75 * 0.05 <= min(first) < max(first) <= 1.25 * 0.05 + 1e-9
    for _ in range(500):
        pace.retry_s()
    pace.took(0.001, 500)
    later = [pace.retry_s() for _ in range(16)]
    assert min(later) > max(first) * 0.75
    assert sum(later) > sum(first)
    for _ in range(10_000_000 // 64):
        pace.retry_s()
    pace.took(0.001, 500)
    assert sum(pace.retry_s() for _ in range(16)) / 16 == pytest.approx(MOST_RETRY_S, rel=0.02)
    clock.now += 2 * MOST_RETRY_S
    pace.took(0.001, 500)
    assert max(pace.retry_s() for _ in range(16)) < 1.26 * 0.06


def test_who_is_shed_is_told_when_to_come_back_and_who_is_late_is_not() -> None:
    shed = overloaded(0.12)
    assert (shed.reason, shed.code) == (Reason.OVERLOADED, Code.RESOURCE_EXHAUSTED)
    assert (shed.retry_after_s, shed.pushback_ms) == (0.12, 120)
    assert (expired().retry_after_s, expired().pushback_ms) == (None, None)


def test_without_a_bound_nothing_is_shed() -> None:
    pace = AdmissionControl(rows=64, clock=Clock())
    pace.took(10.0, 500)
    assert pace.most_rows == math.inf
