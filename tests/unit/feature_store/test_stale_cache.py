"""States kept for when Redis is away: bounded, dropped where they must not be used, and not older than asked."""

from __future__ import annotations

import os
import tracemalloc

from feature_store.online.stale_cache import StaleStateCache
from feature_store.state.profile import Interest, ProfileSummary

WITHHELD = ProfileSummary(scoring=False, automated_response=True, top=None)
FOREVER = 1e9


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_state_is_given_as_it_was_read_with_what_the_record_says() -> None:
    recent = StaleStateCache(10_000, Clock())
    recent.put(["a", "b"], [b"state a", b"state b"], {1: WITHHELD}, 0)
    assert recent.get(["b", "nobody", "a"], [FOREVER] * 3) == ([b"state b", None, b"state a"], {0: WITHHELD})
    assert recent.hits == 2


def test_each_caller_sets_a_bound_of_its_own() -> None:
    clock = Clock()
    recent = StaleStateCache(10_000, clock)
    recent.put(["a"], [b"state"], {}, 0)
    clock.now = 10.0
    assert recent.get(["a", "a", "a"], [9.9, 10.0, 0.0])[0] == [None, b"state", None]


def test_a_newer_read_takes_the_place_of_an_older_one() -> None:
    clock = Clock()
    recent = StaleStateCache(10_000, clock)
    recent.put(["a"], [b"old"], {0: WITHHELD}, 0)
    size, clock.now = recent.bytes, 5.0
    recent.put(["a"], [b"new"], {}, 0)
    assert recent.get(["a"], [0.0]) == ([b"new"], {})
    assert (len(recent), recent.bytes < size) == (1, True)


def test_who_is_gone_or_unreadable_is_dropped_by_the_read_that_says_so() -> None:
    recent = StaleStateCache(10_000, Clock())
    recent.put(["gone", "torn"], [b"state", b"state"], {}, 0)
    recent.put(["gone", "torn"], [None, b""], {}, 0)
    assert (len(recent), recent.bytes) == (0, 0)


def test_who_is_forgotten_is_not_kept_by_a_read_that_began_before() -> None:
    recent = StaleStateCache(10_000, Clock())
    recent.put(["a"], [b"state"], {}, 0)
    epoch = recent.epoch
    recent.forget(["a", "never seen"])
    recent.put(["a"], [b"state from before"], {}, epoch)
    assert recent.get(["a"], [FOREVER])[0] == [None]
    recent.put(["a"], [b"state from after"], {}, recent.epoch)
    assert recent.get(["a"], [FOREVER])[0] == [b"state from after"]


def test_what_was_read_longest_ago_goes_first() -> None:
    recent = StaleStateCache(1_500, Clock())
    for name in "abcde":
        recent.put(["a", name], [b"x" * 100] * 2, {}, 0)
    assert 0 < len(recent) < 5
    assert recent.get(["a", "e", "b"], [FOREVER] * 3)[0] == [b"x" * 100, b"x" * 100, None]
    assert recent.bytes <= 1_500


def test_the_memory_it_takes_is_bounded_by_what_it_was_given() -> None:
    most = 2_000_000
    recent = StaleStateCache(most)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for start in range(0, 20_000, 64):
        ids = [f"customer-{number:08}" for number in range(start, start + 64)]
        looks = [Interest(f"item-{name}", 3, 1.5 + row, 1e9 + row) for row, name in enumerate(ids)]
        reported = {
            row: ProfileSummary(scoring=True, automated_response=True, top=look) for row, look in enumerate(looks)
        }
        recent.put(ids, [os.urandom(152) for _ in ids], reported, 0)
    del ids, reported, looks
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert most / 2 < taken < most
    assert recent.bytes <= most
