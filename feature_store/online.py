"""Online feature store: one packed value per customer in Redis. The only module that imports redis.

Keys are ``tm:<fingerprint>:<customer_id>``; the hash ``tm:<fingerprint>`` says what was loaded last. States of bundles
with other definitions live beside them under their own fingerprint.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, Final, Self

import hiredis
import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from feature_store.errors import InputError, StoreUnavailableError
from feature_store.state import StateBatch, StateLayout

CHUNK: Final = 1000
NOT_YET: Final = object()


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

    redis-py opens the connections (addresses, logins, TLS); the two commands that are asked here then go straight over
    the socket, because its client costs several times as much as the exchange (``mget_256_ratio`` in the benchmark).
    """

    def __init__(self, url: str, layout: StateLayout, timeout_s: float) -> None:
        self._keys = Keys(layout.fingerprint)
        self._layout = layout
        self._timeout_s = timeout_s
        with _clear_url_errors():
            self._pool: Any = redis.asyncio.ConnectionPool.from_url(
                url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=AsyncRetry(NoBackoff(), 0)
            )
            self._pool.make_connection()  # refuses unknown options only now
        self._idle: list[_Exchange] = []

    async def read(self, customer_ids: Sequence[str]) -> StateBatch:
        """States of customers, in order; StoreUnavailableError where Redis does not answer in time."""
        return self._layout.unpack(await self._ask(b"MGET", *self._keys.of(customer_ids)))

    async def ping(self) -> None:
        """Return if Redis answers; StoreUnavailableError if it does not."""
        await self._ask(b"PING")

    async def close(self) -> None:
        """Close the connections."""
        while self._idle:
            await self._idle.pop().close()

    async def _ask(self, *command: bytes) -> Any:
        packed = hiredis.pack_command(command)  # type: ignore[arg-type]  # its stub allows one argument only
        while True:
            reused = bool(self._idle)
            exchange = self._idle.pop() if reused else await self._open()
            try:
                reply = await exchange.ask(packed, self._timeout_s)
            except (RedisError, OSError) as error:
                await exchange.close()
                # A connection that died while idle is no outage: ask again until a fresh one fails.
                if not reused or isinstance(error, TimeoutError):
                    raise StoreUnavailableError(type(error).__name__) from error
            except BaseException:
                await exchange.close()  # a reply may still come, and must not meet another question
                raise
            else:
                self._idle.append(exchange)
                return reply

    async def _open(self) -> _Exchange:
        connection = self._pool.make_connection()
        try:
            await connection.connect()
        except (RedisError, OSError) as error:
            await connection.disconnect(nowait=True)
            raise StoreUnavailableError(type(error).__name__) from error
        if (task := asyncio.current_task()) is not None and task.cancelling():  # redis-py keeps that to itself
            await connection.disconnect(nowait=True)
            raise asyncio.CancelledError
        return _Exchange(connection)


class _Exchange(asyncio.Protocol):
    """An open connection of redis-py's, taken over: one command at a time, answered in the callback of its socket."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._replies = hiredis.Reader(replyError=ResponseError, notEnoughData=NOT_YET)
        self._reply: asyncio.Future[Any] | None = None
        self._lost = False
        self._transport: asyncio.Transport = connection._writer.transport  # noqa: SLF001  # nothing public leads to it
        self._transport.set_protocol(self)

    async def ask(self, packed: bytes, timeout_s: float) -> Any:
        """The reply to a command; RedisError, ConnectionError or TimeoutError where there is none."""
        if self._lost:
            raise ConnectionResetError
        loop = asyncio.get_running_loop()
        reply = self._reply = loop.create_future()
        timer = loop.call_later(timeout_s, self._fail, TimeoutError())
        self._transport.write(packed)
        try:
            found = await reply
        finally:
            timer.cancel()
        if isinstance(found, RedisError):
            raise found
        return found

    async def close(self) -> None:
        """Close without a word."""
        await self._connection.disconnect(nowait=True)

    def data_received(self, data: bytes) -> None:
        """Hand over the reply when it is whole."""
        self._replies.feed(data)
        while (found := self._replies.gets()) is not NOT_YET:
            if not isinstance(found, hiredis.PushNotification) and self._reply is not None and not self._reply.done():
                self._reply.set_result(found)

    def connection_lost(self, _error: Exception | None) -> None:
        """End the waiting."""
        self._lost = True
        self._fail(ConnectionResetError())

    def _fail(self, error: OSError) -> None:
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(error)


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
