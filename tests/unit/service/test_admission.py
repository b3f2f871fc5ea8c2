"""Admission control: what it learns from batches, which calls it sheds or refuses, and when they may come back."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.batching.admission import (
    FIRST_BATCH_S,
    INTERVAL_S,
    MAX_RETRY_S,
    STANDING_SHARE,
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


def settled(clock: Clock, batch_s: float = 0.001, *, standing_share: float = STANDING_SHARE) -> AdmissionControl:
    """A queue with batches of 64 that has settled at ``batch_s``, and a bound of 50 ms."""
    admission = AdmissionControl(0.05, batch_rows=64, standing_share=standing_share, clock=clock)
    for _ in range(60):
        admission.batch_done(batch_s, 0)
    admission.queue_emptied()
    return admission


def test_the_bound_in_rows_follows_the_time_of_a_batch() -> None:
    clock = Clock()
    assert settled(clock, 0.001).max_rows == pytest.approx(49.5 * 64, rel=0.01)  # the running batch is half done
    assert settled(clock, 0.010).max_rows == pytest.approx(4.5 * 64, rel=0.01)


def test_a_batch_may_always_wait_however_slow_batches_are() -> None:
    assert settled(Clock(), 3.0).max_rows == 64 + 64  # the worker may not have taken the first yet


def test_a_single_pause_changes_the_average_little() -> None:
    admission = settled(Clock())
    admission.batch_done(1.0, 500)
    assert admission.batch_s < 0.0013
    admission.batch_done(1.0, 500)
    admission.batch_done(1.0, 500)
    assert admission.batch_s > 0.3  # the pause goes on


def test_a_burst_may_fill_the_queue_and_a_standing_queue_is_held_at_a_fifth() -> None:
    clock = Clock()
    admission = settled(clock)
    for _ in range(int(INTERVAL_S / 0.001)):
        admission.batch_done(0.001, 500)
        clock.now += 0.001
    assert admission.max_rows == pytest.approx(49.5 * 64, rel=0.01)
    clock.now += 0.002
    admission.batch_done(0.001, 500)
    assert admission.max_rows == pytest.approx(9.5 * 64, rel=0.01)
    admission.retry_after_s()  # a call is shed
    admission.batch_done(0.001, 0)  # and then the queue is empty for a moment
    assert admission.max_rows == pytest.approx(9.5 * 64, rel=0.01)
    clock.now += INTERVAL_S + 0.001
    admission.batch_done(0.001, 0)
    assert admission.max_rows == pytest.approx(49.5 * 64, rel=0.01)


def test_once_all_work_is_done_the_next_calls_are_a_burst() -> None:
    clock = Clock()
    admission = settled(clock)
    for _ in range(300):
        admission.retry_after_s()
        admission.batch_done(0.001, 500)
        clock.now += 0.001
    assert admission.max_rows == pytest.approx(9.5 * 64, rel=0.01)
    admission.queue_emptied()
    assert admission.max_rows == pytest.approx(49.5 * 64, rel=0.01)


def test_a_queue_that_is_never_empty_by_nature_keeps_the_whole_bound() -> None:
    clock = Clock()
    admission = settled(clock, standing_share=1.0)
    for _ in range(300):
        admission.batch_done(0.001, 500)
        clock.now += 0.001
    assert admission.max_rows == pytest.approx(49.5 * 64, rel=0.01)


def test_a_deadline_that_cannot_be_met_is_refused_with_the_time_that_is_needed() -> None:
    admission = settled(Clock())
    assert admission.deadline_error(0.010, 64, 1, busy=True) is None
    refused = admission.deadline_error(0.010, 64 * 20, 1, busy=True)
    assert refused is not None
    assert (refused.reason, refused.code) == (Reason.DEADLINE_TOO_SHORT, Code.DEADLINE_EXCEEDED)
    assert "10 ms" in refused.message
    assert "22 ms" in refused.message
    assert refused.retry_after_s is None


def test_a_call_of_several_slices_needs_more_time() -> None:
    admission = settled(Clock())
    assert admission.deadline_error(0.010, 64, 1, busy=True) is None
    assert admission.deadline_error(0.010, 64, 8, busy=True) is not None


@given(st.lists(st.floats(1e-4, 10), max_size=30), st.floats(1e-3, 10))
def test_an_idle_server_refuses_no_deadline_that_it_has_just_met(batches: list[float], deadline_s: float) -> None:
    clock = Clock()
    admission = AdmissionControl(0.05, batch_rows=64, clock=clock)
    for seconds in batches:
        admission.batch_done(seconds, 500)
    if not batches or batches[-1] <= deadline_s:
        assert admission.deadline_error(deadline_s, 0, 1, busy=False) is None
    clock.now += 1.1  # the measurement has expired
    assert admission.deadline_error(deadline_s, 0, 1, busy=False) is None


def test_an_idle_server_refuses_a_deadline_shorter_than_any_batch() -> None:
    assert settled(Clock()).deadline_error(0.0001, 0, 1, busy=False) is not None


def test_a_server_that_has_done_nothing_yet_refuses_no_deadline() -> None:
    admission = AdmissionControl(0.05, batch_rows=64, clock=Clock())
    assert admission.batch_s == FIRST_BATCH_S
    assert admission.deadline_error(1e-6, 0, 1, busy=False) is None


def test_the_more_calls_are_shed_the_later_they_come_back_and_not_all_at_once() -> None:
    clock = Clock()
    admission = settled(clock)
    first = [admission.retry_after_s() for _ in range(16)]
    assert len(set(first)) == 16
    assert 0.75 * 0.05 <= min(first) < max(first) <= 1.25 * 0.05 + 1e-9
    for _ in range(500):
        admission.retry_after_s()
    admission.batch_done(0.001, 500)
    later = [admission.retry_after_s() for _ in range(16)]
    assert min(later) > max(first) * 0.75
    assert sum(later) > sum(first)
    for _ in range(10_000_000 // 64):
        admission.retry_after_s()
    admission.batch_done(0.001, 500)
    assert sum(admission.retry_after_s() for _ in range(16)) / 16 == pytest.approx(MAX_RETRY_S, rel=0.02)
    clock.now += 2 * MAX_RETRY_S
    admission.batch_done(0.001, 500)
    assert max(admission.retry_after_s() for _ in range(16)) < 1.26 * 0.06


def test_a_shed_call_gets_a_time_to_retry_and_an_expired_one_does_not() -> None:
    shed = overloaded(0.12)
    assert (shed.reason, shed.code) == (Reason.OVERLOADED, Code.RESOURCE_EXHAUSTED)
    assert (shed.retry_after_s, shed.pushback_ms) == (0.12, 120)
    assert (expired().retry_after_s, expired().pushback_ms) == (None, None)


def test_without_a_bound_nothing_is_shed() -> None:
    admission = AdmissionControl(batch_rows=64, clock=Clock())
    admission.batch_done(10.0, 500)
    assert admission.max_rows == math.inf
