"""Online feature store: one packed value per customer in Redis. The only module that imports redis.

Keys are ``tm:<fingerprint>:<customer_id>``; the hash ``tm:<fingerprint>`` says what was loaded last. States of bundles
with other definitions live beside them under their own fingerprint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, Final, Self

import hiredis
import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from feature_store.errors import InputError, StoreUnavailableError
from feature_store.state import StateBatch, StateLayout

CHUNK: Final = 1000


class Keys:
    """Names of the keys of one fingerprint."""

    def __init__(self, fingerprint: str) -> None:
        self.load: Final = f"tm:{fingerprint}".encode()
        self.prefix: Final = self.load + b":"

    def of(self, customer_ids: Sequence[str]) -> list[bytes]:
        """Keys of customers, in order."""
        prefix = self.prefix
        # surrogateescape: a foreign key that is not text can be named all the same
        return [prefix + customer_id.encode("utf-8", "surrogateescape") for customer_id in customer_ids]


class StateReader:
    """Reads states for the server: one MGET per batch, on the running event loop.

    Talks over redis-py's connections rather than its client, whose commands, pools and retries cost more than the
    exchange itself (``mget_256_ratio`` in the benchmark): all that is asked here are two commands.
    """

    def __init__(self, url: str, layout: StateLayout, timeout_s: float) -> None:
        self._keys = Keys(layout.fingerprint)
        self._layout = layout
        with _clear_url_errors():
            self._pool: Any = redis.asyncio.ConnectionPool.from_url(
                url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=AsyncRetry(NoBackoff(), 0)
            )
            self._pool.make_connection()  # refuses unknown options only now
        self._idle: list[Any] = []

    async def read(self, customer_ids: Sequence[str]) -> StateBatch:
        """States of customers, in order; StoreUnavailableError where Redis does not answer in time."""
        return self._layout.unpack(await self._ask(b"MGET", *self._keys.of(customer_ids)))

    async def ping(self) -> None:
        """Return if Redis answers; StoreUnavailableError if it does not."""
        await self._ask(b"PING")

    async def close(self) -> None:
        """Close the connections."""
        while self._idle:
            await self._idle.pop().disconnect()

    async def _ask(self, *command: bytes) -> Any:
        packed = hiredis.pack_command(command)  # type: ignore[arg-type]  # its stub allows one argument only
        while True:
            connection = self._idle.pop() if self._idle else self._pool.make_connection()
            reused = connection.is_connected
            try:
                await connection.send_packed_command([packed], check_health=False)
                reply = await connection.read_response(disable_decoding=True)
            except (RedisError, OSError) as error:
                await connection.disconnect(nowait=True)
                # A connection that died while idle is no outage: ask again until a fresh one fails.
                if not reused or isinstance(error, RedisTimeoutError):
                    raise StoreUnavailableError(type(error).__name__) from error
            except BaseException:
                await connection.disconnect(nowait=True)  # a reply may still come, and must not meet another question
                raise
            else:
                self._idle.append(connection)
                return reply


class StateWriter:
    """Loads and inspects the states of one fingerprint, for commands (synchronous)."""

    def __init__(self, url: str, layout: StateLayout, timeout_s: float = 30.0) -> None:
        self._keys = Keys(layout.fingerprint)
        with _clear_url_errors():
            self._redis: Any = redis.Redis.from_url(url, socket_timeout=timeout_s, socket_connect_timeout=5.0)
            self._redis.connection_pool.make_connection()  # refuses unknown options only now

    def __enter__(self) -> Self:
        self._call(self._redis.ping)
        return self

    def __exit__(self, *_: object) -> None:
        self._redis.close()

    def write(self, customer_ids: Sequence[str], values: Sequence[bytes]) -> None:
        """Store packed states, replacing those that are there."""
        items = iter(zip(self._keys.of(customer_ids), values, strict=True))
        while chunk := dict(islice(items, CHUNK)):
            self._call(self._redis.mset, chunk)

    def read(self, customer_ids: Sequence[str]) -> list[bytes | None]:
        """Packed states, in order; None where there is none."""
        keys, values = iter(self._keys.of(customer_ids)), []
        while chunk := list(islice(keys, CHUNK)):
            values += self._call(self._redis.mget, chunk)
        return values

    def customer_ids(self) -> Iterator[str]:
        """Ids of all customers that have a state under this fingerprint, in no order, each once."""
        seen: set[bytes] = set()
        cursor = 0
        while True:
            cursor, keys = self._call(self._redis.scan, cursor, self._keys.prefix + b"*", CHUNK)
            for key in set(keys) - seen:
                yield key[len(self._keys.prefix) :].decode("utf-8", "surrogateescape")
            seen.update(keys)
            if cursor == 0:
                return

    def delete(self, customer_ids: Sequence[str]) -> None:
        """Remove states."""
        keys = iter(self._keys.of(customer_ids))
        while chunk := list(islice(keys, CHUNK)):
            self._call(self._redis.unlink, *chunk)

    def used_memory(self) -> int:
        """Bytes that Redis uses, all included."""
        return int(self._call(self._redis.info, "memory")["used_memory"])

    def record_load(self, facts: dict[str, float]) -> None:
        """Remember what was loaded, for :meth:`last_load`."""
        self._call(self._redis.hset, self._keys.load, None, None, {name: repr(fact) for name, fact in facts.items()})

    def last_load(self) -> dict[str, float] | None:
        """What :meth:`record_load` remembered, None if nothing was loaded."""
        facts = self._call(self._redis.hgetall, self._keys.load)
        return {name.decode(): float(fact) for name, fact in facts.items()} or None

    def _call(self, command: Callable[..., Any], *args: Any) -> Any:
        try:
            return command(*args)
        except (RedisError, OSError, UnicodeError) as error:  # UnicodeError: a host name that can be none
            raise StoreUnavailableError(type(error).__name__) from error


@contextmanager
def _clear_url_errors() -> Iterator[None]:
    """Turn a bad URL into an error without the URL in it, which may hold a password."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise InputError("the Redis URL is not valid: write redis://[user:password@]host:port[/db]") from error
