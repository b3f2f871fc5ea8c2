"""The breaker: when it opens, when a probe is due, and that there are never two."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from feature_store.online.transport.circuit_breaker import (
    MAX_BACKOFF_S,
    MIN_BACKOFF_S,
    PROBE_EVERY_S,
    STEADY_S,
    CircuitBreaker,
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def opened(clock: Clock) -> CircuitBreaker:
    breaker = CircuitBreaker(clock)
    assert breaker.record_failure(breaker.times_opened, "ConnectionError")
    return breaker


def close(breaker: CircuitBreaker, clock: Clock) -> None:
    clock.now += breaker.seconds_until_probe() or 0.0
    assert breaker.begin_probe()
    breaker.end_probe(answered=True)
    assert not breaker.open


def test_the_first_failure_opens_it_and_the_first_probe_is_due_at_once() -> None:
    clock = Clock()
    breaker = opened(clock)
    assert (breaker.open, breaker.times_opened, breaker.reason, breaker.seconds_until_probe()) == (
        True,
        1,
        "ConnectionError",
        0.0,
    )


def test_while_a_probe_is_under_way_no_other_is_due() -> None:
    breaker = opened(Clock())
    assert breaker.begin_probe()
    assert not breaker.begin_probe()
    assert breaker.seconds_until_probe() is None


def test_an_unanswered_probe_is_followed_by_another_in_a_moment() -> None:
    clock = Clock()
    breaker = opened(clock)
    breaker.begin_probe()
    breaker.end_probe(answered=False, reason="LOADING")
    assert breaker.open
    assert breaker.reason == "LOADING"
    assert not breaker.begin_probe()
    clock.now += PROBE_EVERY_S
    assert breaker.begin_probe()


def test_an_answered_probe_closes_it() -> None:
    clock = Clock()
    breaker = opened(clock)
    close(breaker, clock)
    assert breaker.seconds_until_probe() is None


def test_a_call_from_before_it_was_open_does_not_open_it_again() -> None:
    clock = Clock()
    breaker = CircuitBreaker(clock)
    began = breaker.times_opened
    breaker.record_failure(began, "TimeoutError")
    close(breaker, clock)
    assert not breaker.record_failure(began, "TimeoutError")
    assert not breaker.open


def test_who_keeps_failing_though_probes_are_answered_gets_a_longer_rest_each_time() -> None:
    clock = Clock()
    breaker = opened(clock)
    rests = []
    for _ in range(6):
        close(breaker, clock)
        clock.now += 0.25
        breaker.record_failure(breaker.times_opened, "TimeoutError")
        rests.append(round(breaker.seconds_until_probe() or 0.0, 9))
    assert rests == [MIN_BACKOFF_S, 0.1, 0.2, 0.4, MAX_BACKOFF_S, MAX_BACKOFF_S]
    close(breaker, clock)
    clock.now += STEADY_S
    breaker.record_failure(breaker.times_opened, "TimeoutError")
    assert breaker.seconds_until_probe() == 0.0


class BreakerInUse(RuleBasedStateMachine):
    """Calls that end late, probes, and time that passes, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.breaker = CircuitBreaker(self.clock)
        self.calls: list[int] = []
        self.probes = 0
        self.open, self.opened = False, 0

    @rule()
    def call(self) -> None:
        if not self.breaker.open:
            self.calls.append(self.breaker.times_opened)

    @precondition(lambda self: self.calls)
    @rule(which=st.integers(0, 100))
    def fail(self, which: int) -> None:
        began = self.calls.pop(which % len(self.calls))
        meant = not self.open and began == self.opened
        assert self.breaker.record_failure(began, "TimeoutError") is meant
        if meant:
            self.open, self.opened = True, self.opened + 1
            assert (self.breaker.seconds_until_probe() or 0.0) <= MAX_BACKOFF_S

    @rule(seconds=st.floats(0, 10))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def probe(self) -> None:
        due = self.breaker.seconds_until_probe() == 0.0
        assert self.breaker.begin_probe() is due
        self.probes += due

    @precondition(lambda self: self.probes)
    @rule(answered=st.booleans())
    def answer(self, answered: bool) -> None:
        self.breaker.end_probe(answered=answered, reason="LOADING")
        self.probes = 0
        self.open = not answered

    @invariant()
    def it_is_as_defined(self) -> None:
        assert self.probes <= 1
        assert (self.breaker.open, self.breaker.times_opened) == (self.open, self.opened)
        assert (self.breaker.seconds_until_probe() is None) is (not self.open or self.probes == 1)


TestBreakerInUse = BreakerInUse.TestCase
