"""A bounded number of connections to one Redis server or master, shared by all calls of an event loop.

::

    call ──► idle connection ────────────────────────► exchange ──► idle, or the next call that waits
      └────► queue ──► the first connection that becomes free, or that has been set up

Neither the wait in the queue nor the time to set up a connection is charged to an exchange: they grow with the number
of calls, and say nothing about Redis.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from feature_store.errors import StoreAwayError, StoreUnavailableError
from feature_store.online.transport.address import Address, Kind
from feature_store.online.transport.connections import (
    PING,
    Command,
    Connection,
    Connector,
    MasterConnector,
    RedisError,
    ServerConnector,
    answers_of,
    packed,
    refusal,
)
from feature_store.online.transport.server_facts import CHECK, facts_of, refusal_text

MAX_CONNECTIONS: Final = 16
"""Connections per event loop and server. Redis executes one command at a time, so more would not make it faster."""
QUEUE_S: Final = 10.0
"""Longest wait for a connection."""
MIN_SETUP_S: Final = 1.0
"""Shortest limit for setting up a connection. It takes several turns of the event loop, each of which may be late."""
Place = asyncio.Future[Connection]
"""The place of a call in the queue."""


class ConnectionPool:
    """The connections to one server or master. Each exchange has a connection to itself."""

    def __init__(self, connector: Connector, timeout_s: float) -> None:
        """Create a pool without connections.

        Args:
            connector: Opens connections.
            timeout_s: Seconds within which a Redis that is well answers.
        """
        self._connector = connector
        self._timeout_s = timeout_s
        self._idle: list[Connection] = []
        self._size = 0
        """Connections that are idle or in use."""
        self._opening: asyncio.Task[None] | None = None
        """Sets up a connection: one at a time, because it costs many times an exchange."""
        self._urgent: deque[Place] = deque()
        self._others: deque[Place] = deque()
        self._generation = 0
        """Connections of an earlier generation are not used again."""

    async def ask(
        self,
        commands: Sequence[Command],
        budget_s: float,
        *,
        once: bool = False,
        with_run: bool = False,
        urgent: bool = False,
    ) -> list[Any]:
        """The replies to commands that are sent together, error replies included.

        Args:
            commands: Each as its words.
            budget_s: Seconds that Redis may take.
            once: Never send the commands a second time.
            with_run: Append the run of the server to the first command.
            urgent: Go before the calls that wait and are not urgent.

        Raises:
            StoreAwayError: There is no connection, or no answer in time.
            StoreUnavailableError: The connection broke, and the commands may have been executed (``once`` only). Or no
                connection became free for QUEUE_S seconds.
        """
        sent = b"" if with_run else packed(commands)
        while True:
            connection = self._idle.pop() if self._idle else await self._wait(urgent=urgent)
            reused, may_be_done = connection.used, once and not connection.lost
            if with_run:
                sent = packed([(*commands[0], connection.facts.run), *commands[1:]])
            try:
                replies = await connection.ask(sent, len(commands), budget_s)
            except (RedisError, OSError) as error:
                timed_out = isinstance(error, TimeoutError)
                if timed_out or not reused:
                    away = StoreAwayError(type(error).__name__)
                    if not timed_out or budget_s >= self._timeout_s:
                        self._refuse_waiting(away)
                    await self._discard(connection)
                    raise away from error
                await self._discard(connection)
                # A connection that broke while idle is not an outage: try again until a new one fails.
                if may_be_done:
                    raise StoreUnavailableError(type(error).__name__) from error
            except BaseException:
                await self._discard(connection)  # a late reply must not be taken for that of another command
                raise
            else:
                connection.used = True
                if connection.generation == self._generation:
                    self._release(connection)
                else:
                    await self._discard(connection)
                return replies

    async def probe(self, budget_s: float) -> None:
        """Return if Redis answers on a new connection; StoreAwayError if it does not."""
        loop = asyncio.get_running_loop()
        end, generation = loop.time() + budget_s, self._generation
        connection = await self._connect(budget_s)
        connection.generation = generation
        await answers_of(connection, [PING], max(end - loop.time(), 0.0))
        self._size += 1
        self._release(connection)

    async def check(self, budget_s: float) -> None:
        """Return if the server can be used still; StoreAwayError if it cannot."""
        replies = await self.ask(CHECK, budget_s, urgent=True)
        if isinstance(replies[0], RedisError):
            raise StoreAwayError(refusal_text(replies[0]))
        if problem := facts_of(replies).problem:
            raise StoreAwayError(problem)

    def refusal(self, reply: RedisError) -> StoreUnavailableError:
        """The exception for an error reply."""
        return refusal(reply, master=self._connector.master)

    async def follow(self) -> None:
        """Disconnect from a server that is no longer the master, although it may still answer as one for a while."""
        if isinstance(self._connector, MasterConnector) and await self._connector.moved():
            await self.drop()

    async def drop(self) -> None:
        """Close all connections, those in use after their exchange: they may lead to a server that was replaced."""
        self._generation += 1
        while self._idle:
            await self._discard(self._idle.pop())

    async def close(self) -> None:
        """Close the connections."""
        self._refuse_waiting(StoreAwayError("the connections are closed"))
        await self.drop()
        while self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening], timeout=0.1)  # a library may swallow a cancellation
        if isinstance(self._connector, MasterConnector):
            await self._connector.close()

    async def _wait(self, *, urgent: bool) -> Connection:
        """A connection, once it is this call's turn."""
        place: Place = asyncio.get_running_loop().create_future()
        (self._urgent if urgent else self._others).append(place)
        self._open_more()
        try:
            async with asyncio.timeout(QUEUE_S):
                return await place
        except BaseException as error:
            if place.done() and not place.cancelled() and place.exception() is None:
                self._release(place.result())  # it came at the moment in which the call gave up
            if isinstance(error, TimeoutError):
                raise StoreUnavailableError("too many calls wait for a connection") from error
            raise

    def _next_place(self) -> Place | None:
        """The place of the call whose turn it is; None if no call waits."""
        for queue in (self._urgent, self._others):
            while queue:
                if not (place := queue.popleft()).done():  # else the call gave up
                    return place
        return None

    def _release(self, connection: Connection) -> None:
        """Hand a connection that can be used over to the next call."""
        if (place := self._next_place()) is not None:
            place.set_result(connection)
        else:
            connection.used = True
            self._idle.append(connection)

    def _refuse_waiting(self, error: StoreAwayError) -> None:
        """Refuse all calls that wait: Redis does not answer others."""
        self._refuse([*self._urgent, *self._others], error)

    def _refuse(self, places: Sequence[Place], error: Exception) -> None:
        """Refuse some of the calls that wait."""
        reason = str(error) if isinstance(error, StoreAwayError) else type(error).__name__
        for place in places:
            if not place.done():
                place.set_exception(StoreAwayError(reason))
        for queue in (self._urgent, self._others):
            left = [place for place in queue if not place.done()]
            queue.clear()
            queue.extend(left)

    async def _discard(self, connection: Connection) -> None:
        self._size -= 1
        await connection.close()
        self._open_more()

    def _open_more(self) -> None:
        """Set up a connection if calls wait, and there may be more."""
        if self._opening is None and self._size < MAX_CONNECTIONS and (self._urgent or self._others):
            self._opening = asyncio.get_running_loop().create_task(self._open())

    async def _open(self) -> None:
        """Set up a connection. If that fails and there is no other one, refuse the calls that waited from its start."""
        waiting, generation = [*self._urgent, *self._others], self._generation
        try:
            connection = await self._connect(setup_s(self._timeout_s))
        except Exception as error:  # whatever it is, no call may wait for a connection that never comes
            self._opening = None
            if self._size == len(self._idle):  # else those in use will serve the calls that wait
                self._refuse(waiting, error)
                self._open_more()  # for the calls that came later
            return
        except BaseException:
            self._opening = None
            raise
        self._opening = None
        self._size += 1
        connection.generation = generation
        if generation == self._generation:
            self._release(connection)
            self._open_more()
        else:
            await self._discard(connection)

    async def _connect(self, limit_s: float) -> Connection:
        try:
            async with asyncio.timeout(limit_s):
                return await self._connector.open()
        except TimeoutError as error:
            raise StoreAwayError(type(error).__name__) from error


def pool_for(address: Address, timeout_s: float) -> ConnectionPool:
    """Connections to a single server, or to the master that Sentinels name."""
    if address.kind is Kind.SENTINEL:
        return ConnectionPool(MasterConnector(address, setup_s(timeout_s)), timeout_s)
    return pool_of_server(address.url, timeout_s)


def pool_of_server(url: str, timeout_s: float) -> ConnectionPool:
    """Connections to one server."""
    return ConnectionPool(ServerConnector(url, setup_s(timeout_s)), timeout_s)


def setup_s(timeout_s: float) -> float:
    """Seconds that setting up a connection may take."""
    return max(timeout_s, MIN_SETUP_S)
