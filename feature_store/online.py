"""Online feature store: packed values in Redis. The only module that imports redis.

========================== ==================================================================================
key                        value
========================== ==================================================================================
``tm:<fingerprint>:<id>``  a customer's state (``feature_store.state``); those of other definitions live beside
``tm:<fingerprint>``       hash: what was loaded last
``tm:layouts``             set: the fingerprints that there are states of
``tm:folded``              hash: the features, by fingerprint, whose states live events are folded into
``tm:folded:tag``          another one whenever that hash changes
``tm:live:<id>``           a customer's record (``feature_store.record``), or whose alias this id is
``tm:log``                 position of the newest commit, which counts all that changed customers
``tm:log:<position>``      what a commit has for the archive (``feature_store.events``), until it is there
``tm:archived``            position up to which the archive has everything; there is an archive if this is there
``tm:held``                position after which the log forgets nothing, because a load is under way
========================== ==================================================================================
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha1
from itertools import islice
from typing import Any, Final, NamedTuple, Self

import hiredis
import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from feature_store.commit import SCRIPT, Group, keys_and_arguments
from feature_store.errors import ArchiveBehindError, InputError, LayoutsChangedError, StoreUnavailableError
from feature_store.record import UnreadableRecordError, told
from feature_store.state import StateBatch, StateLayout

CHUNK: Final = 1000
DISK_S: Final = 3.0
"""By then what was written is on disk: with ``appendfsync everysec`` in a second, or two where the disk is slow."""
NOT_YET: Final = object()
SCRIPT_HASH: Final = sha1(SCRIPT).hexdigest().encode()  # noqa: S324  # how Redis names scripts
ALIAS_DEPTH: Final = 4
"""An alias names a customer who is none; more than one step is seen only while two merges meet."""


LOG: Final = b"tm:log"
ARCHIVED: Final = b"tm:archived"
HELD: Final = b"tm:held"
HOLD_S: Final = 600
"""Renewed while a load goes on; should it be killed, the log forgets again after that."""
LAYOUTS: Final = b"tm:layouts"
FOLDED: Final = b"tm:folded"
TAG: Final = b"tm:folded:tag"
RECORD: Final = b"tm:live:"
COMMON: Final = (LOG, ARCHIVED, TAG)


class Keys:
    """Names of the keys of one fingerprint."""

    def __init__(self, fingerprint: str) -> None:
        self.load: Final = f"tm:{fingerprint}".encode()
        self.prefix: Final = self.load + b":"

    def of(self, customer_ids: Sequence[str]) -> list[bytes]:
        """Keys of customers' states, in order."""
        return _keys(self.prefix, customer_ids)

    @staticmethod
    def records(customer_ids: Sequence[str]) -> list[bytes]:
        """Keys of customers' records, in order."""
        return _keys(RECORD, customer_ids)

    @staticmethod
    def log(position: int) -> bytes:
        """Key of a commit's log entry."""
        return b"%b:%d" % (LOG, position)


def _keys(prefix: bytes, customer_ids: Sequence[str]) -> list[bytes]:
    # surrogateescape: a foreign key that is not text can be named all the same
    return [prefix + customer_id.encode("utf-8", "surrogateescape") for customer_id in customer_ids]


class Committed(NamedTuple):
    """A commit's position, and the groups (by number) that were not written because somebody else was faster."""

    position: int
    overtaken: list[int]


def _committed(reply: list[int]) -> Committed:
    if reply[0] == -1:
        raise ArchiveBehindError
    if reply[0] < 0:
        raise LayoutsChangedError
    return Committed(reply[0], reply[1:])


