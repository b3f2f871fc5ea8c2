"""The key of customer ids: what it protects, where it is, and what is refused."""

from __future__ import annotations

import hashlib
import hmac
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from feature_store.errors import InputError
from tests.made_evidence import made_rows
from training.customer_key import KEY_BYTES, default_key_path, read_key, read_or_create_key
from training.evidence import hashed_ids, key_name, with_keyed_ids

CANDIDATES = [str(number) for number in range(1, 10_001)]
"""Every id that customers of the shop could have."""


def by_plain_hashes() -> set[int]:
    """The candidates as an attacker without the key would hash them."""
    digests = [
        digest
        for name in CANDIDATES
        for data in (name.encode(), hashlib.blake2b(name.encode(), digest_size=8, person=b"tidemark").digest())
        for digest in (
            data,
            hashlib.blake2b(data, digest_size=8).digest(),
            hashlib.blake2b(data, digest_size=8, person=b"tidemark").digest(),
            hashlib.sha256(data).digest(),
            hmac.digest(b"", data, "sha256"),
            hmac.digest(bytes(KEY_BYTES), data, "sha256"),
        )
    ]
    return {int.from_bytes(digest[:8], order) for digest in digests for order in ("little", "big")}


def test_hashing_every_possible_id_recovers_no_customer_without_the_key(tmp_path: Path) -> None:
    key = read_or_create_key(tmp_path / "models.key")
    customers = hashed_ids(CANDIDATES[:2000])
    rows = made_rows("churn", customers=2000)
    plain = replace(rows, customer=np.resize(customers, len(rows.label)))
    recovered = set(np.unique(plain.customer).tolist()) & by_plain_hashes()
    assert len(recovered) == 2000, "the attack works on hashes without a key"
    keyed = with_keyed_ids(plain, key)
    assert set(np.unique(keyed.customer).tolist()) & by_plain_hashes() == set()
    assert len(np.unique(keyed.customer)) == 2000


def test_a_customer_has_the_same_hash_in_all_bundles_of_a_key_and_another_with_another_key() -> None:
    rows = made_rows("churn", customers=300)
    first, again = with_keyed_ids(rows, b"a" * KEY_BYTES), with_keyed_ids(rows, b"a" * KEY_BYTES)
    np.testing.assert_array_equal(first.customer, again.customer)
    other = with_keyed_ids(rows, b"b" * KEY_BYTES)
    assert not np.isin(other.customer, first.customer).any()
    assert key_name(b"a" * KEY_BYTES) != key_name(b"b" * KEY_BYTES)


def test_the_key_is_beside_the_registry_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    registry = tmp_path / "models"
    path = default_key_path(registry)
    assert path == tmp_path / "models.key"
    assert read_key(path) is None
    key = read_or_create_key(path)
    assert len(key) == KEY_BYTES
    assert path.stat().st_mode & 0o777 == 0o600
    assert [read_key(path), read_or_create_key(path)] == [key, key]
    assert [entry.name for entry in tmp_path.iterdir()] == ["models.key"]


@pytest.mark.parametrize("content", ["", "00", "not hexadecimal", "ü" * 32])
def test_a_damaged_key_is_not_replaced(tmp_path: Path, content: str) -> None:
    path = tmp_path / "models.key"
    path.write_text(content)
    path.chmod(0o600)
    for read in (read_key, read_or_create_key):
        with pytest.raises(InputError, match=r"models.key (is damaged|cannot be read)"):
            read(path)
    assert path.read_text() == content


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "models.key"
    read_or_create_key(path)
    path.chmod(0o640)
    with pytest.raises(InputError, match="can be read by other users: run chmod 600"):
        read_key(path)


def test_a_key_that_cannot_be_read_is_named_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "models.key"
    path.mkdir()  # not even root can read it as a file
    with pytest.raises(InputError, match=r"models.key cannot be read .*: make it readable .* --customer-key"):
        read_or_create_key(path)


def test_a_key_that_cannot_be_written_is_named_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="cannot be written: No space left on device: name another file"):
        read_or_create_key(tmp_path / "models.key")
    assert list(tmp_path.iterdir()) == []
