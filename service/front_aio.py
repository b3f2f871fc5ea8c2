"""The grpc.aio front: bytes in, bytes out. A front knows how gRPC travels, and nothing about customers.

What the bytes mean is in ``convert``, what is done with them in ``batching``. This is the standard implementation.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from service import tls
from service.access import Access, Gate
from service.batching import Batcher
from service.convert import METHODS, Method, status
from service.errors import Code, Reason, RequestError
from service.framing import PUSHBACK
from service.handlers import NO_HANDLERS, Handlers, Stream, Unary
from service.settings import Settings
from service.standard import SERVICES
from service.watched import Watched

GRPC_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}
MOST_MS: Final = 2**31 - 1

Context = grpc.aio.ServicerContext[bytes, bytes]


class AioFront:
    """A grpc.aio server with all services, health and reflection."""

    def __init__(
        self,
        batcher: Batcher,
        settings: Settings,
        handlers: Handlers = NO_HANDLERS,
        certificates: Watched[tls.Tls] | None = None,
        access: Access | None = None,
    ) -> None:
        """``certificates``: for TLS; ``access``: who may call, where that is not everybody."""
        self._batcher = batcher
        self._settings = settings
        self._certificates = certificates
        own = self._handlers(METHODS, handlers)
        if access is not None:
            gate = Gate(access, self._handlers, handlers)
            own = {path: _admitted(gate, path) for path in own}
        self._methods: dict[str, Any] = {
            path: (_stream if path in handlers.streams else _unary)(handler) for path, handler in own.items()
        }
        self._health = health.aio.HealthServicer()

    def _handlers(self, scores: Mapping[str, Method], handlers: Handlers) -> dict[str, Handler]:
        """What answers a call, by path."""
        return {
            **{path: self._score(method) for path, method in scores.items()},
            **{path: _handle(handler) for path, handler in handlers.unary.items()},
            **{path: _take(begin) for path, begin in handlers.streams.items()},
        }

    async def start(self, port: int, *, share_port: bool = False) -> int:
        """Listen and return the port; OSError where that is not possible."""
        credentials = None if self._certificates is None else tls.server_credentials(self._certificates)
        self._server = grpc.aio.server(options=self._options(share_port))
        self._server.add_generic_rpc_handlers([_Methods(self._methods)])
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        await self.set_serving(False)
        address = f"{self._settings.host_of_address}:{port}"
        try:
            add = self._server.add_insecure_port
            found = add(address) if credentials is None else self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}") from error
        await self._server.start()
        return int(found)

    def _options(self, share_port: bool) -> list[tuple[str, int]]:
        settings = self._settings
        timeout_ms = min(int(settings.keepalive_timeout_s * 1000), MOST_MS)
        return [
            # On by default: a second server on the same port would start without a word and take half of the calls.
            ("grpc.so_reuseport", int(share_port)),
            ("grpc.max_receive_message_length", settings.max_message_bytes),
            ("grpc.max_send_message_length", settings.max_message_bytes),
            ("grpc.max_connection_age_ms", min(int(settings.max_connection_age_s * 1000), MOST_MS)),
            ("grpc.keepalive_time_ms", min(int(settings.keepalive_s * 1000), MOST_MS)),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.keepalive_timeout_ms", timeout_ms),
            ("grpc.http2.ping_timeout_ms", timeout_ms),
        ]

    async def set_serving(self, serving: bool) -> None:
        """Tell health whether calls can be answered."""
        told = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in ("", *SERVICES):
            await self._health.set(service, told)

    async def stop(self, grace_s: float) -> None:
        """Take no new calls, and give the running ones time to finish."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)

    def _score(self, method: Method) -> Handler:
        async def score(request: bytes, context: Context) -> bytes:
            part = method.decode(request)
            return method.encode(part, await self._batcher.score(part, context.cancelled))

        return score


Handler = Callable[[Any, Context], Awaitable[bytes]]
"""Answers a call; RequestError where it fails."""


class _Methods(grpc.GenericRpcHandler):
    """Methods by path. No serializers: the front passes bytes."""

    def __init__(self, methods: Mapping[str, Any]) -> None:
        self._methods = methods

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """The method of a call, None where there is none."""
        return self._methods.get(handler_call_details.method)


def _unary(handler: Handler) -> Any:
    return grpc.unary_unary_rpc_method_handler(_told(handler))


def _stream(handler: Handler) -> Any:
    return grpc.stream_unary_rpc_method_handler(_told(handler))


def _take(begin: Callable[[], Stream]) -> Handler:
    async def take(requests: AsyncIterator[bytes], _context: Context) -> bytes:
        stream = begin()
        async for request in requests:
            await stream.add(request)
        return stream.reply()

    return take


def _admitted(gate: Gate[Handler], path: str) -> Handler:
    """The handler for those who may call it; RequestError for others."""

    async def admitted(request: Any, context: Context) -> bytes:
        sent = dict(context.invocation_metadata() or ()).get("authorization")
        header = sent.encode() if isinstance(sent, str) else sent
        return await gate.find(path, header, tls.names_of_peer(context.auth_context()))(request, context)

    return admitted


def _handle(handler: Unary) -> Handler:
    async def handle(request: bytes, _context: Context) -> bytes:
        return await handler(request)

    return handle


def _told(handler: Handler) -> Any:
    """The handler with every error told as a status."""

    async def told(request: Any, context: Context) -> bytes:
        try:
            return await handler(request, context)
        except RequestError as error:
            await _abort(context, error)
        except Exception as error:  # nothing of the inside may reach the caller
            await _abort(context, RequestError(Reason.INTERNAL, f"the server failed ({type(error).__name__})"))
        raise AssertionError("abort returns never")

    return told


async def _abort(context: Context, error: RequestError) -> None:
    trailers: list[tuple[str, str | bytes]] = [("grpc-status-details-bin", status(error).SerializeToString())]
    if (wait_ms := error.pushback_ms) is not None:
        trailers.append((PUSHBACK.decode(), str(wait_ms)))
    await context.abort(GRPC_CODES[Code(error.code).value], error.message, tuple(trailers))