class Redis:
    """Asks Redis for the server, on the running event loop.

    redis-py opens the connections (addresses, logins, TLS); the few commands that are asked here then go straight over
    the socket, because its client costs several times as much as the exchange (``mget_256_ratio`` in the benchmark).
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self.timeout_s: Final = timeout_s
        with _clear_url_errors():
            self._pool: Any = redis.asyncio.ConnectionPool.from_url(
                url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=AsyncRetry(NoBackoff(), 0)
            )
            self._pool.make_connection()  # refuses unknown options only now
        self._idle: list[_Exchange] = []

    async def ask(self, *command: bytes) -> Any:
        """The reply to a command; StoreUnavailableError where Redis does not answer in time, or with an error."""
        (reply,) = await self.ask_all([command])
        if isinstance(reply, RedisError):
            raise StoreUnavailableError(type(reply).__name__) from reply
        return reply

    async def ask_all(
        self, commands: Sequence[tuple[bytes, ...]], extra_s: float = 0.0, *, once: bool = False
    ) -> list[Any]:
        """The replies to commands that are sent together, errors among them; StoreUnavailableError as above.

        ``extra_s``: how much longer than usual Redis may take for these; ``once``: never send them a second time.
        """
        packed = b"".join(hiredis.pack_command(command) for command in commands)  # type: ignore[arg-type]  # its stub allows one argument only
        while True:
            reused = bool(self._idle)
            exchange = self._idle.pop() if reused else await self._open()
            may_be_done = once and not exchange.lost
            try:
                replies = await exchange.ask(packed, len(commands), self.timeout_s + extra_s)
            except (RedisError, OSError) as error:
                await exchange.close()
                # A connection that died while idle is no outage: ask again until a fresh one fails.
                if not reused or may_be_done or isinstance(error, TimeoutError):
                    raise StoreUnavailableError(type(error).__name__) from error
            except BaseException:
                await exchange.close()  # a reply may still come, and must not meet another question
                raise
            else:
                self._idle.append(exchange)
                return replies

    async def commit(
        self, groups: Sequence[Group], most_waiting: int = 0, *, tag: bytes = b"", durable: bool = False
    ) -> Committed:
        """Write groups, each if nobody else was faster; ``durable``: and return when it is on disk.

        ArchiveBehindError where more commits than ``most_waiting`` (0 for any number) wait for the archive.
        LayoutsChangedError where the layouts have another ``tag`` (empty for any) by now.
        StoreUnavailableError where Redis does not answer in time or cannot say that it is on disk: then it may or may
        not be written.
        """
        keys, arguments = keys_and_arguments(groups, COMMON, most_waiting, tag)
        rest = (b"%d" % len(keys), *keys, *arguments)
        to_disk = [(b"WAITAOF", b"1", b"0", b"%d" % (DISK_S * 1000))] if durable else []
        extra_s = DISK_S if durable else 0.0
        replies = await self.ask_all([(b"EVALSHA", SCRIPT_HASH, *rest), *to_disk], extra_s, once=True)
        if str(replies[0]).startswith("NOSCRIPT"):  # Redis is new, or was restarted
            replies = await self.ask_all([(b"EVAL", SCRIPT, *rest), *to_disk], extra_s, once=True)
        for reply in replies:
            if isinstance(reply, RedisError):
                raise StoreUnavailableError(type(reply).__name__) from reply
        if to_disk and replies[1][0] < 1:
            raise StoreUnavailableError("not on disk in time")
        return _committed(replies[0])

    async def has_append_only_file(self) -> bool:
        """Whether what is acknowledged can be waited for on disk."""
        (reply,) = await self.ask_all([(b"WAITAOF", b"1", b"0", b"1")])
        return not isinstance(reply, RedisError)

    async def ping(self) -> None:
        """Return if Redis answers; StoreUnavailableError if it does not."""
        await self.ask(b"PING")

    async def close(self) -> None:
        """Close the connections."""
        while self._idle:
            await self._idle.pop().close()

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


class StateReader:
    """Reads states, and what customers' records have to say to them, for the server: one MGET per batch."""

    def __init__(self, store: Redis, layout: StateLayout) -> None:
        self._redis = store
        self._keys = Keys(layout.fingerprint)
        self._layout = layout

    async def read(self, customer_ids: Sequence[str]) -> StateBatch:
        """States of customers, in order; an alias has that of the customer it belongs to.

        StoreUnavailableError where Redis does not answer in time.
        """
        values, said = await self._values(customer_ids), {}
        states, records = values[: len(customer_ids)], values[len(customer_ids) :]
        if records.count(None) == len(records):
            return self._layout.unpack(states)
        todo: Sequence[int] = range(len(records))
        for _ in range(ALIAS_DEPTH):
            aliases = {}
            for row, record in zip(todo, records, strict=True):
                try:
                    what = None if record is None else told(record)
                except UnreadableRecordError:
                    states[row] = b""  # it may say that scoring is not allowed
                    continue
                if isinstance(what, str):
                    aliases[row] = what
                elif what is not None:
                    said[row] = what
            if not aliases:
                break
            todo, values = list(aliases), await self._values(list(aliases.values()))
            records = values[len(todo) :]
            for row, state in zip(todo, values, strict=False):
                states[row] = state
        batch = self._layout.unpack(states)
        batch.told = said
        return batch

    async def _values(self, customer_ids: Sequence[str]) -> list[bytes | None]:
        """Their states, then their records."""
        found: list[bytes | None] = await self._redis.ask(
            b"MGET", *self._keys.of(customer_ids), *self._keys.records(customer_ids)
        )
        return found


