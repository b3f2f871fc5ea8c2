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
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from grpc_health.v1 import health

from service import tls
from service.batching import Batcher
from service.calls import Call, Handled, HealthCheck, HealthWatch, Reflect, Score, Streamed
from service.connection import HANDSHAKE_S, TICK_S, Connection
from service.convert import METHODS
from service.handlers import NO_HANDLERS, Handlers
from service.http2 import Stream
from service.metrics import Metrics
from service.settings import Settings
from service.stages import Tracer
from service.standard import SERVICES, Health, Reflection

logger = logging.getLogger(__name__)


class LeanFront:
    """All services, health and reflection, on connections of our own."""

    def __init__(
        self,
        batcher: Batcher,
        settings: Settings,
        handlers: Handlers = NO_HANDLERS,
        metrics: Metrics | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self.batcher: Final = batcher
        self.settings: Final = settings
        self.metrics: Final = metrics
        self.tracer: Final = tracer
        self.health: Final = Health(("", *SERVICES))
        self.reflection: Final = Reflection((*SERVICES, health.SERVICE_NAME))
        self.calls: Final[dict[bytes, Callable[[Connection, Stream], Call]]] = {
            b"/grpc.health.v1.Health/Check": HealthCheck,
            b"/grpc.health.v1.Health/Watch": HealthWatch,
            b"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Reflect,
            **{path.encode(): partial(Score, method) for path, method in METHODS.items()},
            **{path.encode(): partial(Handled, handler) for path, handler in handlers.unary.items()},
            **{path.encode(): partial(Streamed, begin) for path, begin in handlers.streams.items()},
        }
        self.serving = False
        self.connections: Final[set[Connection]] = set()
        self._unflushed: list[Connection] = []
        self._ticking: asyncio.TimerHandle | None = None
        self._gone: asyncio.Event | None = None

    async def start(self, port: int, *, share_port: bool = False) -> int:
        """Listen and return the port; OSError where that is not possible."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self),
            self.settings.host,
            port,
            ssl=tls.server_context(self.settings),
            ssl_handshake_timeout=HANDSHAKE_S if self.settings.tls_certificate else None,
            backlog=1024,
            reuse_port=share_port,
        )
        self._tick()
        return int(self._server.sockets[0].getsockname()[1])

    async def set_serving(self, serving: bool) -> None:
        """Tell health whether calls can be answered."""
        self.serving = serving
        self.health.set_serving(serving)

    async def stop(self, grace_s: float) -> None:
        """Take no new connections, ask clients to go, and give running calls time to finish."""
        self._server.close()
        self.health.set_serving(False)
        for connection in list(self.connections):
            connection.leave()
        self._gone = asyncio.Event()
        if self.connections:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._gone.wait(), grace_s)
        for connection in list(self.connections):
            connection.abort()
        if self._ticking:
            self._ticking.cancel()

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

    def _tick(self) -> None:
        self._ticking = asyncio.get_running_loop().call_later(TICK_S, self._tick)
        now, held = time.monotonic(), 0
        for connection in list(self.connections):
            try:
                connection.tick(now)
            except Exception as error:  # whatever it is, the times of others are kept
                logger.error("closing a connection: %s", type(error).__name__)
                connection.abort()
            held += connection.held
        if held > self.settings.max_held_bytes:
            logger.warning("connections hold %d bytes: closing the one that holds most", held)
            max(self.connections, key=lambda connection: connection.held).abort()
