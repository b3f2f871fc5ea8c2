"""Online feature store: packed values in Redis.

Only connections (for the server) and clients (for commands), on which it stands, import redis.

========================== ==================================================================================
key                        value
========================== ==================================================================================
``tm:<fingerprint>:<id>``  a customer's state (``feature_store.state.layout``); those of other definitions live beside
``tm:<fingerprint>``       hash: what was loaded last
``tm:layouts``             set: the fingerprints that there are states of
``{tm:layouts}:folded``    hash: the features, by fingerprint, whose states live events are folded into
``{tm:layouts}:tag``       another one whenever that hash changes
``tm:live:<id>``           a customer's record (``feature_store.state.profile``), or whose alias this id is
``tm:log``                 position of the newest commit, which counts all that changed customers
``tm:log:<position>``      what a commit has for the archive (``feature_store.state.events``), until it is there
``tm:archived``            position up to which the archive has everything; there is an archive if this is there
``tm:held``                position after which the log forgets nothing, because a load is under way
========================== ==================================================================================

States and records are sealed (``feature_store.state.checksum``): they are opened when they are read, here
and nowhere else.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha1
from itertools import islice
from typing import Any, Final, NamedTuple, Protocol, Self

from feature_store.errors import ArchiveBehindError, LayoutsChangedError, StoreAwayError, StoreUnavailableError
from feature_store.online.commit import SCRIPT, Group, each_write, keys_and_arguments, overtaken
from feature_store.online.stale_cache import RecentStates
from feature_store.online.transport.address import Kind, parse
from feature_store.online.transport.circuit_breaker import Breaker
from feature_store.online.transport.clients import FAILURES, client_at
from feature_store.online.transport.cluster import Cluster
from feature_store.online.transport.connections import Command, RedisError, link_to
from feature_store.state.checksum import opened, sealed
from feature_store.state.layout import Missing, StateBatch, StateLayout
from feature_store.state.profile import Told, UnreadableRecordError, told

CHUNK: Final = 1000
DISK_S: Final = 3.0
"""By then what was written is on disk: with ``appendfsync everysec`` in a second, or two where the disk is slow."""
PROBE_S: Final = 0.5
"""A probe waits no longer, whatever Redis is allowed otherwise: the next one may find it."""
SCRIPT_HASH: Final = sha1(SCRIPT).hexdigest().encode()  # noqa: S324  # how Redis names scripts
ALIAS_DEPTH: Final = 4
"""An alias names a customer who is none; more than one step is seen only while two merges meet."""


LOG: Final = b"tm:log"
ARCHIVED: Final = b"tm:archived"
HELD: Final = b"tm:held"
HOLD_S: Final = 600
"""Renewed while a load goes on; should it be killed, the log forgets again after that."""
LAYOUTS: Final = b"tm:layouts"
FOLDED: Final = b"{tm:layouts}:folded"
TAG: Final = b"{tm:layouts}:tag"
"""In a cluster the braces keep these in one slot, so that one script can change them."""
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


class Servers(Protocol):
    """What is asked: a server, a master, or a cluster."""

    async def ask(self, commands: Sequence[Command], budget_s: float, *, once: bool = False) -> list[Any]:
        """The replies to commands, errors among them; see :class:`Link`."""

    async def probe(self, budget_s: float) -> None:
        """Return if it answers on a new connection."""

    async def follow(self) -> None:
        """Find out whether another one has taken its place though it answers."""

    def refusal(self, reply: RedisError) -> StoreUnavailableError:
        """What an error that it answered with means."""

    async def drop(self) -> None:
        """Close the connections that nobody uses just now."""

    async def close(self) -> None:
        """Close the connections."""


class Redis:
    """Asks Redis for the server, on the running event loop.

    While it is away (``breaker``) every call fails at once, and a task of its own finds out when it is back.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self.timeout_s: Final = timeout_s
        address = parse(url)
        self.is_cluster: Final = address.kind is Kind.CLUSTER
        self._servers: Final[Servers] = Cluster(address, timeout_s) if self.is_cluster else link_to(address, timeout_s)
        self.breaker: Final = Breaker()
        self.changed: Final = asyncio.Event()
        """Set whenever Redis turns out to be away, or back; to be cleared by whoever waits for it."""
        self._probing: asyncio.Task[None] | None = None

    async def ask(self, *command: bytes, budget_s: float | None = None) -> Any:
        """The reply to a command; StoreUnavailableError where Redis does not answer in time, or with an error.

        ``budget_s``: how long it may take, the usual time if not given.
        """
        (reply,) = await self.ask_all([command], budget_s=budget_s)
        if isinstance(reply, RedisError):
            raise self._refused(reply) from reply
        return reply

    async def ask_all(
        self,
        commands: Sequence[Command],
        extra_s: float = 0.0,
        *,
        once: bool = False,
        budget_s: float | None = None,
    ) -> list[Any]:
        """The replies to commands that are sent together, errors among them; StoreUnavailableError as above.

        ``extra_s``: how much longer than usual Redis may take for these; ``once``: never send them a second time.
        """
        breaker = self.breaker
        if breaker.open:
            raise StoreAwayError(breaker.why)
        began = breaker.opened
        try:
            budget_s = (self.timeout_s if budget_s is None else budget_s) + extra_s
            return await self._servers.ask(commands, budget_s, once=once)
        except StoreAwayError as error:
            self._away(error, began)
            raise

    async def values(self, keys: Sequence[bytes], budget_s: float | None = None) -> list[bytes | None]:
        """Packed values, in order, None where there is none; StoreUnavailableError as above."""
        return _opened(keys, await self.ask(b"MGET", *keys, budget_s=budget_s))

    async def commit(
        self, groups: Sequence[Group], most_waiting: int = 0, *, tag: bytes = b"", durable: bool = False
    ) -> Committed:
        """Write groups, each if nobody else was faster; ``durable``: and return when it is on disk.

        In a cluster each key is written for itself, and NotInClusterError is raised where there is something to log.

        ArchiveBehindError where more commits than ``most_waiting`` (0 for any number) wait for the archive.
        LayoutsChangedError where the layouts have another ``tag`` (empty for any) by now.
        StoreUnavailableError where Redis does not answer in time or cannot say that it is on disk: then it may or may
        not be written.
        """
        if self.is_cluster:
            replies = await self.ask_all(each_write(groups), once=True)
            return Committed(0, overtaken(groups, [self._unless_refused(reply) for reply in replies]))
        keys, arguments = keys_and_arguments(groups, COMMON, most_waiting, tag)
        rest = (b"%d" % len(keys), *keys, *arguments)
        to_disk = [(b"WAITAOF", b"1", b"0", b"%d" % (DISK_S * 1000))] if durable else []
        extra_s = DISK_S if durable else 0.0
        replies = await self.ask_all([(b"EVALSHA", SCRIPT_HASH, *rest), *to_disk], extra_s, once=True)
        if str(replies[0]).startswith("NOSCRIPT"):  # Redis is new, or was restarted
            replies = await self.ask_all([(b"EVAL", SCRIPT, *rest), *to_disk], extra_s, once=True)
        for reply in replies:
            self._unless_refused(reply)
        if to_disk and replies[1][0] < 1:
            raise StoreUnavailableError("not on disk in time")
        return _committed(replies[0])

    async def has_append_only_file(self) -> bool:
        """Whether what is acknowledged can be waited for on disk."""
        (reply,) = await self.ask_all([(b"WAITAOF", b"1", b"0", b"1")])
        return not isinstance(reply, RedisError)

    async def holds_features(self, keys: Keys) -> bool:
        """Whether anything can be known under these keys: they were loaded, or nothing was, and events have come in.

        Not so where Redis is empty, or holds loads of other definitions only.
        """
        loaded, log = await self.ask_all([(b"EXISTS", keys.load), (b"EXISTS", LOG)])
        if self._unless_refused(loaded) or not self._unless_refused(log):
            return bool(loaded)
        others = await self.ask(b"SMEMBERS", LAYOUTS)
        loads = await self.ask_all([(b"EXISTS", Keys(name.decode()).load) for name in others]) if others else []
        return not any(self._unless_refused(load) for load in loads)

    async def follow(self) -> None:
        """Ask the Sentinels, if there are any, who is master now, and leave one who is not.

        For some seconds, until they have demoted it, it still takes writes, which will be lost.
        """
        await self._servers.follow()

    async def ping(self) -> None:
        """Return if Redis answers; StoreUnavailableError if it does not."""
        await self.ask(b"PING")

    async def close(self) -> None:
        """Close the connections."""
        while self._probing is not None and not self._probing.done():
            self._probing.cancel()
            await asyncio.wait([self._probing], timeout=0.1)  # a library in between may keep a cancellation to itself
        await self._servers.close()

    def _unless_refused(self, reply: Any) -> Any:
        if isinstance(reply, RedisError):
            raise self._refused(reply) from reply
        return reply

    def _refused(self, reply: RedisError) -> StoreUnavailableError:
        error = self._servers.refusal(reply)
        if isinstance(error, StoreAwayError):
            self._away(error, self.breaker.opened)
        return error

    def _away(self, error: StoreAwayError, began: int) -> None:
        """Let nobody else wait for it, and find out when it is back."""
        if self.breaker.failed(began, str(error)):
            self.changed.set()
            if self._probing is None or self._probing.done():
                self._probing = asyncio.get_running_loop().create_task(self._probe())

    async def _probe(self) -> None:
        while (wait_s := self.breaker.until_probe()) is not None:
            await self._servers.drop()  # what is open may lead to where Redis was
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            elif self.breaker.probe():
                answered, why = False, "the probe was given up"
                try:
                    await self._servers.probe(min(self.timeout_s, PROBE_S))
                    answered = True
                except Exception as error:  # whatever it is, the next one may be answered
                    why = str(error) if isinstance(error, StoreUnavailableError) else type(error).__name__
                finally:
                    self.breaker.probed(answered=answered, why=why)
        self.changed.set()


