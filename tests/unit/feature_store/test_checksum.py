"""The check over stored values: whatever is not the very value of this very key cannot be used."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store.definitions import Feature
from feature_store.online.commit import Write, position_of
from feature_store.state.checksum import with_checksum, without_checksum
from feature_store.state.layout import State, StateLayout
from feature_store.state.profile import Interest, Profile, UnreadableProfileError, read_summary

LAYOUT = StateLayout([Feature(name="visits", aggregate="count", event="visit", half_life_days=7)])
KEY, RECORD_KEY = b"tm:00000000:c", b"tm:live:c"
STATE = LAYOUT.pack(State(1.7e9, np.array([1.25]), position=7))
RECORD = Profile(
    first_seen=1.0, last_seen=1.7e9, interests=[Interest("lamp", 2, 1.5, 1.7e9)], channels={"web": 3}, aliases=["a"]
).pack()


@given(st.binary(), st.binary())
def test_what_was_sealed_opens_as_it_was(key: bytes, value: bytes) -> None:
    stored = with_checksum(key, value)
    assert without_checksum(key, stored) == value
    assert len(stored) == len(value)
    assert stored[8:16] == value[8:16]


@pytest.mark.parametrize("bit", range(8 * len(STATE)))
def test_no_bit_of_a_stored_state_flips_unseen(bit: int) -> None:
    flipped = (int.from_bytes(with_checksum(KEY, STATE), "little") ^ 1 << bit).to_bytes(len(STATE), "little")
    (valid,) = LAYOUT.unpack([without_checksum(KEY, flipped)]).valid
    assert valid == (64 <= bit < 128)  # the position is the commit's, and no part of a score


def test_no_bit_of_a_stored_record_flips_unseen() -> None:
    for bit in (*range(64), *range(128, 8 * len(RECORD))):
        flipped = (int.from_bytes(with_checksum(RECORD_KEY, RECORD), "little") ^ 1 << bit).to_bytes(
            len(RECORD), "little"
        )
        for reader in (read_summary, Profile.unpack):
            with pytest.raises(UnreadableProfileError):
                reader(without_checksum(RECORD_KEY, flipped))


def test_another_customers_value_cannot_be_used_and_still_names_its_position() -> None:
    swapped = without_checksum(b"tm:00000000:d", with_checksum(KEY, STATE))
    assert LAYOUT.unpack([swapped]).valid.tolist() == [False]
    assert position_of(swapped) == 7
    with pytest.raises(UnreadableProfileError):
        read_summary(without_checksum(b"tm:live:d", with_checksum(RECORD_KEY, RECORD)))


def test_a_commit_writes_sealed_values() -> None:
    _, head, rest = Write(KEY, None, STATE).arguments
    assert (
        without_checksum(KEY, head + (9).to_bytes(8, "little") + rest)
        == STATE[:8] + (9).to_bytes(8, "little") + STATE[16:]
    )
