"""Access to Redis for commands (synchronous): a client, the event log, and the states of one layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, Final, Self

from feature_store.errors import StoreUnavailableError
from feature_store.online.commit import (
    SCRIPT,
    CommitResult,
    Group,
    cluster_commands,
    cluster_result,
    commit_result,
    keys_and_arguments,
)
from feature_store.online.keys import ARCHIVED, CHUNK, HELD, LOG, STORED_LAYOUTS, Keys, log_key, profile_keys
from feature_store.online.transport.address import Kind, parse
from feature_store.online.transport.clients import FAILURES, client_at
from feature_store.state.checksum import remove_checksums, with_checksum
from feature_store.state.layout import StateLayout

TIMEOUT_S: Final = 30.0
HOLD_S: Final = 600
"""A running load renews its hold on the log; after a killed one, the hold ends after this time."""


class CommandClient:
    """A connection of a command, to use in a ``with`` block. Every call may raise StoreUnavailableError."""

    def __init__(self, url: str, timeout_s: float = TIMEOUT_S) -> None:
        address = parse(url)
        self.is_cluster: Final = address.kind is Kind.CLUSTER
        self.redis: Final[Any] = _with_clear_errors(client_at, address, timeout_s)
        """redis-py's client; call its methods through :meth:`call`."""

    def __enter__(self) -> Self:
        self.call(self.redis.ping)
        return self

    def __exit__(self, *_: object) -> None:
        self.redis.close()

    def call(self, method: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """What a method of the client returns; StoreUnavailableError if Redis does not answer."""
        return _with_clear_errors(method, *args, **options)

    def evaluate(self, script: bytes, keys: Sequence[bytes], *arguments: bytes) -> Any:
        """What a script returns."""
        return self.call(self.redis.eval, script, len(keys), *keys, *arguments)

    def busy_us(self) -> float:
        """Microseconds that Redis has spent on the server's commands (those called by a script included)."""
        stats = self.call(self.redis.info, "commandstats")
        return float(sum(stats.get(f"cmdstat_{name}", {}).get("usec", 0) for name in ("mget", "eval", "evalsha")))

    def used_memory(self) -> int:
        """Bytes of memory that Redis uses in total."""
        return int(self.call(self.redis.info, "memory")["used_memory"])


class EventLog:
    """The log entries in Redis that wait for the archive."""

    def __init__(self, client: CommandClient) -> None:
        self._client = client
        self._redis = client.redis

    def position(self) -> int:
        """Position of the newest commit; 0 if there was none."""
        return int(self._client.call(self._redis.get, LOG) or 0)

    def entries(self, first: int, last: int) -> Iterator[tuple[int, bytes]]:
        """The entries from ``first`` to ``last`` that exist, as (position, JSON), in order."""
        for start in range(first, last + 1, CHUNK):
            positions = range(start, min(start + CHUNK, last + 1))
            entries = self._client.call(self._redis.mget, [log_key(position) for position in positions])
            yield from ((at, entry) for at, entry in zip(positions, entries, strict=True) if entry is not None)

    def archived(self) -> int | None:
        """Position up to which everything is archived; None if there is no archive."""
        position = self._client.call(self._redis.get, ARCHIVED)
        return None if position is None else int(position)

    def announce_archive(self) -> None:
        """Declare that there is an archive, so that later erasures are logged for it."""
        self._client.call(self._redis.set, ARCHIVED, 0, nx=True)

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Keep entries of later commits although they are archived; :meth:`hold` renews it."""
        self.hold(self.position())
        try:
            yield
        finally:
            self._client.call(self._redis.delete, HELD)

    def hold(self, position: int) -> None:
        """Keep entries after ``position`` for the next HOLD_S seconds."""
        self._client.call(self._redis.set, HELD, position, ex=HOLD_S)

    def forget(self, first: int, last: int) -> None:
        """Note that everything up to ``last`` is archived, and remove the entries from ``first`` that are not held."""
        held = self._client.call(self._redis.get, HELD)
        last = last if held is None else min(last, int(held))
        if first <= last:
            self._client.call(self._redis.set, ARCHIVED, last)
        for start in range(first, last + 1, CHUNK):
            self._client.call(self._redis.unlink, *map(log_key, range(start, min(start + CHUNK, last + 1))))


class StateWriter:
    """Loads and inspects the states of one layout, and profiles; to use in a ``with`` block."""

    def __init__(self, url: str, layout: StateLayout, timeout_s: float = TIMEOUT_S) -> None:
        self.client: Final = CommandClient(url, timeout_s)
        self.log: Final = EventLog(self.client)
        self._redis = self.client.redis
        self._keys = Keys(layout.fingerprint)
        self._script = self._redis.register_script(SCRIPT)

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
        if self.client.is_cluster:
            pipeline = self._redis.pipeline()
            for command, *arguments in cluster_commands(groups):
                pipeline.execute_command(command.decode(), *arguments)
            return cluster_result(groups, self.client.call(pipeline.execute))
        keys, arguments = keys_and_arguments(groups)
        return commit_result(self.client.call(self._script, keys, arguments))

    def read(self, customer_ids: Sequence[str]) -> list[bytes | None]:
        """Packed states, in order; None for a customer without one."""
        return self._values(self._keys.states(customer_ids))

    def read_profiles(self, customer_ids: Sequence[str]) -> list[bytes | None]:
        """Packed profiles, in order; None for a customer without one."""
        return self._values(profile_keys(customer_ids))

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


def _with_clear_errors(method: Callable[..., Any], *args: Any, **options: Any) -> Any:
    try:
        return method(*args, **options)
    except FAILURES as error:
        raise StoreUnavailableError(type(error).__name__) from error
