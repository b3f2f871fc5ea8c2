"""A customer's record: an exact round trip, rubbish is one kind of error, and interests are what was looked at."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from feature_store.definitions import Interests
from feature_store.state.profile import (
    ALIAS,
    FLAGS_AT,
    MAX_CHANNELS,
    MIN_INTEREST_WEIGHT,
    OTHER,
    CountedEvents,
    Interest,
    Profile,
    ProfileSummary,
    UnreadableProfileError,
    alias_of,
    hash_event_id,
    hash_event_type,
    hour_of,
    read_summary,
)

NOW = 1_800_000_000.0
DAY = 86_400.0
LATENESS = 3 * DAY
RULES = Interests(half_life_days=7, keep=32)
HALF_LIFE = RULES.half_life_s

ids = st.text(min_size=1, max_size=64)
moments = st.integers(0, 30 * 86_400 * 8).map(lambda n: NOW - n / 8)
looked_at = st.builds(
    Interest,
    ids,
    st.integers(1, 1000),
    st.floats(2**-10, 1.0, width=32),
    moments,
)
bought = st.builds(lambda item_id, at: Interest(item_id, 0, 0.0, at), ids, moments)
interests = st.lists(looked_at | bought, max_size=6, unique_by=lambda interest: interest.item_id)
counts = st.integers(1, 2**32 - 1)
channels = st.dictionaries(st.text(min_size=1, max_size=16), counts, max_size=MAX_CHANNELS)
entries = st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**16 - 1), st.integers(0, 2**48 - 1))


def counted(found: Sequence[tuple[int, int, int]]) -> CountedEvents:
    made = CountedEvents()
    for entry in found:
        made.add(*entry)
    return made


def entries_of(found: CountedEvents) -> list[tuple[int, int, int]]:
    return [(hour, tag >> 48, tag & 2**48 - 1) for hour, tag in zip(found.hours, found.tags, strict=True)]


seen = st.just((math.inf, -math.inf)) | st.tuples(moments, moments).map(lambda pair: (min(pair), max(pair)))
records = st.builds(
    lambda scoring, response, first_last, *rest: Profile(scoring, response, None, *first_last, *rest),
    st.booleans(),
    st.booleans(),
    seen,
    interests,
    channels,
    st.lists(ids, max_size=4, unique=True),
    st.lists(entries, max_size=5, unique_by=lambda entry: entry[2]).map(counted),
)
aliases = ids.map(lambda name: Profile(alias_of=name))


# --- packing --------------------------------------------------------------------------------------------------------


@given(records | aliases)
def test_the_round_trip_is_exact(record: Profile) -> None:
    assert Profile.unpack(record.pack()) == record


@given(records | aliases, st.binary(min_size=8, max_size=8))
def test_the_position_of_a_commit_stands_at_bytes_8_to_15_and_changes_nothing(record: Profile, stamp: bytes) -> None:
    value = record.pack()
    assert value[8:16] == bytes(8)
    assert Profile.unpack(value[:8] + stamp + value[16:]) == record


@given(records | aliases)
def test_a_score_is_told_what_the_whole_record_says(record: Profile) -> None:
    result = read_summary(record.pack())
    if record.alias_of is not None:
        assert result == record.alias_of
        return
    top = record.interests[0] if record.interests and record.interests[0].views else None
    allowed = record.scoring and record.automated_response
    said = None if allowed and top is None else ProfileSummary(record.scoring, record.automated_response, top)
    assert result == said


@given(records | aliases)
def test_only_an_alias_names_the_customer_it_belongs_to(record: Profile) -> None:
    assert alias_of(record.pack()) == record.alias_of


def test_nothing_stored_is_no_alias() -> None:
    assert alias_of(None) is None


READERS = [Profile.unpack, read_summary, alias_of]

flips = st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 255)), min_size=1, max_size=4)


def mutated(value: bytes, changes: Sequence[tuple[int, int]]) -> bytes:
    result = bytearray(value)
    for at, mask in changes:
        result[at % len(result)] ^= mask
    return bytes(result)


damaged = st.one_of(
    st.binary(max_size=60),
    st.binary(max_size=80).map(lambda rest: b"tr\2" + rest),
    st.tuples(st.integers(0, 255), st.binary(max_size=80)).map(lambda x: b"tr\2" + bytes([x[0] | ALIAS]) + x[1]),
    st.tuples(records | aliases, st.integers(0, 200)).map(lambda cut: cut[0].pack()[: cut[1]]),
    st.tuples(records | aliases, st.binary(min_size=1, max_size=20)).map(lambda long: long[0].pack() + long[1]),
    st.tuples(records | aliases, flips).map(lambda flip: mutated(flip[0].pack(), flip[1])),
)


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
@given(value=damaged)
@example(value=b"tr")
@example(value=b"tr\2\4")
@example(value=b"tr\2\4" + bytes(36))
@example(value=b"tr\2\0" + bytes(32) + b"\1\0\0\0")
@example(value=b"tr\2\4" + bytes(34) + b"\1\0" + b"\2\0\xff\xfe")
def test_what_is_no_record_is_one_kind_of_error(reader: Callable[[bytes], object], value: bytes) -> None:
    with suppress(UnreadableProfileError):
        reader(value)


@given(records | aliases)
def test_a_record_that_was_cut_or_lengthened_is_none(record: Profile) -> None:
    value = record.pack()
    for torn in (*(value[:size] for size in range(len(value))), value + b"\0"):
        with pytest.raises(UnreadableProfileError):
            Profile.unpack(torn)


@given(damaged, records)
def test_what_is_taken_for_a_record_can_be_worked_with(value: bytes, other: Profile) -> None:
    try:
        record = Profile.unpack(value)
    except UnreadableProfileError:
        return
    for interest in record.interests[:2]:
        record.add_view(interest.item_id, NOW, HALF_LIFE)
    for channel in list(record.channels):
        record.add_channel(channel)
    record.prune_interests(RULES, NOW, LATENESS)
    assert Profile.unpack(record.pack()).channels == record.channels
    for both in (record.merged(other, RULES, NOW, LATENESS), other.merged(record, RULES, NOW, LATENESS)):
        assert Profile.unpack(both.pack()).aliases == both.aliases


@pytest.mark.parametrize("at", [math.nan, math.inf, -math.inf, -1.0, 1e15])
def test_a_time_that_no_event_can_have_is_unreadable(at: float) -> None:
    for record in (
        Profile(interests=[Interest("lamp", 2, 1.5, at)]),
        Profile(interests=[Interest("lamp", 0, 0.0, at)]),
    ):
        with pytest.raises(UnreadableProfileError):
            Profile.unpack(record.pack())
    with pytest.raises(UnreadableProfileError):
        read_summary(Profile(interests=[Interest("lamp", 2, 1.5, at)]).pack())
    if not math.isinf(at):
        for record in (Profile(first_seen=at, last_seen=NOW), Profile(first_seen=NOW, last_seen=at)):
            with pytest.raises(UnreadableProfileError):
                Profile.unpack(record.pack())


@pytest.mark.parametrize("weight", [math.nan, math.inf, 0.0, -1.0, 1e6])
def test_a_weight_that_no_views_can_have_is_unreadable(weight: float) -> None:
    value = Profile(interests=[Interest("lamp", 2, weight, NOW)]).pack()
    for reader in (Profile.unpack, read_summary):
        with pytest.raises(UnreadableProfileError):
            reader(value)


def test_a_customer_is_no_alias_because_a_bit_flipped() -> None:
    # Else the customer would be the alias of one of its own aliases.
    value = bytearray(Profile(first_seen=NOW, last_seen=NOW, aliases=["cookie"]).pack())
    value[FLAGS_AT] |= ALIAS
    for reader in (*READERS[:2], alias_of):
        with pytest.raises(UnreadableProfileError):
            reader(bytes(value))


# --- interests ------------------------------------------------------------------------------------------------------

# What happened to an item, by whom it is told: at day, item, whether bought.
steps = st.tuples(st.integers(0, 20).map(lambda n: NOW - 20 * DAY + n * DAY), st.sampled_from("abc"), st.booleans())


def happened(history: Sequence[tuple[float, str, bool]], record: Profile | None = None) -> Profile:
    record = Profile() if record is None else record
    for at, item, is_purchase in history:
        if is_purchase:
            record.add_purchase(item, at)
        else:
            record.add_view(item, at, HALF_LIFE)
    return record


def plain(history: Sequence[tuple[float, str, bool]]) -> dict[str, list[float]]:
    """By item, the times of the views after its latest purchase; items without any are left out."""
    views: dict[str, list[float]] = {}
    for item in {item for _, item, _ in history}:
        last = max((at for at, name, is_purchase in history if name == item and is_purchase), default=-math.inf)
        views[item] = [at for at, name, is_purchase in history if name == item and not is_purchase and at > last]
    return {item: times for item, times in views.items() if times}


def weight(times: Sequence[float], now: float) -> float:
    return sum(2 ** (-(now - at) / HALF_LIFE) for at in times)


def shown(record: Profile) -> dict[str, Interest]:
    return {interest.item_id: interest for interest in record.interests if interest.views}


@given(st.lists(steps, max_size=20))
def test_interests_in_the_order_of_time_are_the_views_since_the_last_purchase(
    history: list[tuple[float, str, bool]],
) -> None:
    # Of what happened at one moment, purchases come last: a view of the same moment is one from before.
    history.sort(key=lambda step: (step[0], step[2]))
    record = happened(history)
    expected = plain(history)
    assert shown(record).keys() == expected.keys()
    for item, interest in shown(Profile.unpack(record.pack())).items():
        assert (interest.views, interest.at) == (len(expected[item]), max(expected[item]))
        assert interest.weight_at(NOW, HALF_LIFE) == pytest.approx(weight(expected[item], NOW), rel=1e-6)


@given(st.data(), st.lists(steps.filter(lambda step: not step[2]), max_size=12))
def test_views_may_come_in_any_order(data: st.DataObject, history: list[tuple[float, str, bool]]) -> None:
    result, expected = shown(happened(data.draw(st.permutations(history)))), plain(history)
    assert result.keys() == expected.keys()
    for item, interest in result.items():
        assert (interest.views, interest.at) == (len(expected[item]), max(expected[item]))
        assert interest.weight_at(NOW, HALF_LIFE) == pytest.approx(weight(expected[item], NOW))


@given(st.data(), st.lists(steps, max_size=12))
def test_whatever_the_order_what_was_bought_after_all_views_is_gone_and_no_other(
    data: st.DataObject, history: list[tuple[float, str, bool]]
) -> None:
    result, expected = shown(happened(data.draw(st.permutations(history)))), plain(history)
    assert result.keys() == expected.keys()
    for item, interest in result.items():
        views = [at for at, name, is_purchase in history if name == item and not is_purchase]
        assert 1 <= interest.views <= len(views)
        assert interest.at == max(expected[item])


@pytest.mark.parametrize(
    ("history", "views"),
    [
        pytest.param([(1, "view"), (2, "buy")], 0, id="bought"),
        pytest.param([(2, "buy"), (1, "view")], 0, id="a late view of what was bought"),
        pytest.param([(2, "buy"), (2, "view")], 0, id="at the very moment"),
        pytest.param([(1, "view"), (3, "buy"), (2, "view")], 0, id="a late view from before the purchase"),
        pytest.param([(1, "view"), (2, "buy"), (3, "view"), (4, "view")], 2, id="looked at again"),
        pytest.param([(1, "view"), (3, "view"), (2, "buy")], 1, id="a late purchase keeps the view after it"),
        pytest.param([(3, "buy"), (2, "buy"), (2.5, "view")], 0, id="a late purchase before the last one"),
        pytest.param([(1, "view")] * 5, 5, id="five views of one moment"),
    ],
)
def test_a_purchase_is_done_with_the_views_before_it(history: list[tuple[float, str]], views: int) -> None:
    record = happened([(NOW + at, "lamp", what == "buy") for at, what in history])
    assert [interest.views for interest in record.interests] == [views]


@given(interests, st.lists(st.floats(0, 100), max_size=5))
def test_the_best_comes_first_and_stays_there_while_nothing_happens(
    mine: list[Interest], later_days: list[float]
) -> None:
    record = Profile(interests=mine)
    record.prune_interests(RULES, NOW, LATENESS)
    views = [interest.views > 0 for interest in record.interests]
    assert views == sorted(views, reverse=True)
    best = [interest for interest in record.interests if interest.views]
    for days in (0.0, *later_days):
        weights = [interest.weight_at(NOW + days * DAY, HALF_LIFE) for interest in best]
        assert all(a >= b * (1 - 1e-9) for a, b in pairwise(weights))


@given(st.data(), interests)
def test_the_order_does_not_depend_on_the_order_of_arrival(data: st.DataObject, mine: list[Interest]) -> None:
    item, two = Profile(interests=mine), Profile(interests=data.draw(st.permutations(mine)))
    item.prune_interests(RULES, NOW, LATENESS)
    two.prune_interests(RULES, NOW, LATENESS)
    assert item.interests == two.interests


@given(interests, st.integers(0, 4))
def test_no_more_than_the_best_are_kept(mine: list[Interest], keep: int) -> None:
    every, several = Profile(interests=mine), Profile(interests=mine)
    every.prune_interests(RULES, NOW, LATENESS)
    several.prune_interests(RULES.model_copy(update={"keep": keep}), NOW, LATENESS)
    assert several.interests == every.interests[:keep]


@given(interests)
def test_what_has_faded_is_forgotten_and_nothing_else(mine: list[Interest]) -> None:
    record = Profile(interests=mine)
    record.prune_interests(RULES, NOW, LATENESS)
    kept = {interest.item_id for interest in record.interests}
    for interest in mine:
        faded = interest.weight_at(NOW, HALF_LIFE) < MIN_INTEREST_WEIGHT
        over = NOW - interest.at > LATENESS  # no view from before the purchase comes any more
        assert (interest.item_id in kept) is not (faded if interest.views else over)


def test_a_look_is_forgotten_after_five_half_lives() -> None:
    for half_lives, views in ((4.999, 1), (5.001, 0)):
        record = happened([(NOW - half_lives * HALF_LIFE, "lamp", False)])
        record.prune_interests(RULES, NOW, LATENESS)
        assert len(record.interests) == views


def test_an_event_of_a_clock_that_is_ahead_weighs_no_more_than_one_of_now() -> None:
    assert Interest("lamp", 1, 1.0, NOW + 300).weight_at(NOW, HALF_LIFE) == 1.0


# --- merging --------------------------------------------------------------------------------------------------------


def merged(a: Profile, b: Profile) -> Profile:
    return a.merged(b, RULES, NOW, LATENESS)


@given(records, records)
def test_merging_does_not_care_who_stays(a: Profile, b: Profile) -> None:
    ab, ba = merged(a, b), merged(b, a)
    assert (ab.scoring, ab.automated_response, ab.alias_of) == (ba.scoring, ba.automated_response, None)
    assert (ab.first_seen, ab.last_seen) == (ba.first_seen, ba.last_seen)
    assert ab.interests == ba.interests
    assert ab.channels == ba.channels
    assert sorted(ab.aliases) == sorted(ba.aliases)
    assert set(ab.counted.ids) == set(ba.counted.ids)
    assert len(ab.counted) == len(ba.counted)


@given(records)
def test_merging_with_somebody_new_changes_nothing_but_what_has_faded(a: Profile) -> None:
    kept = Profile.unpack(a.pack())
    kept.prune_interests(RULES, NOW, LATENESS)
    for both in (merged(a, Profile()), merged(Profile(), a)):
        assert both == kept


@given(records, records)
def test_the_stricter_consent_wins_and_all_that_was_seen_stays(a: Profile, b: Profile) -> None:
    both = merged(a, b)
    assert both.scoring is (a.scoring and b.scoring)
    assert both.automated_response is (a.automated_response and b.automated_response)
    assert both.first_seen == min(a.first_seen, b.first_seen)
    assert both.last_seen == max(a.last_seen, b.last_seen)
    assert set(both.aliases) == {*a.aliases, *b.aliases}
    assert len(both.aliases) == len(set(both.aliases))


@given(st.lists(steps.filter(lambda s: not s[2]), max_size=10), st.lists(steps.filter(lambda s: not s[2]), max_size=10))
def test_the_views_of_two_are_those_of_one_who_looked_at_all_of_it(
    mine: list[tuple[float, str, bool]], yours: list[tuple[float, str, bool]]
) -> None:
    both, item = merged(happened(mine), happened(yours)), happened([*mine, *yours])
    item.prune_interests(RULES, NOW, LATENESS)
    assert [i.item_id for i in both.interests if i.views] == [i.item_id for i in item.interests if i.views]
    for a, b in zip(both.interests, item.interests, strict=True):
        assert (a.views, a.at) == (b.views, b.at)
        assert a.weight == pytest.approx(b.weight)


@pytest.mark.parametrize(("bought_at", "views"), [(1.0, 2), (3.0, 0)])
def test_what_one_of_two_bought_is_done_with_for_both(bought_at: float, views: int) -> None:
    looked = happened([(NOW + 1.5, "lamp", False), (NOW + 2.0, "lamp", False)])
    buyer = happened([(NOW + bought_at, "lamp", True)])
    for both in (merged(looked, buyer), merged(buyer, looked)):
        assert [interest.views for interest in both.interests] == [views]


@given(records, records)
def test_merging_leaves_its_arguments_as_they_were(a: Profile, b: Profile) -> None:
    before = a.pack(), b.pack()
    both = merged(a, b)
    for interest in both.interests:
        interest.views += 1
    both.channels.clear()
    both.aliases.append("x")
    both.counted.add(1, 2, 3)
    assert Profile.unpack(before[0]) == a
    assert [(c, n) for c, n in b.channels.items()] == list(Profile.unpack(before[1]).channels.items())
    assert len(b.counted) == len(Profile.unpack(before[1]).counted)


# --- channels -------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 40).map(str), max_size=200))
def test_channels_are_counted_and_beyond_a_few_counted_as_one(came_from: list[str]) -> None:
    record = Profile()
    for channel in came_from:
        record.add_channel(channel)
    first = list(dict.fromkeys(came_from))[:MAX_CHANNELS]
    expected = Counter(channel if channel in first else OTHER for channel in came_from)
    assert record.channels == expected


def test_a_customer_of_many_identities_has_no_more_channels_than_any_other() -> None:
    # Each count is one byte of the packed value.
    result = Profile()
    for identity in range(40):
        item = Profile()
        for channel in range(MAX_CHANNELS):
            item.add_channel(f"{identity}-{channel}")
        result = merged(result, item) if identity % 2 else merged(item, result)
    assert len(result.channels) <= MAX_CHANNELS + 1
    assert sum(result.channels.values()) == 40 * MAX_CHANNELS
    assert Profile.unpack(result.pack()) == result


# --- events counted -------------------------------------------------------------------------------------------------


@given(st.lists(entries, max_size=30), st.integers(0, 2**32 - 1))
def test_what_is_too_old_to_come_again_is_forgotten_and_nothing_else(
    found: list[tuple[int, int, int]], hour: int
) -> None:
    remembered = counted(found)
    remembered.drop_before(hour)
    kept = [entry for entry in found if entry[0] >= hour]
    assert entries_of(remembered) == kept
    assert len(remembered) == len(kept)


def test_an_event_that_both_have_counted_stands_once_and_those_without_an_id_all() -> None:
    ours, yours = counted([(1, 1, 7), (1, 1, 0), (2, 1, 8)]), counted([(1, 1, 7), (1, 1, 0), (3, 1, 9)])
    both = ours.merged(yours)
    assert sorted(entries_of(both)) == [(1, 1, 0), (1, 1, 0), (1, 1, 7), (2, 1, 8), (3, 1, 9)]
    assert both.ids == {7, 8, 9}
    assert entries_of(ours) == [(1, 1, 7), (1, 1, 0), (2, 1, 8)]
    assert entries_of(yours) == [(1, 1, 7), (1, 1, 0), (3, 1, 9)]


@given(st.text(max_size=100))
def test_ids_and_types_are_small_numbers_and_an_id_is_never_that_of_none(text: str) -> None:
    assert 0 < hash_event_id(text) < 2**48
    assert 0 <= hash_event_type(text) < 2**16


def test_ids_that_differ_in_a_letter_differ() -> None:
    assert len({hash_event_id(f"order-{n}") for n in range(100_000)}) == 100_000


@pytest.mark.parametrize(("t", "hour"), [(0.0, 0), (3599.9, 0), (3600.0, 1), (1e300, 2**32 - 1)])
def test_hours_count_from_1970_and_fit_into_32_bits(t: float, hour: int) -> None:
    assert hour_of(t) == hour
