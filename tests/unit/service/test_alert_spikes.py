"""A spike is marked while it lasts, chance and slow change are not, and memory and cost have bounds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.scoring.alert_spikes import MAX_JUDGEMENTS, MAX_NEW_ITEMS, MIN_HISTORY, SpikeGuard

WINDOW_S = 60.0
STEPS = 10
YEAR_S = 365 * 86_400.0

Batch = tuple[int, int, Sequence[str]]


class Clock:
    """Seconds that a test sets; counts how often it was asked."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.asked = 0

    def __call__(self) -> float:
        self.asked += 1
        return self.now


class Shop:
    """A guard on a clock of its own, fed window by window."""

    def __init__(self, *, windows: int = 60, max_items: int = 1000) -> None:
        self.clock = Clock()
        self.guard = SpikeGuard(clock=self.clock, window_s=WINDOW_S, windows=windows, max_items=max_items)

    def window(self, *batches: Batch) -> bool:
        """One window whose batches come evenly; then the clock stands where the next one begins. Marked at its end?"""
        start = self.clock.now
        for at, batch in enumerate(batches):
            self.clock.now = start + at * WINDOW_S / len(batches)
            self.guard.observe(*batch)
        self.clock.now = start + WINDOW_S
        return self.guard.in_total()

    def windows(self, number: int, *batches: Batch) -> list[bool]:
        """Some windows that are all the same."""
        return [self.window(*batches) for _ in range(number)]

    def observe(self, answers: int, alerts: int, items: Iterable[str] = ()) -> bool:
        """One batch; did it fall into a spike?"""
        self.guard.observe(answers, alerts, items)
        return self.guard.in_total()


