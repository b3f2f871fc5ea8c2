"""The server of the metrics: clients that are slow or many keep no threads."""

from __future__ import annotations

import socket
import threading
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from service.telemetry.scrape_server import MAX_SCRAPES, start_scrape_server
from tests.waiting import PATIENCE_S, until

PAGE = b"x" * 20_000_000
"""More than the buffers of a socket hold."""


@contextmanager
def serving(page: bytes, max_scrape_s: float = PATIENCE_S) -> Iterator[int]:
    def answer(_environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        start("200 OK", [("Content-Length", str(len(page)))])
        return [page]

    server = start_scrape_server("127.0.0.1", 0, answer, max_scrape_s)
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


def scraped(port: int) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE_S) as reply:
        return bytes(reply.read())


def test_a_scrape_is_answered() -> None:
    with serving(b"metrics") as port:
        assert scraped(port) == b"metrics"


def test_clients_that_do_not_read_or_do_not_ask_keep_no_threads() -> None:
    before = threading.active_count()
    with serving(PAGE, max_scrape_s=0.2) as port, ExitStack() as stack:
        for request in (b"GET /metrics HTTP/1.1\r\n\r\n", b"GET /met", b""):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            client.sendall(request)
        until(lambda: threading.active_count() > before + 1)
        until(lambda: threading.active_count() <= before + 1)  # that of the server itself


def test_further_connections_are_closed_at_once_and_served_again_later() -> None:
    with serving(b"metrics") as port, ExitStack() as stack:
        silent = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE_S)) for _ in range(MAX_SCRAPES)
        ]
        with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as further:
            assert further.recv(1) == b""
        silent[0].close()

        def answered() -> bool:
            try:
                return scraped(port) == b"metrics"
            except OSError:
                return False

        until(answered)
