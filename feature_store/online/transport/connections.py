"""Connections to Redis, on the running event loop: opened by redis-py, then asked right over the socket.

redis-py's client costs several times as much as the exchange itself (``mget_256_ratio`` in the benchmark), so it only
connects: addresses, logins, TLS, and asking Sentinels who the master is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol

import hiredis
import redis
import redis.asyncio
import redis.asyncio.connection
import redis.asyncio.sentinel
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import RedisError as RedisError  # noqa: PLC0414  # what is answered may be one of these
from redis.exceptions import ResponseError

from feature_store.errors import (
    InputError,
    ReadOnlyStoreError,
    StoreAwayError,
    StoreFullError,
    StoreUnavailableError,
)
from feature_store.online.transport.address import Address, Host, Kind

Command = tuple[bytes, ...]
SLOTS: Final = REDIS_CLUSTER_HASH_SLOTS
slot_of: Final = key_slot
NOT_YET: Final = object()
PING: Final = (b"PING",)
ROLE: Final = (b"ROLE",)
MASTER: Final = b"master"
REFUSING: Final = frozenset(("LOADING", "BUSY", "MASTERDOWN", "CLUSTERDOWN", "NOAUTH", "WRONGPASS", "TRYAGAIN"))
"""Begins an answer by which Redis says that it cannot answer anything just now."""
READ_ONLY: Final = frozenset(("READONLY", "MISCONF", "NOREPLICAS"))
FULL: Final = "OOM"


def refusal(reply: RedisError, *, master: bool = False) -> StoreUnavailableError:
    """What an error that Redis answered with means; ``master``: it was asked as one, and others may be it now."""
    kind = str(reply).partition(" ")[0]
    if kind in REFUSING or (master and kind == "READONLY"):
        return StoreAwayError(kind)
    if kind == FULL:
        return StoreFullError(kind)
    if kind in READ_ONLY:
        return ReadOnlyStoreError(kind)
    return StoreUnavailableError(type(reply).__name__)


@contextmanager
def clear_url_errors() -> Iterator[None]:
    """Turn a bad URL into an error without the URL in it, which may hold a password."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise InputError("the Redis URL is not valid: write redis://[user:password@]host:port[/db]") from error


def packed(commands: Sequence[Command]) -> bytes:
    """Commands as they are sent together."""
    return b"".join(hiredis.pack_command(command) for command in commands)  # type: ignore[arg-type]  # its stub allows one argument only


class Opener(Protocol):
    """Opens connections to where Redis is now."""

    master: bool
    """Whether only a master will do."""

    async def open(self) -> Exchange:
        """A new connection; StoreAwayError where there is none. The caller bounds the time."""


class Server:
    """One server, by its URL."""

    master = False

    def __init__(self, url: str, timeout_s: float) -> None:
        with clear_url_errors():
            self._pool: Any = redis.asyncio.ConnectionPool.from_url(
                url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=_never()
            )
            self._pool.make_connection()  # refuses unknown options only now

    async def open(self) -> Exchange:
        """A new connection."""
        connection = self._pool.make_connection()
        try:
            await connection.connect()
        except (RedisError, OSError, UnicodeError) as error:  # UnicodeError: a host name that can be none
            await connection.disconnect(nowait=True)
            raise StoreAwayError(type(error).__name__) from error
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        if (task := asyncio.current_task()) is not None and task.cancelling():  # redis-py keeps that to itself
            await connection.disconnect(nowait=True)
            raise asyncio.CancelledError
        return Exchange(connection)


class Master:
    """Whoever the Sentinels say is master now, and says so itself."""

    master = True

    def __init__(self, address: Address, timeout_s: float) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._at: Host | None = None
        Server(address.at(*address.hosts[0]), timeout_s)  # refuses unknown options only now
        patience_s = timeout_s / len(address.hosts)  # they are asked in turn, and some may hang
        self._sentinels: Any = redis.asyncio.sentinel.Sentinel(())
        for host in address.hosts:
            options = {**options_of(address.sentinel_at(*host)), "socket_timeout": patience_s, "retry": _never()}
            self._sentinels.sentinels.append(redis.asyncio.Redis(**options, socket_connect_timeout=patience_s))

    async def open(self) -> Exchange:
        """A new connection to the master."""
        self._at = await self._found()
        exchange = await Server(self._address.at(*self._at), self._timeout_s).open()
        role = await _answer(exchange, ROLE, self._timeout_s)
        if role[0] != MASTER:
            await exchange.close()
            raise StoreAwayError("it is no master any more")
        return exchange

    async def moved(self) -> bool:
        """Whether another one is master than when a connection was opened last, as far as the Sentinels say so."""
        try:
            return self._at is not None and await self._found() != self._at
        except StoreAwayError:
            return False

    async def _found(self) -> Host:
        try:
            host, port = await self._sentinels.discover_master(self._address.name)
        except (RedisError, OSError, UnicodeError) as error:
            raise StoreAwayError(type(error).__name__) from error
        return str(host), int(port)

    async def close(self) -> None:
        """Close the connections to the Sentinels."""
        await self._sentinels.aclose()