class StateReader:
    """Reads states, and what customers' records have to say to them, for the server: one MGET per batch.

    With ``recent`` it remembers what it has read, for when Redis is away.
    """

    def __init__(self, store: Redis, layout: StateLayout, recent: RecentStates | None = None) -> None:
        self._redis = store
        self._keys = Keys(layout.fingerprint)
        self._layout = layout
        self._remembered = recent

    async def read(self, customer_ids: Sequence[str]) -> StateBatch:
        """States of customers, in order; an alias has that of the customer it belongs to.

        StoreUnavailableError where Redis does not answer in time, which is for all that it takes.
        """
        until = time.monotonic() + self._redis.timeout_s
        epoch = 0 if self._remembered is None else self._remembered.epoch
        values = await self._values(customer_ids)
        states, records = values[: len(customer_ids)], values[len(customer_ids) :]
        said = {} if records.count(None) == len(records) else await self._follow(states, records, until)
        if self._remembered is not None:
            self._remembered.keep(customer_ids, states, said, epoch)
        batch = self._layout.unpack(states)
        if said:
            batch.told = said
        if not (batch.all_valid or batch.found.any() or await self._redis.holds_features(self._keys)):
            batch.missing = Missing.NOT_LOADED
        return batch

    def recent(self, customer_ids: Sequence[str], within_s: Sequence[float]) -> StateBatch | None:
        """States as they were read not longer ago than this, each by its own bound; None where none are remembered."""
        if self._remembered is None:
            return None
        states, said = self._remembered.states(customer_ids, within_s)
        batch = self._layout.unpack(states)
        batch.told, batch.missing, batch.stale = said, Missing.STORE_AWAY, True
        return batch

    async def _follow(
        self, states: list[bytes | None], records: Sequence[bytes | None], until: float
    ) -> dict[int, Told]:
        """What records say, by row; where one is an alias's, its row gets the state that it leads to."""
        said = {}
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
            left = max(until - time.monotonic(), 0.0)
            todo, values = list(aliases), await self._values(list(aliases.values()), left)
            records = values[len(todo) :]
            for row, state in zip(todo, values, strict=False):
                states[row] = state
        return said

    async def _values(self, customer_ids: Sequence[str], budget_s: float | None = None) -> list[bytes | None]:
        """Their states, then their records."""
        return await self._redis.values([*self._keys.of(customer_ids), *self._keys.records(customer_ids)], budget_s)


