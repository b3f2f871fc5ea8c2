"""The search against servers that are made up: it ends, stays within bounds, and finds where they break."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tidemark.load.rate_search import GROWTH, MIN_RATE, TOLERANCE, search

RATES = st.floats(1, 100_000)


class Server:
    """Holds up to its capacity, and remembers what it was asked."""

    def __init__(self, capacity: float) -> None:
        self.capacity = capacity
        self.asked: list[float] = []

    def holds(self, rate: float) -> bool:
        self.asked.append(rate)
        return rate <= self.capacity


@given(capacity=RATES, start=RATES, most=RATES, steps=st.integers(1, 40))
def test_a_search_never_asks_too_often_or_too_much(capacity: float, start: float, most: float, steps: int) -> None:
    server = Server(capacity)
    result, asked = search(server.holds, start, most, steps), server.asked
    assert len(asked) == result.steps <= steps
    assert all(asked.count(rate) == 1 for rate in asked if rate <= capacity)
    assert max(map(asked.count, asked)) <= 2
    assert min(asked) >= MIN_RATE
    assert max(asked) <= most
    assert result.held is None or result.held <= capacity
    assert result.failed is None or result.failed > capacity


@given(capacity=st.floats(2, 50_000), start=RATES)
def test_with_enough_steps_it_comes_near_to_the_capacity(capacity: float, start: float) -> None:
    result = search(lambda rate: rate <= capacity, start, 100_000, 40)
    assert result.held is not None
    assert result.failed is not None
    assert result.held <= capacity < result.failed <= result.held * TOLERANCE * 1.0001


@given(most=RATES, start=RATES)
def test_a_server_that_holds_everything_is_asked_for_the_most(most: float, start: float) -> None:
    result = search(lambda _rate: True, start, most, 40)
    assert (result.held, result.failed) == (most, None)


def test_a_server_that_holds_nothing_is_asked_for_less_and_less() -> None:
    server = Server(0)
    result = search(server.holds, 8, 100, 40)
    assert server.asked == [8, 8, 4, 4, 2, 2, 1, 1]
    assert (result.held, result.failed) == (None, 1)


@given(answers=st.lists(st.booleans(), min_size=40, max_size=40))
def test_a_server_of_many_moods_does_not_keep_it_from_ending(answers: list[bool]) -> None:
    left = iter(answers)
    result = search(lambda _rate: next(left), 100, 10_000, 40)
    assert result.steps <= 40
    assert result.held is None or result.failed is None or result.held < result.failed


def test_it_doubles_then_goes_between_and_a_stop_ends_it() -> None:
    asked: list[float] = []

    def holds(rate: float) -> bool | None:
        asked.append(rate)
        return None if len(asked) == 6 else rate < 500

    result = search(holds, 100, 10_000, 40)
    assert asked[:5] == [100, 100 * GROWTH, 400, 800, 800]
    assert 400 < asked[5] < 800
    assert (result.held, result.failed, result.steps) == (400, 800, 5)


def test_one_bad_moment_breaks_no_search() -> None:
    answers = iter([True, False, True, True, False, False, True])
    asked: list[float] = []

    def holds(rate: float) -> bool | None:
        asked.append(rate)
        return next(answers, None)

    result = search(holds, 100, 10_000, 40)
    assert asked[:6] == [100, 200, 200, 400, 800, 800]
    assert (result.failed, result.held) == (800, asked[6])
