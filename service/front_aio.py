"""The grpc.aio front: bytes in, bytes out. A front knows how gRPC travels, and nothing about customers.

What the bytes mean is in ``convert``, what is done with them in ``batching``. This is the standard implementation.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextvars import ContextVar
from typing import Any, Final

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from service import tls
from service.batching import Batcher
from service.convert import METHODS, Method, status
from service.errors import Code, Reason, RequestError, given_up
from service.handlers import NO_HANDLERS, Handlers, Stream, Unary
from service.metrics import Metrics
from service.settings import Settings
from service.stages import Trace, Tracer
from service.standard import SERVICES

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
        metrics: Metrics | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._batcher = batcher
        self._settings = settings
        self._metrics = metrics
        self._tracer = tracer
        unary = {path: self._score(method) for path, method in METHODS.items()}
        unary |= {path: _handle(handler) for path, handler in handlers.unary.items()}
        self._methods: dict[str, Any] = {
            **{path: grpc.unary_unary_rpc_method_handler(self._told(path, handler)) for path, handler in unary.items()},
            **{
                path: grpc.stream_unary_rpc_method_handler(self._told(path, _take(begin)))
                for path, begin in handlers.streams.items()
            },
        }
        self.serving = False
        self._health = health.aio.HealthServicer()

    async def start(self, port: int, *, share_port: bool = False) -> int:
        """Listen and return the port; OSError where that is not possible."""
        credentials = tls.server_credentials(self._settings)
        self._server = grpc.aio.server(options=self._options(share_port))
        self._server.add_generic_rpc_handlers([_Methods(self._methods)])
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        if self._metrics is not None:
            self._server.add_generic_rpc_handlers([_Unknown(self._metrics)])
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
        self.serving = serving
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
            scores = await self._batcher.score(part, context.cancelled, TRACE.get())
            began = time.monotonic()
            reply = method.encode(part, scores)
            if self._metrics is not None:
                self._metrics.stages["encode"].observe(time.monotonic() - began)
            return reply

        return score

    def _told(self, path: str, handler: Handler) -> Any:
        """The handler with every error told as a status, and every end to those who count or trace."""

        async def told(request: Any, context: Context) -> bytes:
            began, code, cause = time.monotonic(), Code.OK, None
            trace = self._begin_trace(path, context, began)
            try:
                return await handler(request, context)
            except asyncio.CancelledError:
                code = given_up(context.time_remaining())
                raise
            except RequestError as error:
                code, cause = error.code, error
                await _abort(context, error)
            except Exception as error:  # nothing of the inside may reach the caller
                code, cause = (
                    Code.INTERNAL,
                    RequestError(Reason.INTERNAL, f"the server failed ({type(error).__name__})"),
                )
                await _abort(context, cause)
            finally:
                if self._metrics is not None:
                    self._metrics.ended(path, code, time.monotonic() - began, cause)
                if trace is not None:
                    trace.end(code, cause)
            raise AssertionError("abort returns never")

        return told

    def _begin_trace(self, path: str, context: Context, began: float) -> Trace | None:
        if self._tracer is None:
            return None
        headers: dict[str, Any] = dict(context.invocation_metadata() or ())
        trace = self._tracer.begin(path, headers.get("traceparent"), headers.get("tracestate"), began)
        TRACE.set(trace)
        return trace


TRACE: Final[ContextVar[Trace | None]] = ContextVar("TRACE", default=None)
"""The trace of the call that the running task answers."""
Handler = Callable[[Any, Context], Awaitable[bytes]]
"""Answers a call; RequestError where it fails."""


class _Methods(grpc.GenericRpcHandler):
    """Methods by path. No serializers: the front passes bytes."""

    def __init__(self, methods: Mapping[str, Any]) -> None:
        self._methods = methods

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """The method of a call, None where there is none."""
        return self._methods.get(handler_call_details.method)


class _Unknown(grpc.GenericRpcHandler):
    """Asked last, so there is no such method. What grpcio's core refuses by itself is seen by nobody here."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Count the call; grpcio ends it."""
        self._metrics.ended(handler_call_details.method, Code.UNIMPLEMENTED, 0.0)


def _take(begin: Callable[[], Stream]) -> Handler:
    async def take(requests: AsyncIterator[bytes], _context: Context) -> bytes:
        stream = begin()
        async for request in requests:
            await stream.add(request)
        return stream.reply()

    return take


def _handle(handler: Unary) -> Handler:
    async def handle(request: bytes, _context: Context) -> bytes:
        return await handler(request)

    return handle


async def _abort(context: Context, error: RequestError) -> None:
    details = (("grpc-status-details-bin", status(error).SerializeToString()),)
    await context.abort(GRPC_CODES[Code(error.code).value], error.message, details)
