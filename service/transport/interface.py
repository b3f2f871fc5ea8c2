"""What the two transports have in common: how they are started and stopped, and what they serve."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Protocol

from service.api.methods import NO_HANDLERS, Handlers
from service.auth.access import Access
from service.batching.score_batcher import ScoreBatcher
from service.file_watch import WatchedFiles
from service.settings import Settings
from service.telemetry.batch_stages import Tracer
from service.telemetry.metrics import Metrics
from service.transport.tls import Tls


@dataclass(frozen=True, eq=False)
class Backend:
    """What a transport serves, and what it is served with.

    Attributes:
        settings: The settings of the server.
        batcher: Scores customers.
        handlers: The methods other than those of ScoringService.
        certificates: The files of TLS; None to serve without TLS.
        access: Decides who may call what; None if everybody may call everything.
        metrics: Counts calls; None if nobody reads metrics.
        tracer: Traces calls; None if there is no collector.
    """

    settings: Settings
    batcher: ScoreBatcher
    handlers: Handlers = NO_HANDLERS
    certificates: WatchedFiles[Tls] | None = None
    access: Access | None = None
    metrics: Metrics | None = None
    tracer: Tracer | None = None


class Transport(Protocol):
    """A gRPC server for a backend, with health and reflection."""

    @property
    def serving(self) -> bool:
        """Whether health is SERVING."""

    async def start(self, port: int, listener: socket.socket | None = None) -> int:
        """Listen and accept connections.

        Args:
            port: The port to listen on; 0 takes a free one.
            listener: A bound socket to use instead of the port, which other processes may share.

        Returns:
            The port.

        Raises:
            OSError: The address cannot be listened on.
        """

    async def set_serving(self, serving: bool) -> None:
        """Set the status of the health service, and send it to those who watch it."""

    async def stop(self, grace_s: float) -> None:
        """Take no new calls, give running calls that many seconds to finish, and close all connections."""

    def expose(self, metrics: Metrics) -> None:
        """Register the metrics that only this transport has."""
