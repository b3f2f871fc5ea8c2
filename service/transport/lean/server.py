"""The lean transport: gRPC over HTTP/2 on one event loop, with neither a task nor a thread for a unary call.

::

    socket ──► Http2 ──► call ──► batcher      calls that arrive while a batch runs form the next batch
    socket ◄── Http2 ◄── call ◄── scores       all replies of a batch to one connection are sent in one write
                 │         │
                 │         └ bad framing, too large, too late     a status in the trailers of this call
                 └ bad HTTP/2, a flood, no answer to a ping       GOAWAY, and the end of this connection only

A connection never holds the event loop longer than a turn: what is left waits until the others had theirs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import select
import socket
import time
from functools import partial
from typing import Any, Final

from grpc_health.v1 import health

from service.api.scoring import METHODS
from service.auth.access import required_scopes
from service.call_context import Quota
from service.telemetry.metrics import Metrics
from service.transport import tls
from service.transport.interface import Backend
from service.transport.lean.call import MakeCall
from service.transport.lean.call_types import (
    Handled,
    HealthCheck,
    HealthWatch,
    Reflect,
    Score,
    Streamed,
    shed_reply,
)
from service.transport.lean.connection import TICK_S, Connection
from service.transport.lean.connection_limit import ConnectionLimit
from service.transport.lean.http2 import HeadersOnlyReply, LoadShedder, Stream
from service.transport.lean.lifetime import HANDSHAKE_S, LINGER_S
from service.transport.standard_services import REFLECTION_PATHS, SERVICES, Health, Reflection

logger = logging.getLogger(__name__)

BACKLOG: Final = 1024
"""Connections that may wait to be accepted."""


class LeanServer:
    """A :class:`service.transport.interface.Transport` on our own connections."""

    def __init__(self, backend: Backend) -> None:
        self.settings: Final = backend.settings
        self.metrics: Final = backend.metrics
        self.tracer: Final = backend.tracer
        self._batcher: Final = backend.batcher
        self._access: Final = backend.access
        self._certificates: Final = backend.certificates
        self.health: Final = Health(("", *SERVICES))
        self.serving = False
        self.connections: Final[set[Connection]] = set()
        self.limit: Final = ConnectionLimit(backend.settings.max_connections)
        methods = _methods(backend)
        self._scopes: Final = {path.encode(): scope for path, scope in required_scopes(methods).items()}
        reflection = Reflection((*SERVICES, health.SERVICE_NAME))
        self.calls: Final[dict[bytes, MakeCall]] = {
            b"/grpc.health.v1.Health/Check": partial(HealthCheck, self.health),
            b"/grpc.health.v1.Health/Watch": partial(HealthWatch, self.health),
            **{path.encode(): partial(Reflect, reflection) for path in REFLECTION_PATHS},
            **{path.encode(): make for path, make in methods.items()},
        }
        self.sheds: Final[dict[bytes, LoadShedder]] = {
            path.encode(): partial(self._shed, path) for path, method in METHODS.items() if method.single
        }
        self._server: asyncio.Server | None = None
        self._shares_port = False
        self._next_tick: asyncio.TimerHandle | None = None
        self._all_closed: asyncio.Event | None = None
        """Set when the last connection has gone; None until the server stops."""

    async def start(self, port: int, listener: socket.socket | None = None) -> int:
        """Listen and accept connections; see :class:`service.transport.interface.Transport`."""
        loop = asyncio.get_running_loop()
        address: dict[str, Any] = {"host": self.settings.host, "port": port} if listener is None else {"sock": listener}
        self._server = await loop.create_server(
            lambda: Connection(self),
            **address,
            ssl=None if self._certificates is None else tls.NewestContext(self._certificates),
            ssl_handshake_timeout=None if self._certificates is None else HANDSHAKE_S,
            backlog=BACKLOG,
        )
        self._shares_port = listener is not None
        self._tick()
        return int(self._server.sockets[0].getsockname()[1])

    async def set_serving(self, serving: bool) -> None:
        """Set the status of the health service, and send it to those who watch it."""
        self.serving = serving
        self.health.set_serving(serving)

    def expose(self, metrics: Metrics) -> None:
        """Register the number of connections."""
        metrics.gauge("tidemark_connections", "Open connections. Lean only.", lambda: len(self.connections))

    async def stop(self, grace_s: float) -> None:
        """Take no new connections, ask clients to leave, and give running calls time to finish."""
        await self.set_serving(False)
        await self._close_listener()
        self._all_closed = asyncio.Event()
        for connection in list(self.connections):
            connection.leave()
        await self._wait_until_closed(grace_s)
        for connection in list(self.connections):
            connection.give_up()
        await self._wait_until_closed(LINGER_S)
        for connection in list(self.connections):
            connection.abort()
        if self._next_tick:
            self._next_tick.cancel()

    async def _close_listener(self) -> None:
        """Close the listener.

        Connections that wait to be accepted are accepted first, unless others share the port: the kernel would reset
        them.
        """
        if self._server is None:
            return
        listener, queued = self._server.sockets[0], not self._shares_port
        for _ in range(BACKLOG if queued else 0):
            queued = bool(select.select([listener], [], [], 0)[0])
            await asyncio.sleep(0)
            if not queued:
                break
        self._server.close()
        await asyncio.sleep(0)  # the connection accepted last is made in this turn of the loop

    async def _wait_until_closed(self, timeout_s: float) -> None:
        if self.connections and self._all_closed is not None:
            self._all_closed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._all_closed.wait(), timeout_s)

    def _shed(self, path: str) -> HeadersOnlyReply | None:
        if (retry_s := self._batcher.shed_unread()) is None:
            return None
        if self.metrics is not None:
            self.metrics.shed(path)
        return shed_reply(retry_s)

    def authorize(self, stream: Stream, connection: Connection) -> Quota | None:
        """The quota of the caller, None if there is no limit; RequestError if the caller may not make this call.

        Health and reflection are open to everybody.
        """
        if self._access is None or (scope := self._scopes.get(stream.path)) is None:
            return None
        if stream.repeats_authorization:
            raise self._access.repeated()
        header = stream.headers.get(b"authorization")
        caller = self._access.authorize(header, connection.certificate_names, scope)
        connection.is_known = True
        return caller.bucket

    def lost(self, connection: Connection) -> None:
        """Forget a connection that has been closed."""
        self.connections.discard(connection)
        self.limit.lost(connection)
        if self._all_closed is not None and not self.connections:
            self._all_closed.set()

    def _tick(self) -> None:
        self._next_tick = asyncio.get_running_loop().call_later(TICK_S, self._tick)
        now, buffered = time.monotonic(), 0
        for connection in list(self.connections):
            try:
                if self._all_closed is not None:  # accepted while the server stops
                    connection.leave()
                connection.tick(now)
            except Exception as error:  # whatever it is, the other connections have their tick
                logger.error("closing a connection: %s", type(error).__name__)
                connection.abort()
            buffered += connection.buffered_bytes
        if buffered > self.settings.max_total_buffered_bytes:
            logger.warning("connections hold %d bytes: closing the one that holds most", buffered)
            max(self.connections, key=lambda connection: connection.buffered_bytes).abort()


def _methods(backend: Backend) -> dict[str, MakeCall]:
    """What begins a call, by path, for the services that need a scope."""
    handlers = backend.handlers
    return {
        **{path: partial(Score, backend.batcher, method) for path, method in METHODS.items()},
        **{path: partial(Handled, handler) for path, handler in handlers.unary.items()},
        **{path: partial(Streamed, begin) for path, begin in handlers.streams.items()},
    }
