"""An HTTP server for scrapes, in threads whose number and time are limited: no client can keep one for ever."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

MAX_SCRAPES: Final = 16
"""Connections at the same time; further ones are closed at once."""
MAX_SCRAPE_S: Final = 10.0
"""Seconds for a connection from its beginning to its end, however little of it the client reads or writes."""

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
"""A WSGI application."""


class _Server(ThreadingMixIn, WSGIServer):
    """A thread per connection."""

    daemon_threads = True
    max_scrape_s = MAX_SCRAPE_S

    def __init__(self, address: tuple[str, int], handler: type[WSGIRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)
        self._places = threading.BoundedSemaphore(MAX_SCRAPES)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread, if there is a place."""
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection, and end it when its time is over."""
        limit = threading.Timer(self.max_scrape_s, _end, [request])
        limit.daemon = True
        limit.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            limit.cancel()
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that goes away, or is too slow, is no fault of the server."""


class _Handler(WSGIRequestHandler):
    """Writes no log."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name in the base class
        """Say nothing."""

    def get_stderr(self) -> Any:
        """Where tracebacks of clients that went away are written: nowhere."""
        return _Nowhere()


class _Nowhere:
    """A file that takes everything."""

    def write(self, text: str) -> int:
        """Drop it."""
        return len(text)

    def flush(self) -> None:
        """Nothing to do."""


def _end(connection: socket.socket) -> None:
    """End a connection that another thread reads or writes; that thread then fails."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it has ended


def start_scrape_server(
    host: str, port: int, application: Application, max_scrape_s: float = MAX_SCRAPE_S
) -> WSGIServer:
    """Serve an application in threads until ``shutdown`` and ``server_close`` are called.

    Args:
        host: Address to listen on.
        port: Port to listen on; 0 for a free one.
        application: Answers the requests.
        max_scrape_s: Seconds for a connection.

    Raises:
        OSError: The address cannot be listened on.
    """
    server = make_server(host, port, application, _Server, _Handler)
    server.max_scrape_s = max_scrape_s
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
