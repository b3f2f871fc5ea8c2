"""Connections to Redis on the running event loop, opened by redis-py and then used directly over the socket.

redis-py's client costs several times as much as the exchange itself (``mget_256_ratio`` in the benchmark), so it is
used for connecting only: addresses, logins, TLS, and asking Sentinels which server is master.
"""

from __future__ import annotations

import asyncio
import re
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
from redis.exceptions import RedisError as RedisError  # noqa: PLC0414  # replies may be instances of it
from redis.exceptions import ResponseError

from feature_store.errors import (
    InputError,
    ReadOnlyStoreError,
    StoreAwayError,
    StoreFullError,
    StoreUnavailableError,
)
from feature_store.online.transport.address import Address, Host
from feature_store.online.transport.server_facts import CHECK, ServerFacts, facts_of, refusal_text

Command = tuple[bytes, ...]
SLOTS: Final = REDIS_CLUSTER_HASH_SLOTS
slot_of: Final = key_slot
NOT_YET: Final = object()
PING: Final = (b"PING",)
ROLE: Final = (b"ROLE",)
MASTER: Final = b"master"
REFUSING: Final = frozenset(("LOADING", "BUSY", "MASTERDOWN", "CLUSTERDOWN", "NOAUTH", "WRONGPASS", "TRYAGAIN"))
"""First words of error replies by which Redis says that it cannot answer anything at the moment."""
READ_ONLY: Final = frozenset(("READONLY", "MISCONF", "NOREPLICAS"))
FULL: Final = "OOM"
IN_SCRIPT: Final = re.compile(r"Error running script .*: -([A-Z]+) ")
"""The error reply of a command in a script, as Redis before 7.0 wraps it."""


def refusal(reply: RedisError, *, master: bool = False) -> StoreUnavailableError:
    """The exception for an error reply.

    Args:
        reply: The reply.
        master: Whether the server was used as the master; another one may be master now.
    """
    kind = match[1] if (match := IN_SCRIPT.search(str(reply))) else str(reply).partition(" ")[0]
    if kind in REFUSING or (master and kind == "READONLY"):
        return StoreAwayError(kind)
    if kind == FULL:
        return StoreFullError(kind)
    if kind in READ_ONLY:
        return ReadOnlyStoreError(kind)
    return StoreUnavailableError(refusal_text(reply))


