"""The states of one layout in Redis, for commands (synchronous)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final, Self

from feature_store.online.command_client import TIMEOUT_S, CommandClient
from feature_store.online.commit import CommitResult, Group
from feature_store.online.commit_groups import commit_groups
from feature_store.online.event_log import EventLog
from feature_store.online.keys import CHUNK, STORED_LAYOUTS, Keys, profile_keys, tombstone_keys
from feature_store.state.checksum import remove_checksums, with_checksum
from feature_store.state.layout import StateLayout


class StateWriter:
    """Loads and inspects the states of one layout, and profiles; to use in a ``with`` block."""

    def __init__(
        self, url: str, layout: StateLayout, timeout_s: float = TIMEOUT_S, *, accept_missing: bool = False
    ) -> None:
        self.client: Final = CommandClient(url, timeout_s)
        self.log: Final = EventLog(self.client, accept_missing=accept_missing)
        self._redis = self.client.redis
        self._keys = Keys(layout.fingerprint)

    def __enter__(self) -> Self:
        self.client.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.client.__exit__(*error)

    def write(self, customer_ids: Sequence[str], values: Sequence[bytes]) -> None:
        """Store packed states, replacing existing ones."""
        self._set(self._keys.states(customer_ids), values)

    def write_profiles(self, customer_ids: Sequence[str], values: Sequence[bytes]) -> None:
        """Store packed profiles, replacing existing ones."""
        self._set(profile_keys(customer_ids), values)

    def commit(self, groups: Sequence[Group]) -> CommitResult:
        """Write groups, each only if no other commit changed its values first; in a cluster key by key."""
        return commit_groups(self.client, groups)

    def read(self, customer_ids: Sequence[str]) -> list[bytes | None]:
        """Packed states, in order; None for a customer without one."""
        return self._values(self._keys.states(customer_ids))

    def read_profiles(self, customer_ids: Sequence[str]) -> list[bytes | None]:
        """Packed profiles, in order; None for a customer without one."""
        return self._values(profile_keys(customer_ids))

    def read_tombstones(self, erasure_key: bytes, customer_ids: Sequence[str]) -> list[bytes | None]:
        """What is kept of erased customers, packed, in order; None for others."""
        return self._values(tombstone_keys(erasure_key, customer_ids))

    def customer_ids(self) -> Iterator[str]:
        """Ids of all customers that have a state of this layout, in no particular order, each once."""
        seen: set[bytes] = set()
        scan = self._redis.scan_iter(self._keys.prefix + b"*", CHUNK)
        while keys := self.client.call(lambda: list(islice(scan, CHUNK))):
            for key in set(keys) - seen:
                yield key[len(self._keys.prefix) :].decode("utf-8", "surrogateescape")
            seen.update(keys)

    def delete(self, customer_ids: Sequence[str]) -> None:
        """Remove states."""
        keys = iter(self._keys.states(customer_ids))
        while chunk := list(islice(keys, CHUNK)):
            self.client.call(self._redis.unlink, *chunk)

    def record_load(self, facts: dict[str, float]) -> None:
        """Store facts about a load for :meth:`last_load`, and that there are states of this layout."""
        self.client.call(self._redis.sadd, STORED_LAYOUTS, self._keys.load.rpartition(b":")[2])
        values = {name: repr(fact) for name, fact in facts.items()}
        self.client.call(self._redis.hset, self._keys.load, None, None, values)

    def last_load(self) -> dict[str, float] | None:
        """The facts that :meth:`record_load` stored; None if this layout was not loaded."""
        facts = self.client.call(self._redis.hgetall, self._keys.load)
        return {name.decode(): float(fact) for name, fact in facts.items()} or None

    def _set(self, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        items = iter([(key, with_checksum(key, value)) for key, value in zip(keys, values, strict=True)])
        while chunk := dict(islice(items, CHUNK)):
            self.client.call(self._redis.mset, chunk)

    def _values(self, keys: Sequence[bytes]) -> list[bytes | None]:
        remaining, values = iter(keys), []
        while chunk := list(islice(remaining, CHUNK)):
            values += remove_checksums(chunk, self.client.call(self._redis.mget, chunk))
        return values