def calm(*, windows: int = 60, max_items: int = 1000) -> Shop:
    """A full history of 5 in 100, by chance, in windows of 1000 answers; "shoes" has one alert in five."""
    shop, random = Shop(windows=windows, max_items=max_items), np.random.default_rng(1)
    for alerts in random.binomial(1000, 0.05, windows).tolist():
        shop.window((1000, alerts, ["shoes"] * (alerts // 5)))
    assert shop.guard.spikes == shop.guard.item_spikes == 0
    return shop


def spikes_at(shares: Sequence[float], sizes: Sequence[int], seed: int) -> int:
    """Spikes in windows of these sizes, whose answers alert with these probabilities, each by itself."""
    shop, random = Shop(), np.random.default_rng(seed)
    for share, size in zip(shares, sizes, strict=True):
        shop.window(*((size // STEPS, n, ()) for n in random.binomial(size // STEPS, share, STEPS).tolist()))
    return shop.guard.spikes


def test_nothing_is_a_spike_before_there_is_a_history() -> None:
    shop = Shop()
    shop.windows(MIN_HISTORY - 1, (1000, 50, ()))
    assert not shop.observe(1000, 1000, ["shoes"] * 1000)
    assert not shop.guard.of_item("shoes")
    young = Shop()
    young.windows(MIN_HISTORY, (1000, 50, ()))
    assert young.observe(1000, 1000)


def test_answers_are_marked_during_the_spike_from_the_first_ones_that_are_enough() -> None:
    shop = calm()
    marked = [shop.observe(20, 10) for _ in range(20)]  # the clock stands still
    assert marked == [False] * 9 + [True] * 11  # 200 answers are enough


def test_a_spike_that_begins_within_a_window_is_marked_within_a_judgement() -> None:
    shop = calm()
    assert not shop.observe(3000, 150)
    shop.clock.now += WINDOW_S / 2
    assert not shop.observe(3000, 150)
    assert not shop.observe(3000, 2000)  # not yet looked at again
    shop.clock.now += WINDOW_S / MAX_JUDGEMENTS
    assert shop.observe(1, 0)


def test_a_spike_that_begins_at_the_end_of_a_window_is_marked_in_the_next() -> None:
    shop = calm()
    shop.observe(3000, 150)
    shop.clock.now += WINDOW_S - 0.01
    shop.observe(100, 50)
    assert not shop.guard.in_total()  # 100 answers among 3000
    shop.clock.now += 0.01
    assert shop.observe(200, 100)


def test_a_spike_has_no_gap_where_a_window_begins() -> None:
    shop = calm()
    assert shop.window((1000, 500, ["hats"] * 500))
    assert shop.observe(1, 0)
    assert shop.guard.of_item("hats")
    assert not shop.observe(999, 50)  # enough answers to see that it is over
    assert not shop.guard.of_item("hats")


def test_a_spike_ends_with_a_pause_or_a_window_with_few_answers() -> None:
    shop = calm()
    assert shop.window((1000, 500, ["hats"] * 500))
    shop.clock.now += WINDOW_S
    assert not shop.observe(1, 0)
    assert not shop.guard.of_item("hats")
    shop = calm()
    shop.window((1000, 500, ["hats"] * 500))
    assert shop.window((199, 100, ["hats"] * 100))
    assert not shop.observe(1, 1, ["hats"])
    assert not shop.guard.of_item("hats")


@pytest.mark.parametrize("size", [200, 1000, 20_000])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.05, 0.3, 0.9, 1.0])
def test_chance_is_no_spike(share: float, size: int) -> None:
    assert spikes_at([share] * 2000, [size] * 2000, seed=size) == 0


@pytest.mark.parametrize("share", [0.001, 0.003, 0.01, 0.05, 0.3])
def test_chance_is_no_spike_where_traffic_comes_and_goes(share: float) -> None:
    sizes = np.exp(np.random.default_rng(2).uniform(np.log(200), np.log(20_000), 2000)).astype(int).tolist()
    assert spikes_at([share] * 2000, sizes, seed=3) == 0


def test_chance_after_a_history_without_any_change_is_no_spike() -> None:
    shop = Shop()
    shop.windows(60, (1000, 50, ()))  # MAD 0
    assert not any(shop.observe(1000, alerts) for alerts in range(50, 80, 5))
    shop = Shop()
    shop.windows(60, (1000, 0, ()))
    assert not shop.observe(1000, 10, ["shoes"] * 10)
    assert not shop.guard.of_item("shoes")


def test_more_traffic_does_not_make_chance_before_it_a_spike() -> None:
    random = np.random.default_rng(8)
    for few, share in [(MIN_HISTORY, 0.05), (MIN_HISTORY, 0.003), (60, 0.003), (60, 0.0005)]:
        for _ in range(200):
            shop = Shop()
            for alerts in random.binomial(200, share, few).tolist():
                shop.window((200, alerts, ()))
            assert not shop.observe(100_000, int(100_000 * share))


def test_more_traffic_does_not_make_an_item_a_spike_that_was_too_rare_to_remember() -> None:
    shop = Shop()
    shop.windows(60, (200, 2, ["shoes"] * 2))
    assert not shop.observe(20_000, 200, ["shoes"] * 200)
    assert not shop.guard.of_item("shoes")


def test_windows_that_differ_by_more_than_chance_are_rarely_spikes() -> None:
    random = np.random.default_rng(4)
    for size in (200, 2000, 100_000):
        shares = 0.05 * random.lognormal(0, 0.2, 2000)  # from 3 to 8 in 100
        assert spikes_at(shares.tolist(), [size] * 2000, seed=5) <= 2


def test_slow_change_is_no_spike() -> None:
    day = 0.05 + 0.04 * np.sin(np.arange(2880) * 2 * np.pi / 1440)  # from 1 to 9 in 100 and back, each day
    assert spikes_at(day.tolist(), [20_000] * 2880, seed=6) == 0


def test_a_fall_is_no_spike() -> None:
    shop = calm()
    assert not shop.window((100_000, 0, ()))


def test_a_spike_of_a_third_of_the_history_is_marked_to_its_end_and_does_not_hide_the_next() -> None:
    shop = calm()
    assert all(shop.windows(20, (1000, 300, ["hats"] * 300)))
    assert shop.guard.of_item("hats")
    assert not any(shop.windows(5, (1000, 50, ())))
    assert shop.window((1000, 300, ()))
    assert shop.guard.spikes == 21


def test_a_level_that_stays_is_usual_after_half_of_the_history() -> None:
    shop = calm()
    marked = shop.windows(60, (1000, 300, ["hats"] * 300))
    assert 25 <= sum(marked) <= 31
    assert marked == sorted(marked, reverse=True)
    assert not shop.guard.of_item("hats")


def test_windows_with_few_answers_are_no_history() -> None:
    shop = calm()
    shop.windows(500, (199, 199, ["hats"] * 199))
    assert shop.guard.spikes == 0
    assert shop.observe(1000, 500, ["hats"] * 500)
    assert shop.guard.of_item("hats")


def test_a_long_pause_costs_one_step_and_leaves_the_history_as_it_was() -> None:
    shop = calm()
    shop.clock.now += 100 * YEAR_S + 7.5
    asked = shop.clock.asked
    assert not shop.observe(1000, 50)
    assert shop.clock.asked == asked + 1
    shop.clock.now += WINDOW_S - 8  # still in that window: windows begin where they always did
    shop.observe(500, 25)
    assert shop.guard._window.answers == 1500
    shop.clock.now += 0.6
    assert shop.observe(1000, 500)
    assert shop.guard._window.answers == 1000


def test_an_item_that_never_alerted_is_a_spike_where_it_suddenly_does() -> None:
    shop = calm()
    assert not shop.observe(1000, 60, [*["shoes"] * 10, *["hats"] * 50])  # in total this is nearly as ever
    assert shop.guard.of_item("hats")
    assert not shop.guard.of_item("shoes")
    assert not shop.guard.of_item("gloves")
    assert (shop.guard.spikes, shop.guard.item_spikes) == (0, 1)


def test_an_item_is_compared_with_its_own_history() -> None:
    shop = Shop()
    usual = [*["shoes"] * 50, *["hats"] * 5]
    shop.windows(60, (1000, 55, usual))
    assert not shop.observe(1000, 55, usual)
    assert not shop.guard.of_item("shoes")
    shop.clock.now += WINDOW_S
    shop.observe(1000, 100, [*["shoes"] * 50, *["hats"] * 50])
    assert shop.guard.of_item("hats")
    assert not shop.guard.of_item("shoes")


def test_chance_is_no_spike_of_an_item() -> None:
    shop, random = Shop(), np.random.default_rng(7)
    popularity = 1 / np.arange(1, 301)
    names, popularity = [f"item {i}" for i in range(300)], popularity / popularity.sum()
    for _ in range(500):
        chosen = random.choice(names, (STEPS, 40), p=popularity).tolist()
        shop.window(*((400, 40, items) for items in chosen))
    assert (shop.guard.spikes, shop.guard.item_spikes) == (0, 0)


def test_many_items_take_turns_those_with_the_most_alerts_first() -> None:
    shop = Shop()
    shop.windows(60, (100_000, 5000, ()))
    names = [f"item {i}" for i in range(5 * MAX_NEW_ITEMS)]
    shop.observe(100_000, 25_000, [name for at, name in enumerate(names) for _ in range(50 + at % 2 * 50)])
    marked = [name for name in names if shop.guard.of_item(name)]
    assert len(marked) == MAX_NEW_ITEMS
    assert all(names.index(name) % 2 for name in marked)
    for _ in range(4):
        shop.clock.now += WINDOW_S / MAX_JUDGEMENTS
        shop.observe(1, 0)
    assert all(map(shop.guard.of_item, names))
    assert shop.guard.item_spikes == len(names)
    shop.clock.now += WINDOW_S
    shop.observe(100_000, 25_000, names * 50)
    assert all(map(shop.guard.of_item, names))  # also those whose turn has not come again


def test_an_item_with_many_alerts_is_followed_through_a_flood_of_others() -> None:
    shop = calm(max_items=10)
    for flood in range(1000):  # each tenth alert is about hats, all others about an item of their own
        shop.observe(100, 10, ["hats", *(f"{flood}-{i}" for i in range(9))])
    shop.clock.now += WINDOW_S / MAX_JUDGEMENTS
    shop.observe(100, 10)
    assert shop.guard.of_item("hats")


def test_an_item_is_not_forgotten_again_and_again_for_those_that_came_before_it() -> None:
    shop = calm(max_items=10)
    shop.observe(1000, 1000, [f"item {i}" for i in range(10)] * 100)
    for flood in range(20):
        shop.observe(100, 70, [*["hats"] * 50, *(f"{flood}-{i}" for i in range(20))])
    shop.clock.now += WINDOW_S / MAX_JUDGEMENTS
    shop.observe(1, 0)
    assert shop.guard.of_item("hats")


def test_the_usual_share_of_an_item_is_forgotten_with_the_item() -> None:
    shop = calm(max_items=10)
    for flood in range(50):
        shop.observe(1000, 900, [f"{flood}-{i}" for i in range(9)] * 100)
        shop.clock.now += WINDOW_S / MAX_JUDGEMENTS
        assert len(shop.guard._usual_of) <= 20


def test_forgetting_items_is_no_rise_of_those_that_are_remembered() -> None:
    shop, names = calm(max_items=20), [f"item {i}" for i in range(41)]
    shop.windows(60, (10_000, 4100, names * 100))  # too many to follow, so each loses what it had
    marked = shop.guard.item_spikes
    shop.window((10_000, 4000, names[:40] * 100))  # just few enough
    assert shop.guard.item_spikes == marked


def test_a_spike_is_counted_once_a_window() -> None:
    shop = calm()
    shop.window(
        *[
            (
                1000,
                500,
                ["hats"] * 50,
            )
        ]
        * 10
    )
    assert (shop.guard.spikes, shop.guard.item_spikes) == (1, 1)
    shop.window(*[(1000, 500, [*["hats"] * 50, *["gloves"] * 50])] * 10)
    assert (shop.guard.spikes, shop.guard.item_spikes) == (2, 3)
    shop.window(*[(1000, 50, ())] * 10)
    assert (shop.guard.spikes, shop.guard.item_spikes) == (2, 3)


def test_a_window_is_judged_at_most_so_often(monkeypatch: pytest.MonkeyPatch) -> None:
    shop, looks, look = calm(), [], SpikeGuard._judge

    def counted(guard: SpikeGuard, now: float) -> None:
        looks.append(now)
        look(guard, now)

    monkeypatch.setattr(SpikeGuard, "_judge", counted)
    shop.window(*[(10, 0, ())] * 20_000)
    assert MAX_JUDGEMENTS - 3 <= len(looks) <= MAX_JUDGEMENTS


batches = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 3), st.just(WINDOW_S), st.floats(0, 1e12)),
        st.one_of(st.just(500), st.integers(0, 2**63)),
        st.one_of(st.just(20), st.integers(0, 2**63)),
        st.lists(st.one_of(st.sampled_from("ab"), st.text(max_size=2)), max_size=30).map(lambda items: items * 9),
    ),
    max_size=80,
)