@contextmanager
def clear_url_errors() -> Iterator[None]:
    """Turn errors about a URL into an InputError that does not contain the URL, which may hold a password."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise InputError("the Redis URL is not valid: write redis://[user:password@]host:port[/db]") from error


def packed(commands: Sequence[Command]) -> bytes:
    """The bytes that send commands together."""
    return b"".join(hiredis.pack_command(command) for command in commands)  # type: ignore[arg-type]  # its stub allows one argument only


class Connector(Protocol):
    """Opens connections to the server that is in charge now."""

    master: bool
    """Whether that has to be a master."""

    async def open(self) -> Connection:
        """A new connection; StoreAwayError if there is none. The caller limits the time."""


class ServerConnector:
    """Connects to one server."""

    master = False

    def __init__(self, url: str, timeout_s: float) -> None:
        with clear_url_errors():
            self._pool: Any = redis.asyncio.ConnectionPool.from_url(
                url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=_never()
            )
            self._timeout_s = timeout_s
            self._pool.make_connection()  # unknown options are rejected only here

    async def open(self) -> Connection:
        """A new connection."""
        connection = self._pool.make_connection()
        try:
            await connection.connect()
        except (RedisError, OSError, UnicodeError) as error:  # UnicodeError: an invalid host name
            await connection.disconnect(nowait=True)
            raise StoreAwayError(type(error).__name__) from error
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        if (task := asyncio.current_task()) is not None and task.cancelling():  # redis-py swallows the cancellation
            await connection.disconnect(nowait=True)
            raise asyncio.CancelledError
        opened = Connection(connection)
        opened.facts = await checked(opened, self._timeout_s)
        return opened


class MasterConnector:
    """Connects to the server that the Sentinels name as master, and that agrees."""

    master = True

    def __init__(self, address: Address, timeout_s: float) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._at: Host | None = None
        ServerConnector(address.at(*address.hosts[0]), timeout_s)  # unknown options are rejected only here
        sentinel_timeout_s = timeout_s / len(address.hosts)  # they are asked in turn, and some may hang
        self._sentinels: Any = redis.asyncio.sentinel.Sentinel(())
        for host in address.hosts:
            options = {
                **options_of(address.sentinel_at(*host)),
                "socket_timeout": sentinel_timeout_s,
                "retry": _never(),
            }
            self._sentinels.sentinels.append(redis.asyncio.Redis(**options, socket_connect_timeout=sentinel_timeout_s))

    async def open(self) -> Connection:
        """A new connection to the master."""
        self._at = await self._master()
        connection = await ServerConnector(self._address.at(*self._at), self._timeout_s).open()
        (role,) = await answers_of(connection, [ROLE], self._timeout_s)
        if role[0] != MASTER:
            await connection.close()
            raise StoreAwayError("it is no longer the master")
        return connection

    async def moved(self) -> bool:
        """Whether the Sentinels name another master than the one last connected to; False if they do not answer."""
        try:
            return self._at is not None and await self._master() != self._at
        except StoreAwayError:
            return False

    async def _master(self) -> Host:
        try:
            host, port = await self._sentinels.discover_master(self._address.name)
        except (RedisError, OSError, UnicodeError) as error:
            raise StoreAwayError(type(error).__name__) from error
        return str(host), int(port)

    async def close(self) -> None:
        """Close the connections to the Sentinels."""
        await self._sentinels.aclose()


class Connection(asyncio.Protocol):
    """A connection taken over from redis-py: one exchange at a time, completed in the callback of the socket."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._reader = hiredis.Reader(replyError=ResponseError, notEnoughData=NOT_YET)
        self._answer: asyncio.Future[list[Any]] | None = None
        self._replies: list[Any] = []
        self._wanted = 0
        self._until = 0.0
        self.used = False
        """Whether it has been idle or has carried an exchange, so that it may have broken since."""
        self.generation = 0
        """The generation of the pool that it belongs to."""
        self.facts = ServerFacts()
        self.lost = False
        """Whether it was closed by the other side."""
        self._transport: asyncio.Transport = connection._writer.transport  # noqa: SLF001  # there is no public way to it
        self._transport.set_protocol(self)

    async def ask(self, packed: bytes, wanted: int, timeout_s: float) -> list[Any]:
        """The replies to ``wanted`` packed commands; ConnectionError or TimeoutError if they do not come."""
        if self.lost:
            raise ConnectionResetError
        loop = asyncio.get_running_loop()
        answer = self._answer = loop.create_future()
        self._replies, self._wanted = [], wanted
        self._until = loop.time() + timeout_s
        self._timer = loop.call_at(self._until, self._expire)
        self._transport.write(packed)
        try:
            return list(await answer)
        finally:
            self._timer.cancel()

    def _expire(self) -> None:
        """Fail the exchange under way, once the event loop has read what arrived in time.

        If the loop was busy it was late in sending and reading, and has as much time again as it was late.
        """
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(loop.time() - self._until, self._fail, TimeoutError())

    async def close(self) -> None:
        """Close immediately."""
        await self._connection.disconnect(nowait=True)

    def data_received(self, data: bytes) -> None:
        """Return the replies once they are complete."""
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not NOT_YET:
            if not isinstance(reply, hiredis.PushNotification):
                self._replies.append(reply)
        if len(self._replies) >= self._wanted and self._answer is not None and not self._answer.done():
            self._answer.set_result(self._replies)

    def connection_lost(self, _error: Exception | None) -> None:
        """Fail the exchange under way."""
        self.lost = True
        self._fail(ConnectionResetError())

    def _fail(self, error: OSError) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)


async def answers_of(connection: Connection, commands: Sequence[Command], budget_s: float) -> list[Any]:
    """The replies to commands on a new connection; StoreAwayError if there are none, or the first is an error."""
    try:
        replies = await connection.ask(packed(commands), len(commands), budget_s)
    except OSError as error:
        await connection.close()
        raise StoreAwayError(type(error).__name__) from error
    except BaseException:
        await connection.close()
        raise
    if isinstance(replies[0], RedisError):
        await connection.close()
        raise StoreAwayError(str(replies[0]).partition(" ")[0])
    return replies


async def checked(connection: Connection, budget_s: float) -> ServerFacts:
    """What the server of a new connection says about itself; StoreAwayError if it cannot be used."""
    facts = facts_of(await answers_of(connection, CHECK, budget_s))
    if facts.problem:
        await connection.close()
        raise StoreAwayError(facts.problem)
    return facts


def options_of(url: str) -> dict[str, Any]:
    """redis-py's options for the URL of a server."""
    with clear_url_errors():
        options = dict(redis.asyncio.connection.parse_url(url))
    if options.pop("connection_class", None) is not None:
        options["ssl"] = True
    return options


def _never() -> Retry:
    return Retry(NoBackoff(), 0)
