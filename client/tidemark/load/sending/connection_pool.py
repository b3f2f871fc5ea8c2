"""Several connections to one server: calls are spread over them, and each is replaced when it ends."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from importlib.metadata import version
from typing import Final

from tidemark.load.outcomes import NO_CONNECTION
from tidemark.load.plan import Plan
from tidemark.load.sending.connection import Call, Ended, Header, Line

UNARY: Final = b"/tidemark.v1.ScoringService/ScoreCustomer"
BATCH: Final = b"/tidemark.v1.ScoringService/BatchScoreCustomers"
CONNECT_S: Final = 5.0
FIRST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 0.5


def headers_of(plan: Plan) -> list[Header]:
    """What every call says of itself."""
    found = [
        (b"host", str(plan.target).encode()),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
        (b"user-agent", b"tidemark-load/" + version("tidemark").encode()),
    ]
    token = plan.access.token
    return found if token is None else [*found, (b"authorization", b"Bearer " + token.encode())]


class Lines:
    """``number`` connections; ``clock`` is the loop's. Like gRPC's channels, with no retry but of what never began.

    A call waits where every connection is full or not up yet, and fails where none can be made.
    """

    def __init__(self, plan: Plan, number: int, ended: Ended, clock: Callable[[], float]) -> None:
        self._plan, self._ended, self._clock = plan, ended, clock
        self._path: Final = BATCH if plan.batch else UNARY
        self._headers: Final = headers_of(plan)
        self._context: Final = plan.access.context()
        self._lines: Final[list[Line | None]] = [None] * number
        self._failed: Final = [False] * number
        self._waiting: Final[deque[Call]] = deque()
        self._full: Final[set[Line]] = set()
        self._turn = 0
        self._keepers: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Connect; OSError where that is not possible."""
        self._lines[:] = [await self._connect() for _ in self._lines]
        self._keepers = [asyncio.create_task(self._keep(at)) for at in range(len(self._lines))]

    def close(self) -> None:
        """Close all connections."""
        for keeper in self._keepers:
            keeper.cancel()
        for line in self._lines:
            if line is not None:
                line.close()

    def place(self, call: Call) -> None:
        """Begin a call on a connection, or have it wait; :meth:`flush` follows."""
        if not self._waiting and (line := self._free()):
            self._begin(line, call)
        elif all(self._failed):
            self._ended(call, NO_CONNECTION)
        else:
            self._waiting.append(call)

    def flush(self) -> None:
        """Send what has begun."""
        while self._full:
            self._full.pop().flush()

    async def _connect(self) -> Line:
        target, loop = self._plan.target, asyncio.get_running_loop()
        async with asyncio.timeout(CONNECT_S):
            _, line = await loop.create_connection(
                lambda: Line(self._path, self._headers, self._ended, self._again, self._move),
                target.address,
                target.port,
                ssl=self._context,
                server_hostname=target.host if self._context else None,
            )
        return line

    async def _keep(self, at: int) -> None:
        """Have a connection in this place, whatever becomes of it."""
        while True:
            if (line := self._lines[at]) is not None:
                await line.going.wait()
            self._lines[at], pause = None, FIRST_PAUSE_S
            while self._lines[at] is None:
                try:
                    self._lines[at] = await self._connect()
                except OSError:
                    self._fail(at)
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, LONGEST_PAUSE_S)
            self._failed[at] = False
            self._move()

    def _fail(self, at: int) -> None:
        self._failed[at] = True
        while all(self._failed) and self._waiting:
            if not (call := self._waiting.popleft()).over:
                self._ended(call, NO_CONNECTION)

    def _again(self, call: Call) -> None:
        call.line = None
        self._waiting.appendleft(call)

    def _free(self) -> Line | None:
        for _ in self._lines:
            self._turn = (self._turn + 1) % len(self._lines)
            line = self._lines[self._turn]
            if line is not None and line.free:
                return line
        return None

    def _begin(self, line: Line, call: Call) -> None:
        line.begin(call, call.at + self._plan.deadline_s - self._clock())
        self._full.add(line)

    def _move(self) -> None:
        """Let those that wait begin, as far as there is room."""
        while self._waiting and (line := self._free()):
            if not (call := self._waiting.popleft()).over:
                self._begin(line, call)
        self.flush()