class LogReader:
    """The log in Redis, and whoever changes customers, for commands (synchronous)."""

    def __init__(self, url: str, timeout_s: float = 30.0) -> None:
        with _clear_url_errors():
            self._redis: Any = redis.Redis.from_url(url, socket_timeout=timeout_s, socket_connect_timeout=5.0)
            self._redis.connection_pool.make_connection()  # refuses unknown options only now

    def __enter__(self) -> Self:
        self._call(self._redis.ping)
        return self

    def __exit__(self, *_: object) -> None:
        self._redis.close()

    def log_position(self) -> int:
        """Position of the newest commit, 0 if there was none."""
        return int(self._call(self._redis.get, LOG) or 0)

    def log(self, first: int, last: int) -> Iterator[tuple[int, bytes]]:
        """Log entries (position, JSON) from ``first`` to ``last``, as far as they are there, in order."""
        for start in range(first, last + 1, CHUNK):
            positions = range(start, min(start + CHUNK, last + 1))
            entries = self._call(self._redis.mget, [Keys.log(position) for position in positions])
            yield from ((at, entry) for at, entry in zip(positions, entries, strict=True) if entry is not None)

    def archived(self) -> int | None:
        """Position up to which the archive has everything, None if there is no archive."""
        found = self._call(self._redis.get, ARCHIVED)
        return None if found is None else int(found)

    def announce_archive(self) -> None:
        """Say that there is an archive, so that what is erased from now on is erased there too."""
        self._call(self._redis.set, ARCHIVED, 0, nx=True)

    @contextmanager
    def holding_log(self) -> Iterator[None]:
        """Have the log remember what comes from now on, though it be archived; to be renewed now and then."""
        self.hold_log(self.log_position())
        try:
            yield
        finally:
            self._call(self._redis.delete, HELD)

    def hold_log(self, position: int) -> None:
        """Have the log remember what comes after ``position`` for a while longer."""
        self._call(self._redis.set, HELD, position, ex=HOLD_S)

    def forget_log(self, first: int, last: int) -> None:
        """Say that the archive has everything up to ``last``, and remove that, from ``first`` on, as far as it may."""
        held = self._call(self._redis.get, HELD)
        last = last if held is None else min(last, int(held))
        if first <= last:
            self._call(self._redis.set, ARCHIVED, last)
        for start in range(first, last + 1, CHUNK):
            self._call(self._redis.unlink, *map(Keys.log, range(start, min(start + CHUNK, last + 1))))

    def evaluate(self, script: bytes, keys: Sequence[bytes], *arguments: bytes) -> Any:
        """What a script returns."""
        return self._call(self._redis.eval, script, len(keys), *keys, *arguments)

    def asked_us(self) -> float:
        """Microseconds that Redis has worked on what the server asks of it; what a script calls is in the script's."""
        stats = self._call(self._redis.info, "commandstats")
        return float(sum(stats.get(f"cmdstat_{name}", {}).get("usec", 0) for name in ("mget", "eval", "evalsha")))

    def used_memory(self) -> int:
        """Bytes that Redis uses, all included."""
        return int(self._call(self._redis.info, "memory")["used_memory"])

    def _call(self, command: Callable[..., Any], *args: Any, **options: Any) -> Any:
        try:
            return command(*args, **options)
        except (RedisError, OSError, UnicodeError) as error:  # UnicodeError: a host name that can be none
            raise StoreUnavailableError(type(error).__name__) from error


class StateWriter(LogReader):
    """Loads and inspects the states of one fingerprint, for commands."""

    def __init__(self, url: str, layout: StateLayout, timeout_s: float = 30.0) -> None:
        super().__init__(url, timeout_s)
        self._keys = Keys(layout.fingerprint)
        self._commit = self._redis.register_script(SCRIPT)

    def write(self, customer_ids: Sequence[str], values: Sequence[bytes]) -> None:
        """Store packed states, replacing those that are there."""
        self._set(self._keys.of(customer_ids), values)

    def write_records(self, customer_ids: Sequence[str], values: Sequence[bytes]) -> None:
        """Store packed records, replacing those that are there."""
        self._set(Keys.records(customer_ids), values)

    def commit(self, groups: Sequence[Group]) -> Committed:
        """Write groups, each if nobody else was faster."""
        keys, arguments = keys_and_arguments(groups, COMMON)
        return _committed(self._call(self._commit, keys, arguments))

    def read(self, customer_ids: Sequence[str]) -> list[bytes | None]:
        """Packed states, in order; None where there is none."""
        return self._values(self._keys.of(customer_ids))

    def read_records(self, customer_ids: Sequence[str]) -> list[bytes | None]:
        """Packed records, in order; None where there is none."""
        return self._values(Keys.records(customer_ids))

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

    def record_load(self, facts: dict[str, float]) -> None:
        """Remember what was loaded, for :meth:`last_load`, and that there are states of these definitions."""
        self._call(self._redis.sadd, LAYOUTS, self._keys.load.rpartition(b":")[2])
        self._call(self._redis.hset, self._keys.load, None, None, {name: repr(fact) for name, fact in facts.items()})

    def last_load(self) -> dict[str, float] | None:
        """What :meth:`record_load` remembered, None if nothing was loaded."""
        facts = self._call(self._redis.hgetall, self._keys.load)
        return {name.decode(): float(fact) for name, fact in facts.items()} or None

    def _set(self, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        items = iter(zip(keys, values, strict=True))
        while chunk := dict(islice(items, CHUNK)):
            self._call(self._redis.mset, chunk)

    def _values(self, keys: Sequence[bytes]) -> list[bytes | None]:
        rest, values = iter(keys), []
        while chunk := list(islice(rest, CHUNK)):
            values += self._call(self._redis.mget, chunk)
        return values


@contextmanager
def _clear_url_errors() -> Iterator[None]:
    """Turn a bad URL into an error without the URL in it, which may hold a password."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise InputError("the Redis URL is not valid: write redis://[user:password@]host:port[/db]") from error