class Link:
    """The connections to one server (or one master): questions, each on a connection that nobody else uses then."""

    def __init__(self, opener: Opener) -> None:
        self._opener = opener
        self._idle: list[Exchange] = []
        self._era = 0
        """Connections of an earlier one are not used again."""

    async def ask(self, commands: Sequence[Command], budget_s: float, *, once: bool = False) -> list[Any]:
        """The replies to commands that are sent together, errors among them; ``once``: never send them a second time.

        StoreAwayError where there is no connection, or no answer within ``budget_s``; StoreUnavailableError where the
        connection broke and they may be done.
        """
        sent = packed(commands)
        while True:
            era = self._era
            reused = bool(self._idle)
            if reused:
                exchange = self._idle.pop()
            else:
                exchange, budget_s = await self._opened(budget_s)
            may_be_done = once and not exchange.lost
            try:
                replies = await exchange.ask(sent, len(commands), budget_s)
            except (RedisError, OSError) as error:
                await exchange.close()
                if not reused or isinstance(error, TimeoutError):
                    raise StoreAwayError(type(error).__name__) from error
                # A connection that died while idle is no outage: ask again until a fresh one fails.
                if may_be_done:
                    raise StoreUnavailableError(type(error).__name__) from error
            except BaseException:
                await exchange.close()  # a reply may still come, and must not meet another question
                raise
            else:
                if era == self._era:
                    self._idle.append(exchange)
                else:
                    await exchange.close()
                return replies

    async def probe(self, budget_s: float) -> None:
        """Return if a new connection is answered on; StoreAwayError where it is not."""
        exchange, budget_s = await self._opened(budget_s)
        await _answer(exchange, PING, budget_s)
        self._idle.append(exchange)

    def refusal(self, reply: RedisError) -> StoreUnavailableError:
        """What an error that it answered with means."""
        return refusal(reply, master=self._opener.master)

    async def follow(self) -> None:
        """Leave a master who is none any more, though it may answer as one for a while."""
        if isinstance(self._opener, Master) and await self._opener.moved():
            await self.drop()

    async def drop(self) -> None:
        """Close the connections, as soon as nobody uses them: they may lead to where Redis was."""
        self._era += 1
        while self._idle:
            await self._idle.pop().close()

    async def close(self) -> None:
        """Close the connections."""
        await self.drop()
        if isinstance(self._opener, Master):
            await self._opener.close()

    async def _opened(self, budget_s: float) -> tuple[Exchange, float]:
        """A new connection, and what is left of the time."""
        loop = asyncio.get_running_loop()
        until = loop.time() + budget_s
        try:
            async with asyncio.timeout_at(until):
                exchange = await self._opener.open()
        except TimeoutError as error:
            raise StoreAwayError(type(error).__name__) from error
        return exchange, max(until - loop.time(), 0.0)


class Exchange(asyncio.Protocol):
    """An open connection of redis-py's, taken over: one question at a time, answered in the callback of its socket."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._reader = hiredis.Reader(replyError=ResponseError, notEnoughData=NOT_YET)
        self._answer: asyncio.Future[list[Any]] | None = None
        self._replies: list[Any] = []
        self._wanted = 0
        self.lost = False
        """Whether it is known to be closed."""
        self._transport: asyncio.Transport = connection._writer.transport  # noqa: SLF001  # nothing public leads to it
        self._transport.set_protocol(self)

    async def ask(self, packed: bytes, wanted: int, timeout_s: float) -> list[Any]:
        """The replies to ``wanted`` commands; ConnectionError or TimeoutError where they do not come."""
        if self.lost:
            raise ConnectionResetError
        loop = asyncio.get_running_loop()
        answer = self._answer = loop.create_future()
        self._replies, self._wanted = [], wanted
        timer = loop.call_later(timeout_s, self._fail, TimeoutError())
        self._transport.write(packed)
        try:
            return list(await answer)
        finally:
            timer.cancel()

    async def close(self) -> None:
        """Close without a word."""
        await self._connection.disconnect(nowait=True)

    def data_received(self, data: bytes) -> None:
        """Hand over the replies when they are whole."""
        self._reader.feed(data)
        while (found := self._reader.gets()) is not NOT_YET:
            if not isinstance(found, hiredis.PushNotification):
                self._replies.append(found)
        if len(self._replies) >= self._wanted and self._answer is not None and not self._answer.done():
            self._answer.set_result(self._replies)

    def connection_lost(self, _error: Exception | None) -> None:
        """End the waiting."""
        self.lost = True
        self._fail(ConnectionResetError())

    def _fail(self, error: OSError) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)


async def _answer(exchange: Exchange, command: Command, budget_s: float) -> Any:
    """What a new connection is answered; StoreAwayError where it is not, or with an error."""
    try:
        (reply,) = await exchange.ask(packed([command]), 1, budget_s)
    except OSError as error:
        await exchange.close()
        raise StoreAwayError(type(error).__name__) from error
    except BaseException:
        await exchange.close()
        raise
    if isinstance(reply, RedisError):
        await exchange.close()
        raise StoreAwayError(str(reply).partition(" ")[0])
    return reply


def options_of(url: str) -> dict[str, Any]:
    """What redis-py's clients take for a server's URL."""
    with clear_url_errors():
        options = dict(redis.asyncio.connection.parse_url(url))
    if options.pop("connection_class", None) is not None:
        options["ssl"] = True
    return options


def link_to(address: Address, timeout_s: float) -> Link:
    """Connections to a server, or to the master that Sentinels know."""
    opener = Master(address, timeout_s) if address.kind is Kind.SENTINEL else Server(address.url, timeout_s)
    return Link(opener)


def _never() -> Retry:
    return Retry(NoBackoff(), 0)
