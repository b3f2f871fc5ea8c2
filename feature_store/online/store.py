"""The online store for the server: packed values in Redis, asynchronously."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import Any, Final, Protocol

from feature_store.errors import StoreAwayError, StoreUnavailableError
from feature_store.online.commit import (
    SCRIPT,
    SCRIPT_HASH,
    CommitResult,
    Group,
    cluster_commands,
    cluster_result,
    commit_result,
    keys_and_arguments,
)
from feature_store.online.keys import LOG, STORED_LAYOUTS, Keys
from feature_store.online.transport.address import Kind, parse
from feature_store.online.transport.circuit_breaker import CircuitBreaker
from feature_store.online.transport.cluster import Cluster
from feature_store.online.transport.connection_pool import MAX_CONNECTIONS, QUEUE_S, pool_for
from feature_store.online.transport.connections import Command, RedisError
from feature_store.online.transport.server_facts import refused_command
from feature_store.state.checksum import remove_checksums

DISK_S: Final = 3.0
"""Seconds until a write is certainly on disk: with ``appendfsync everysec`` one, or two if the disk is slow."""
PROBE_S: Final = 0.5
"""Longest wait for a probe, whatever the timeout of commands is: the next probe may succeed."""


class Servers(Protocol):
    """Where commands are sent: one server, the master that Sentinels name, or a cluster."""

    async def ask(
        self,
        commands: Sequence[Command],
        budget_s: float,
        *,
        once: bool = False,
        with_run: bool = False,
        urgent: bool = False,
    ) -> list[Any]:
        """The replies to commands, errors included; see :meth:`ConnectionPool.ask`."""

    async def probe(self, budget_s: float) -> None:
        """Return if it answers on a new connection."""

    async def check(self, budget_s: float) -> None:
        """Return if every server can be used still; StoreAwayError if one cannot."""

    async def follow(self) -> None:
        """Find out whether another server is master now, although the old one still answers."""

    def refusal(self, reply: RedisError) -> StoreUnavailableError:
        """The exception for an error reply."""

    async def drop(self) -> None:
        """Close idle connections."""

    async def close(self) -> None:
        """Close all connections."""


class RedisStore:
    """Sends commands to Redis on the running event loop, behind a circuit breaker.

    While the breaker is open every call fails at once, and a background task probes until Redis answers again.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self.timeout_s: Final = timeout_s
        address = parse(url)
        self.is_cluster: Final = address.kind is Kind.CLUSTER
        self._servers: Final[Servers] = Cluster(address, timeout_s) if self.is_cluster else pool_for(address, timeout_s)
        self.breaker: Final = CircuitBreaker()
        self.changed: Final = asyncio.Event()
        """Set whenever the breaker opens or closes; the task that waits for it clears it."""
        self._probing: asyncio.Task[None] | None = None
        self._waiting_for_disk: Final = asyncio.Semaphore(MAX_CONNECTIONS // 2)

    async def ask(self, *command: bytes, budget_s: float | None = None, urgent: bool = False) -> Any:
        """The reply to a command.

        Args:
            command: Its words.
            budget_s: Seconds it may take; ``timeout_s`` by default.
            urgent: Go before the calls that wait for a connection and are not urgent.

        Raises:
            StoreUnavailableError: Redis does not answer in time, or answers with an error.
        """
        (reply,) = await self.ask_all([command], budget_s=budget_s, urgent=urgent)
        if isinstance(reply, RedisError):
            raise self._refused(reply) from reply
        return reply

    async def ask_all(
        self,
        commands: Sequence[Command],
        extra_s: float = 0.0,
        *,
        once: bool = False,
        with_run: bool = False,
        budget_s: float | None = None,
        urgent: bool = False,
    ) -> list[Any]:
        """The replies to commands that are sent together, error replies included.

        Args:
            commands: Each as its words.
            extra_s: Seconds that Redis may take beyond the budget.
            once: Never send the commands a second time.
            with_run: Append the run of the server to the first command.
            budget_s: Seconds that Redis may take; ``timeout_s`` by default.
            urgent: Go before the calls that wait for a connection and are not urgent.

        Raises:
            StoreUnavailableError: Redis does not answer in time.
        """
        breaker = self.breaker
        if breaker.open:
            raise StoreAwayError(breaker.reason)
        generation = breaker.times_opened
        budget_s = (self.timeout_s if budget_s is None else budget_s) + extra_s
        try:
            return await self._servers.ask(commands, budget_s, once=once, with_run=with_run, urgent=urgent)
        except StoreAwayError as error:
            # No answer within what earlier exchanges have left of the time says nothing about Redis.
            if budget_s >= self.timeout_s or not isinstance(error.__cause__, TimeoutError):
                self._away(error, generation)
            raise

    async def values(
        self, keys: Sequence[bytes], budget_s: float | None = None, *, urgent: bool = False
    ) -> list[bytes | None]:
        """Packed values in the order of the keys, None for a missing key; arguments and errors as for :meth:`ask`."""
        return remove_checksums(keys, await self.ask(b"MGET", *keys, budget_s=budget_s, urgent=urgent))

    async def commit(
        self,
        groups: Sequence[Group],
        max_waiting: int = 0,
        *,
        layouts_version: bytes = b"",
        durable: bool = False,
        when_full: bool = False,
    ) -> CommitResult:
        """Write groups, each only if no other commit changed its values first; in a cluster key by key.

        Args:
            groups: The writes.
            max_waiting: Maximum number of commits that may wait for the archive; 0 for no limit.
            layouts_version: Version of the active layouts that the writes were computed for; empty for any.
            durable: Return only once the commit is on disk.
            when_full: Commit even if the memory of Redis is full, as an erasure or a consent must.

        Raises:
            ArchiveBehindError: More commits than ``max_waiting`` wait for the archive.
            LayoutsChangedError: The active layouts have another version now.
            NotInClusterError: Redis is a cluster, and there is something to log.
            StoreUnavailableError: Redis does not answer in time, or cannot confirm that the commit is on disk. It may
                or may not have been written.
        """
        if self.is_cluster:
            replies = await self.ask_all(cluster_commands(groups, when_full=when_full), once=True)
            return cluster_result(groups, [self._unless_refused(reply) for reply in replies])
        keys, arguments = keys_and_arguments(groups, max_waiting, layouts_version, when_full=when_full)
        rest = (b"%d" % len(keys), *keys, *arguments)
        to_disk = [(b"WAITAOF", b"1", b"0", b"%d" % (DISK_S * 1000))] if durable else []
        extra_s = DISK_S if durable else 0.0
        async with self._turn_to_wait_for_the_disk() if durable else nullcontext():
            replies = await self.ask_all(
                [(b"EVALSHA", SCRIPT_HASH, *rest), *to_disk], extra_s, once=True, with_run=True
            )
            if str(replies[0]).startswith("NOSCRIPT"):  # the first commit since Redis was started
                replies = await self.ask_all([(b"EVAL", SCRIPT, *rest), *to_disk], extra_s, once=True, with_run=True)
        for reply in replies:
            self._unless_refused(reply)
        if to_disk and replies[1][0] < 1:
            raise StoreUnavailableError("the commit was not on disk in time")
        return commit_result(replies[0])

    @asynccontextmanager
    async def _turn_to_wait_for_the_disk(self) -> AsyncIterator[None]:
        """Bound the commits that wait for the disk: each keeps a connection, and scores need some as well."""
        try:
            async with asyncio.timeout(QUEUE_S):
                await self._waiting_for_disk.acquire()
        except TimeoutError as error:
            raise StoreUnavailableError("too many commits wait for the disk") from error
        try:
            yield
        finally:
            self._waiting_for_disk.release()

    async def durability_problem(self) -> str:
        """Why Redis cannot confirm that a commit is on disk; empty if it can."""
        (reply,) = await self.ask_all([(b"WAITAOF", b"1", b"0", b"1")])
        if not isinstance(reply, RedisError):
            return ""
        if refused_command(reply):
            return "--durable-events needs WAITAOF: use Redis 7.2 or newer, or Valkey, and permit it to the user"
        return "--durable-events needs a Redis with appendonly"

    async def holds_features(self, keys: Keys) -> bool:
        """Whether there may be states of a layout.

        True if it was loaded, or if no layout was loaded and there are live events. False if Redis is empty or holds
        loads of other layouts only.
        """
        loaded, log = await self.ask_all([(b"EXISTS", keys.load), (b"EXISTS", LOG)])
        if self._unless_refused(loaded) or not self._unless_refused(log):
            return bool(loaded)
        others = await self.ask(b"SMEMBERS", STORED_LAYOUTS)
        loads = await self.ask_all([(b"EXISTS", Keys(name.decode()).load) for name in others]) if others else []
        return not any(self._unless_refused(load) for load in loads)

    async def follow(self) -> None:
        """Ask the Sentinels, if there are any, which server is master, and disconnect from another one.

        After a failover the old master accepts writes for some seconds until it is demoted, and these are lost.
        """
        await self._servers.follow()

    async def check(self) -> None:
        """Return if every server can be used still; its eviction policy or permissions may have changed.

        Raises:
            StoreUnavailableError: Redis does not answer, or must not be used; the message says why.
        """
        if self.breaker.open:
            raise StoreAwayError(self.breaker.reason)
        generation = self.breaker.times_opened
        try:
            await self._servers.check(self.timeout_s)
        except StoreAwayError as error:
            self._away(error, generation)
            raise

    async def ping(self) -> None:
        """Return if Redis answers; StoreUnavailableError if it does not."""
        await self.ask(b"PING")

    async def close(self) -> None:
        """Close the connections."""
        while self._probing is not None and not self._probing.done():
            self._probing.cancel()
            await asyncio.wait([self._probing], timeout=0.1)  # a library may swallow a cancellation
        await self._servers.close()

    def _unless_refused(self, reply: Any) -> Any:
        if isinstance(reply, RedisError):
            raise self._refused(reply) from reply
        return reply

    def _refused(self, reply: RedisError) -> StoreUnavailableError:
        error = self._servers.refusal(reply)
        if isinstance(error, StoreAwayError):
            self._away(error, self.breaker.times_opened)
        return error

    def _away(self, error: StoreAwayError, generation: int) -> None:
        """Open the breaker and start probing."""
        if self.breaker.record_failure(generation, str(error)):
            self.changed.set()
            if self._probing is None or self._probing.done():
                self._probing = asyncio.get_running_loop().create_task(self._probe())

    async def _probe(self) -> None:
        while (wait_s := self.breaker.seconds_until_probe()) is not None:
            await self._servers.drop()  # open connections may lead to a server that was replaced
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            elif self.breaker.begin_probe():
                answered, reason = False, "the probe was cancelled"
                try:
                    await self._servers.probe(min(self.timeout_s, PROBE_S))
                    answered = True
                except Exception as error:  # whatever it is, the next probe may succeed
                    reason = str(error) if isinstance(error, StoreUnavailableError) else type(error).__name__
                finally:
                    self.breaker.end_probe(answered=answered, reason=reason)
        self.changed.set()
