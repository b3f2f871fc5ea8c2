"""Several connections to one server: calls are spread over them, and a connection that ends is replaced."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from importlib.metadata import version
from typing import Final

from tidemark.load.outcomes import NO_CONNECTION
from tidemark.load.plan import Plan
from tidemark.load.sending.connection import Call, Connection, Header, OnEnd

UNARY_PATH: Final = b"/tidemark.v1.ScoringService/ScoreCustomer"
BATCH_PATH: Final = b"/tidemark.v1.ScoringService/BatchScoreCustomers"
CONNECT_TIMEOUT_S: Final = 5.0
MIN_BACKOFF_S: Final = 0.05
MAX_BACKOFF_S: Final = 0.5


def call_headers(plan: Plan) -> list[Header]:
    """The headers of every call of a plan."""
    headers = [
        (b"host", str(plan.target).encode()),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
        (b"user-agent", b"tidemark-load/" + version("tidemark-client").encode()),
    ]
    token = plan.access.token
    return headers if token is None else [*headers, (b"authorization", b"Bearer " + token.encode())]


class ConnectionPool:
    """A fixed number of connections, like gRPC's channels; only calls that the server never started are sent again.

    A call waits while all connections are full or not yet up, and fails if none can be made.

    Args:
        plan: the target, its access, and the deadline of calls.
        size: number of connections.
        on_end: called when a call has ended.
        clock: the clock of ``Call.due``, in seconds.
    """

    def __init__(self, plan: Plan, size: int, on_end: OnEnd, clock: Callable[[], float]) -> None:
        self._plan, self._on_end, self._clock = plan, on_end, clock
        self._path: Final = BATCH_PATH if plan.batch else UNARY_PATH
        self._headers: Final = call_headers(plan)
        self._tls: Final = plan.access.context()
        self._connections: Final[list[Connection | None]] = [None] * size
        self._failed: Final = [False] * size
        self._waiting: Final[deque[Call]] = deque()
        self._unflushed: Final[set[Connection]] = set()
        self._last = 0
        self._keepers: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Connect all connections.

        Raises:
            OSError: the server cannot be reached.
        """
        self._connections[:] = [await self._connect() for _ in self._connections]
        self._keepers = [asyncio.create_task(self._keep(slot)) for slot in range(len(self._connections))]

    def close(self) -> None:
        """Close all connections."""
        for keeper in self._keepers:
            keeper.cancel()
        for connection in self._connections:
            if connection is not None:
                connection.close()

    def submit(self, call: Call) -> None:
        """Start a call on a connection, or let it wait; :meth:`flush` sends it."""
        if not self._waiting and (connection := self._next_free()):
            self._start(connection, call)
        elif all(self._failed):
            self._on_end(call, NO_CONNECTION)
        else:
            self._waiting.append(call)

    def flush(self) -> None:
        """Send the calls that have started."""
        while self._unflushed:
            self._unflushed.pop().flush()

    async def _connect(self) -> Connection:
        target, loop = self._plan.target, asyncio.get_running_loop()
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            _, connection = await loop.create_connection(
                lambda: Connection(self._path, self._headers, self._on_end, self._on_unstarted, self._start_waiting),
                target.address,
                target.port,
                ssl=self._tls,
                server_hostname=target.host if self._tls else None,
            )
        return connection

    async def _keep(self, slot: int) -> None:
        """Keep a connection in this slot, and connect again whenever it ends."""
        while True:
            if (connection := self._connections[slot]) is not None:
                await connection.closing.wait()
            self._connections[slot], backoff_s = None, MIN_BACKOFF_S
            while self._connections[slot] is None:
                try:
                    self._connections[slot] = await self._connect()
                except OSError:
                    self._on_connect_failed(slot)
                    await asyncio.sleep(backoff_s)
                    backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)
            self._failed[slot] = False
            self._start_waiting()

    def _on_connect_failed(self, slot: int) -> None:
        self._failed[slot] = True
        while all(self._failed) and self._waiting:
            if not (call := self._waiting.popleft()).ended:
                self._on_end(call, NO_CONNECTION)

    def _on_unstarted(self, call: Call) -> None:
        call.connection = None
        self._waiting.appendleft(call)

    def _next_free(self) -> Connection | None:
        """The next connection in turn that has capacity."""
        for _ in self._connections:
            self._last = (self._last + 1) % len(self._connections)
            connection = self._connections[self._last]
            if connection is not None and connection.has_capacity:
                return connection
        return None

    def _start(self, connection: Connection, call: Call) -> None:
        connection.start(call, call.due + self._plan.deadline_s - self._clock())
        self._unflushed.add(connection)

    def _start_waiting(self) -> None:
        """Start waiting calls as far as there is capacity."""
        while self._waiting and (connection := self._next_free()):
            if not (call := self._waiting.popleft()).ended:
                self._start(connection, call)
        self.flush()
