"""The lean front: gRPC over HTTP/2 on one event loop, with no task and no thread for a unary call.

::

    socket ──► Http2 ──► call ──► batcher      what has arrived while a batch ran is the next batch
    socket ◄── Http2 ◄── call ◄── scores       all replies of a batch that go to one connection leave in one write
                 │         │
                 │         └ bad framing, too large, too late     a status in the trailers of this call
                 └ bad HTTP/2, a flood, no sign of life           GOAWAY, and the end of this connection alone

A connection never holds the loop for longer than a turn: what is left waits until the others had theirs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import select
import socket
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from grpc_health.v1 import health

from service.api.methods import NO_HANDLERS, Handlers
from service.api.scoring import METHODS, Method
from service.auth.access import Access, Gate
from service.batching.score_batcher import ScoreBatcher
from service.file_watch import Watched
from service.settings import Settings
from service.telemetry.batch_stages import Tracer
from service.telemetry.metrics import Metrics
from service.transport import tls
from service.transport.lean.call_types import (
    Call,
    Handled,
    HealthCheck,
    HealthWatch,
    Reflect,
    Score,
    Streamed,
    shed_reply,
)
from service.transport.lean.connection import HANDSHAKE_S, LINGER_S, TICK_S, Connection
from service.transport.lean.http2 import Alone, Shed, Stream
from service.transport.standard_services import SERVICES, Health, Reflection

logger = logging.getLogger(__name__)

BACKLOG: Final = 1024
"""Connections that may wait to be accepted."""
MOMENT_S: Final = 0.002
Begin = Callable[[Connection, Stream], Call]
"""Begins a call of one method."""


class LeanFront:
    """All services, health and reflection, on connections of our own."""

    def __init__(
        self,
        batcher: ScoreBatcher,
        settings: Settings,
        handlers: Handlers = NO_HANDLERS,
        certificates: Watched[tls.Tls] | None = None,
        access: Access | None = None,
        metrics: Metrics | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        """``certificates``: for TLS; ``access``: who may call, where that is not everybody."""
        self.batcher: Final = batcher
        self.settings: Final = settings
        self.metrics: Final = metrics
        self.tracer: Final = tracer
        self.health: Final = Health(("", *SERVICES))
        self.reflection: Final = Reflection((*SERVICES, health.SERVICE_NAME))
        own = _begins(METHODS, handlers)
        if access is not None:
            gate = Gate(access, _begins, handlers)
            own = {path: partial(_admitted, gate, path) for path in own}
        self.calls: Final[dict[bytes, Begin]] = {
            b"/grpc.health.v1.Health/Check": HealthCheck,
            b"/grpc.health.v1.Health/Watch": HealthWatch,
            b"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Reflect,
            **{path.encode(): begin for path, begin in own.items()},
        }
        self.sheds: Final[dict[bytes, Shed]] = {
            path.encode(): partial(self._shed, path) for path, method in METHODS.items() if method.single
        }
        self._certificates: Final = certificates
        self.serving = False
        self.connections: Final[set[Connection]] = set()
        self._unflushed: list[Connection] = []
        self._later: set[Connection] = set()
        self._ticking: asyncio.TimerHandle | None = None
        self._gone: asyncio.Event | None = None

    async def start(self, port: int, listener: socket.socket | None = None) -> int:
        """Listen, on a socket that is shared with others where one is given, and return the port; OSError or not."""
        loop = asyncio.get_running_loop()
        where: dict[str, Any] = {"host": self.settings.host, "port": port} if listener is None else {"sock": listener}
        self._server = await loop.create_server(
            lambda: Connection(self),
            **where,
            ssl=None if self._certificates is None else tls.NewestContext(self._certificates),
            ssl_handshake_timeout=None if self._certificates is None else HANDSHAKE_S,
            backlog=BACKLOG,
        )
        self._shared = listener is not None
        self._tick()
        return int(self._server.sockets[0].getsockname()[1])

    async def set_serving(self, serving: bool) -> None:
        """Tell health whether calls can be answered."""
        self.serving = serving
        self.health.set_serving(serving)

    async def stop(self, grace_s: float) -> None:
        """Take no new connections, ask clients to go, and give running calls time to finish."""
        await self.set_serving(False)
        await self._close_listener()
        self._gone = asyncio.Event()
        for connection in list(self.connections):
            connection.leave()
        await self._all_gone(grace_s)
        for connection in list(self.connections):
            connection.give_up()
        await self._all_gone(LINGER_S)
        for connection in list(self.connections):
            connection.abort()
        if self._ticking:
            self._ticking.cancel()

    async def _close_listener(self) -> None:
        """Accept what has been queued, which the kernel would reset, unless there are others to do so."""
        listener, queued = self._server.sockets[0], not self._shared
        for _ in range(BACKLOG if queued else 0):
            queued = bool(select.select([listener], [], [], 0)[0])
            await asyncio.sleep(0)
            if not queued:
                break
        self._server.close()
        await asyncio.sleep(0)  # for the last one to become a connection

    async def _all_gone(self, seconds: float) -> None:
        """Wait for the connections to end, for so long at most."""
        if self.connections and self._gone is not None:
            self._gone.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._gone.wait(), seconds)

    def _shed(self, path: str) -> Alone | None:
        if (retry_s := self.batcher.shed_unread()) is None:
            return None
        if self.metrics is not None:
            self.metrics.shed(path)
        return shed_reply(retry_s)

    def lost(self, connection: Connection) -> None:
        """Forget a connection."""
        self.connections.discard(connection)
        if self._gone is not None and not self.connections:
            self._gone.set()

    def flush_soon(self, connection: Connection) -> None:
        """Have the connection write what it has, once, after all of this turn of the loop."""
        if not self._unflushed:
            asyncio.get_running_loop().call_soon(self._flush)
        self._unflushed.append(connection)

    def _flush(self) -> None:
        unflushed, self._unflushed = self._unflushed, []
        for connection in unflushed:
            connection.flush()

    def flush_later(self, connection: Connection) -> None:
        """Have it flushed within a moment: who is shed is told together with the replies of a batch, if it is quick."""
        if not self._later:
            asyncio.get_running_loop().call_later(MOMENT_S, self._flush_late)
        self._later.add(connection)

    def _flush_late(self) -> None:
        later, self._later = self._later, set()
        for connection in later:
            connection.flush()

    def _tick(self) -> None:
        self._ticking = asyncio.get_running_loop().call_later(TICK_S, self._tick)
        now, held = time.monotonic(), 0
        for connection in list(self.connections):
            try:
                if self._gone is not None:  # it was accepted last of all
                    connection.leave()
                connection.tick(now)
            except Exception as error:  # whatever it is, the times of others are kept
                logger.error("closing a connection: %s", type(error).__name__)
                connection.abort()
            held += connection.held
        if held > self.settings.max_held_bytes:
            logger.warning("connections hold %d bytes: closing the one that holds most", held)
            max(self.connections, key=lambda connection: connection.held).abort()


def _begins(scores: Mapping[str, Method], handlers: Handlers) -> dict[str, Begin]:
    """What begins a call, by path."""
    return {
        **{path: partial(Score, method) for path, method in scores.items()},
        **{path: partial(Handled, handler) for path, handler in handlers.unary.items()},
        **{path: partial(Streamed, begin) for path, begin in handlers.streams.items()},
    }


def _admitted(gate: Gate[Begin], path: str, connection: Connection, stream: Stream) -> Call:
    """A call of somebody who may make it; RequestError for others, before their request has been read."""
    return gate.find(path, stream.headers.get(b"authorization"), connection.names)(connection, stream)
