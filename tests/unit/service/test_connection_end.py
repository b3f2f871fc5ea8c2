"""The end of a connection: what has been answered is written before it, and what has not is told to come again."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import pytest

from service.api.methods import Handlers
from service.batching.score_batcher import ScoreBatcher
from service.call_context import CallContext
from service.settings import Settings
from service.transport.interface import Backend
from service.transport.lean.connection import Connection
from service.transport.lean.server import LeanServer
from tests.fuzz import Scorer, Transport

PATH = "/tidemark.v1.EventService/RecordEvents"


class Peer:
    """A client without a socket, whose call waits for ``answer``."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        settings = Settings(registry=Path("none"), redis="none")
        server = LeanServer(Backend(settings, ScoreBatcher(Scorer().score), Handlers({PATH: self._handle})))
        self.transport = Transport(reads=True)
        self.connection = self.transport.protocol = Connection(server)
        self.connection.connection_made(self.transport)
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.h2.send_headers(1, [*_HEADERS.items()])
        self.h2.send_data(1, bytes(5), end_stream=True)
        self.events: list[h2.events.Event] = []

    async def _handle(self, _request: bytes, _context: CallContext) -> bytes:
        return await self.answer

    async def exchange(self) -> None:
        """What either has to say is heard by the other."""
        self.connection.data_received(self.h2.data_to_send())
        for _ in range(3):
            await asyncio.sleep(0)
        for frame in _frames(bytes(self.transport.written)):
            if frame[3] != GOAWAY:  # after which h2 hears nothing
                self.events += self.h2.receive_data(frame)
        self.transport.written.clear()

    @property
    def trailers(self) -> dict[str, str]:
        """Of the call."""
        result = [e for e in self.events if isinstance(e, h2.events.TrailersReceived | h2.events.ResponseReceived)]
        return {str(name): str(value) for event in result for name, value in event.headers or []}


GOAWAY = 7
_HEADERS = {":method": "POST", ":scheme": "http", ":path": PATH, ":authority": "x", "content-type": "application/grpc"}


def _frames(data: bytes) -> list[bytes]:
    result = []
    while data:
        end = 9 + int.from_bytes(data[:3])
        result.append(data[:end])
        data = data[end:]
    return result


def test_a_reply_that_waits_to_be_written_is_written_before_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        peer = Peer()
        await peer.exchange()
        peer.connection.leave()
        await peer.exchange()  # GOAWAY and a ping
        await peer.exchange()  # and its answer
        peer.connection.tick(time.monotonic())
        monkeypatch.setattr(peer.connection, "_flush_soon", lambda: None)  # the turn is not over
        peer.answer.set_result(b"done")
        for _ in range(3):
            await asyncio.sleep(0)
        peer.connection.tick(time.monotonic())
        await peer.exchange()
        assert peer.trailers["grpc-status"] == "0"

    asyncio.run(scenario())


def test_a_call_whose_time_is_up_is_told_to_come_again() -> None:
    async def scenario() -> None:
        peer = Peer()
        await peer.exchange()
        peer.connection.leave()
        peer.connection.give_up()
        peer.connection.give_up()  # twice is once
        await peer.exchange()
        assert peer.trailers["grpc-status"] == "14"
        assert "stopping" in peer.trailers["grpc-message"]

    asyncio.run(scenario())