@given(batches, st.integers(1, 5), st.integers(MIN_HISTORY, 12))
def test_any_sequence_of_batches_is_counted_within_bounds(
    given_batches: list[tuple[float, int, int, list[str]]], max_items: int, windows: int
) -> None:
    shop = Shop(windows=windows, max_items=max_items)
    guard = shop.guard
    for pause, answers, alerts, items in given_batches:
        shop.clock.now += pause
        shop.observe(answers, alerts, items)
        assert len(guard._window.items) <= 2 * max_items
        assert len(guard._items) <= 2 * max_items
        assert len(guard._usual_of) <= 2 * max_items
        assert len(guard._before) <= windows
        assert all(len(window.items) <= max_items for window in guard._before)


@given(
    st.lists(st.tuples(st.integers(200, 5000), st.floats(0, 1)), min_size=MIN_HISTORY, max_size=20),
    st.integers(200, 5000),
    st.floats(0, 1),
    st.integers(2, 50),
)
def test_a_spike_is_still_one_with_more_traffic(
    history: list[tuple[int, float]], size: int, share: float, times: int
) -> None:
    def marked(times: int) -> bool:
        shop = Shop()
        for before, share_before in history:
            shop.window((times * before, times * int(before * share_before), ()))
        return shop.observe(times * size, times * int(size * share))

    assert marked(1) <= marked(times)