def _opened(keys: Sequence[bytes], values: Sequence[bytes | None]) -> list[bytes | None]:
    return [None if value is None else opened(key, value) for key, value in zip(keys, values, strict=True)]


class LogReader:
    """The log in Redis, and whoever changes customers, for commands (synchronous)."""

    def __init__(self, url: str, timeout_s: float = 30.0) -> None:
        address = parse(url)
        self.is_cluster: Final = address.kind is Kind.CLUSTER
        self._redis: Any = self._call(client_at, address, timeout_s)

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
        except FAILURES as error:
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
        """Write groups, each if nobody else was faster; in a cluster each key for itself."""
        if self.is_cluster:
            together = self._redis.pipeline()
            for command, *arguments in each_write(groups):
                together.execute_command(command.decode(), *arguments)
            return Committed(0, overtaken(groups, self._call(together.execute)))
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
        found = self._redis.scan_iter(self._keys.prefix + b"*", CHUNK)
        while keys := self._call(lambda: list(islice(found, CHUNK))):
            for key in set(keys) - seen:
                yield key[len(self._keys.prefix) :].decode("utf-8", "surrogateescape")
            seen.update(keys)

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
        items = iter([(key, sealed(key, value)) for key, value in zip(keys, values, strict=True)])
        while chunk := dict(islice(items, CHUNK)):
            self._call(self._redis.mset, chunk)

    def _values(self, keys: Sequence[bytes]) -> list[bytes | None]:
        rest, values = iter(keys), []
        while chunk := list(islice(rest, CHUNK)):
            values += _opened(chunk, self._call(self._redis.mget, chunk))
        return values
