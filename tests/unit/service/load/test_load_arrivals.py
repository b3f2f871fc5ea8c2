"""Arrival times and drawn ids: the right rate, the right law, and the same again from the same seed."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tidemark.load.plan import Arrivals
from tidemark.load.sending.arrivals import IdSampler, arrival_times


def all_times(arrivals: Arrivals, rate: float, start: float, stop: float, seed: int = 1) -> NDArray[np.float64]:
    return np.concatenate(list(arrival_times(arrivals, rate, start, stop, np.random.default_rng(seed))))


@given(
    arrivals=st.sampled_from(["poisson", "constant"]),
    rate=st.floats(0.1, 5000),
    warm_up=st.floats(0, 3),
    duration=st.floats(0.1, 4),
)
def test_times_are_in_order_and_within_the_step(
    arrivals: Arrivals, rate: float, warm_up: float, duration: float
) -> None:
    result = all_times(arrivals, rate, -warm_up, duration)
    assert (np.diff(result) >= 0).all()
    assert ((result >= -warm_up) & (result < duration)).all()


def test_constant_arrivals_are_evenly_spaced_and_processes_take_turns() -> None:
    rng = np.random.default_rng(1)
    item, two = (np.concatenate(list(arrival_times("constant", 50, 0, 2, rng, phase))) for phase in (0.0, 0.5))
    both = np.sort(np.concatenate([item, two]))
    assert np.allclose(np.diff(both), 0.01)
    assert len(both) == 200


def test_poisson_arrivals_have_the_rate_and_the_spread_of_a_poisson_process() -> None:
    result = all_times("poisson", 1000, 0, 50)
    assert len(result) == pytest.approx(50_000, rel=0.02)
    gaps = np.diff(result)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03)
    a_second = np.histogram(result, 500)[0]
    assert a_second.var() == pytest.approx(a_second.mean(), rel=0.25)


def test_a_seed_gives_the_same_times() -> None:
    assert (all_times("poisson", 300, 0, 5, seed=4) == all_times("poisson", 300, 0, 5, seed=4)).all()
    assert len(all_times("poisson", 300, 0, 5, seed=4)) != len(all_times("poisson", 300, 0, 5, seed=5))


def test_zipf_draws_by_rank_and_all_processes_have_the_same_favourites() -> None:
    ids = [IdSampler(1000, "zipf", 1.0, seed=3) for _ in range(2)]
    drawn = [Counter(each.sample(50_000, np.random.default_rng(n)).tolist()) for n, each in enumerate(ids)]
    first, second = (result.most_common(2) for result in drawn)
    assert [identity for identity, _ in first] == [identity for identity, _ in second]
    assert first[0][1] == pytest.approx(2 * first[1][1], rel=0.1)
    assert first[0][1] == pytest.approx(50_000 / sum(1 / rank for rank in range(1, 1001)), rel=0.05)


def test_uniform_draws_reach_everybody_alike() -> None:
    drawn = Counter(IdSampler(100, "uniform", 1.0, seed=3).sample(100_000, np.random.default_rng(1)).tolist())
    assert len(drawn) == 100
    assert max(drawn.values()) < 1.2 * min(drawn.values())


@given(number=st.integers(1, 50), exponent=st.floats(0, 5))
def test_draws_are_always_of_somebody(number: int, exponent: float) -> None:
    drawn = IdSampler(number, "zipf", exponent, seed=1).sample(200, np.random.default_rng(2))
    assert ((drawn >= 0) & (drawn < number)).all()
