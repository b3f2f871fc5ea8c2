"""The grpcio transport: grpc.aio's server, the standard implementation. It passes bytes and knows no message."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final

import grpc
import grpc.aio
from grpc_health.v1 import health

from service.api.methods import Stream, Unary
from service.api.scoring import METHODS, Method
from service.auth.access import required_scopes
from service.auth.callers import Scope
from service.batching.admission import overloaded
from service.call_context import CallContext, Quota
from service.errors import PUSHBACK, Code, cancellation_code, message_too_large, server_stopping
from service.telemetry.batch_stages import Trace
from service.telemetry.metrics import Metrics
from service.transport import tls
from service.transport.call_error import CallError, call_error
from service.transport.grpcio.queue_probe import QueueProbe
from service.transport.interface import Backend
from service.transport.standard_services import REFLECTION_PATHS, SERVICES, Health, Reflection

GRPC_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}
MAX_INT32: Final = 2**31 - 1
RECEIVED_FACTOR: Final = 4
"""grpcio receives messages up to this multiple of the limit, and then they are refused here. By itself it would refuse
them without details, so that a client could not know that a retry is useless. It does so beyond the multiple."""
NOTIFY_S: Final = 1.0
"""At a stop, seconds for those who watch health to receive the change, and for cancelled calls to get their status."""
UNARY: Final = grpc.unary_unary_rpc_method_handler
STREAM: Final = grpc.stream_stream_rpc_method_handler

GrpcContext = grpc.aio.ServicerContext[bytes, bytes]
Handler = Callable[[Any, CallContext, GrpcContext], Awaitable[Any]]
"""Answers a call; raises if the call fails."""
GrpcHandler = Callable[[Any, GrpcContext], Awaitable[Any]]
"""A handler as grpcio calls it: errors have become statuses."""


class GrpcioServer:
    """A :class:`service.transport.interface.Transport` on grpc.aio."""

    def __init__(self, backend: Backend) -> None:
        self._settings = backend.settings
        self._batcher = backend.batcher
        self._access = backend.access
        self._metrics = backend.metrics
        self._tracer = backend.tracer
        self._certificates = backend.certificates
        self.serving = False
        self._probe = QueueProbe(backend.settings.max_queue_s)
        self._health = Health(("", *SERVICES))
        self._reflection = Reflection((*SERVICES, health.SERVICE_NAME))
        self._watches: set[asyncio.Queue[bytes | None]] = set()
        self._streams: set[asyncio.Task[None]] = set()
        streams = backend.handlers.streams
        methods: dict[str, tuple[Any, Handler]] = {
            **{path: (UNARY, self._score(method)) for path, method in METHODS.items()},
            **{path: (UNARY, self._handle(handler)) for path, handler in backend.handlers.unary.items()},
            **{path: (STREAM, self._take(begin)) for path, begin in streams.items()},
        }
        open_to_all: dict[str, tuple[Any, Handler]] = {
            # Not the servicer of grpcio-health-checking: it forgets all watchers when one of them leaves.
            "/grpc.health.v1.Health/Check": (UNARY, self._check),
            "/grpc.health.v1.Health/Watch": (grpc.unary_stream_rpc_method_handler, self._watch),
            **dict.fromkeys(REFLECTION_PATHS, (STREAM, self._reflect)),
        }
        scopes = required_scopes(methods)
        self._methods = {
            path: kind(self._intercepted(path, scopes.get(path), handler))
            for path, (kind, handler) in (methods | open_to_all).items()
        }

    async def start(self, port: int, listener: socket.socket | None = None) -> int:
        """Listen and accept connections; see :class:`service.transport.interface.Transport`.

        grpcio takes no socket: with a listener it listens on the same port, and the kernel spreads the connections.
        """
        port = port if listener is None else int(listener.getsockname()[1])
        credentials = None if self._certificates is None else tls.server_credentials(self._certificates)
        self._server = grpc.aio.server(options=self._options(share_port=listener is not None))
        sheds = dict.fromkeys(METHODS, self._shed_unread)
        self._server.add_generic_rpc_handlers([_Methods(self._methods, sheds, self._metrics)])
        address = f"{self._settings.host_of_address}:{port}"
        try:
            add = self._server.add_insecure_port
            bound_port = add(address) if credentials is None else self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}") from error
        self._server.add_insecure_port(self._probe.address())
        await self._server.start()
        self._probe.start()
        return int(bound_port)

    def _options(self, *, share_port: bool) -> list[tuple[str, int]]:
        settings = self._settings
        timeout_ms = min(int(settings.keepalive_timeout_s * 1000), MAX_INT32)
        return [
            # On by default in grpcio: a second server on the port would start silently and take half of the calls.
            ("grpc.so_reuseport", int(share_port)),
            ("grpc.max_receive_message_length", min(RECEIVED_FACTOR * settings.max_message_bytes, MAX_INT32)),
            ("grpc.max_send_message_length", settings.max_message_bytes),
            ("grpc.max_connection_age_ms", min(int(settings.max_connection_age_s * 1000), MAX_INT32)),
            ("grpc.keepalive_time_ms", min(int(settings.keepalive_interval_s * 1000), MAX_INT32)),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.keepalive_timeout_ms", timeout_ms),
            ("grpc.http2.ping_timeout_ms", timeout_ms),
        ]

    async def set_serving(self, serving: bool) -> None:
        """Set the status of the health service, and send it to those who watch it."""
        self.serving = serving
        self._health.set_serving(serving)
        if not serving and self._watches:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.gather(*(replies.join() for replies in self._watches)), NOTIFY_S)

    async def stop(self, grace_s: float) -> None:
        """Take no new calls, and give running calls time to finish."""
        await self.set_serving(False)
        stopping = asyncio.get_running_loop().create_task(self._server.stop(grace_s + NOTIFY_S))
        await asyncio.sleep(0)  # GOAWAY first, so that those who watch health reconnect to another server
        for replies in self._watches:
            replies.put_nowait(None)
        await asyncio.wait([stopping], timeout=grace_s)
        for task in self._streams:
            task.cancel()
        await stopping
        await self._probe.stop()

    def expose(self, metrics: Metrics) -> None:
        """Register nothing: grpcio does not show its connections."""

    async def _check(self, request: bytes, _context: CallContext, _grpc: GrpcContext) -> bytes:
        """Health.Check."""
        return self._health.check(request)

    async def _watch(self, request: bytes, _context: CallContext, grpc_context: GrpcContext) -> None:
        """Health.Watch: the current status, and the new one at each change."""
        replies: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._health.watch(request, replies.put_nowait)
        self._watches.add(replies)
        try:
            while (reply := await replies.get()) is not None:
                await grpc_context.write(reply)
                replies.task_done()
            raise server_stopping()
        finally:
            self._watches.discard(replies)
            self._health.unwatch(replies.put_nowait)

    async def _reflect(self, requests: AsyncIterator[bytes], _context: CallContext, grpc_context: GrpcContext) -> None:
        """ServerReflectionInfo."""
        async for request in requests:
            await grpc_context.write(self._reflection.answer(request))

    def _take(self, begin: Callable[[CallContext], Stream]) -> Handler:
        async def take(requests: AsyncIterator[bytes], context: CallContext, grpc_context: GrpcContext) -> None:
            handling = asyncio.get_running_loop().create_task(
                _handle_all(begin(context), requests, grpc_context, self._settings.max_message_bytes)
            )
            self._streams.add(handling)
            try:
                await handling
            except asyncio.CancelledError:
                if (task := asyncio.current_task()) is not None and task.cancelling():  # the client has cancelled
                    raise
                raise server_stopping() from None
            finally:
                self._streams.discard(handling)

        return take

    def _shed_unread(self) -> float | None:
        if self._probe.sheds():
            return self._batcher.shed_for_lag()
        return self._batcher.shed_unread()

    def _score(self, method: Method) -> Handler:
        async def score(request: bytes, context: CallContext, grpc_context: GrpcContext) -> bytes:
            _check_size(request, self._settings.max_message_bytes)
            part = method.decode(request)
            context.charge(len(part.customer_ids))
            scores = await self._batcher.score(part, grpc_context.cancelled, context)
            began = time.monotonic()
            if method.encodes_at_once(scores):
                reply = method.encode(part, scores)
            else:
                reply = await method.encode_in_slices(part, scores)
            if self._metrics is not None:
                self._metrics.stages["encode"].observe(time.monotonic() - began)
            return reply

        return score

    def _handle(self, handler: Unary) -> Handler:
        async def handle(request: bytes, context: CallContext, _grpc: GrpcContext) -> bytes:
            _check_size(request, self._settings.max_message_bytes)
            return await handler(request, context)

        return handle

    def _intercepted(self, path: str, scope: Scope | None, handler: Handler) -> GrpcHandler:
        """Wrap a handler: check the caller, turn errors into statuses, and count and trace the call."""

        async def intercepted(request: Any, grpc_context: GrpcContext) -> Any:
            started, code, cause = time.monotonic(), Code.OK, None
            trace = self._begin_trace(path, grpc_context, started)
            try:
                context = CallContext(_deadline(grpc_context), trace, self._authorize(scope, grpc_context))
                return await handler(request, context, grpc_context)
            except asyncio.CancelledError:
                code = cancellation_code(grpc_context.time_remaining())
                raise
            except Exception as error:  # whatever it is, the call ends with a status
                status = call_error(error)
                code, cause = status.code, None if isinstance(error, CallError) else error
                await _abort(grpc_context, status)
            finally:
                if self._metrics is not None:
                    self._metrics.ended(path, code, time.monotonic() - started, cause)
                if trace is not None:
                    trace.end(code, cause)
            raise AssertionError("abort returns never")

        return intercepted

    def _authorize(self, scope: Scope | None, grpc_context: GrpcContext) -> Quota | None:
        """The quota of the caller, None if there is no limit; RequestError if the caller may not make this call."""
        if self._access is None or scope is None:
            return None
        headers = [value for name, value in grpc_context.invocation_metadata() or () if name == "authorization"]
        if len(headers) > 1:
            raise self._access.repeated()
        header = headers[0] if headers else None
        names = tls.names_of_peer(grpc_context.auth_context())
        return self._access.authorize(header.encode() if isinstance(header, str) else header, names, scope).bucket

    def _begin_trace(self, path: str, grpc_context: GrpcContext, started: float) -> Trace | None:
        if self._tracer is None:
            return None
        headers: dict[str, Any] = dict(grpc_context.invocation_metadata() or ())
        return self._tracer.begin(path, headers.get("traceparent"), headers.get("tracestate"), started)


def _deadline(grpc_context: GrpcContext) -> float:
    """A call's deadline by the monotonic clock."""
    left_s = grpc_context.time_remaining()
    return math.inf if left_s is None else time.monotonic() + left_s


class _Methods(grpc.GenericRpcHandler):
    """Methods by path. No serializers: the front passes bytes."""

    def __init__(
        self, methods: Mapping[str, Any], sheds: Mapping[str, Callable[[], float | None]], metrics: Metrics | None
    ) -> None:
        self._methods = methods
        self._sheds = sheds
        self._metrics = metrics

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """The method of a call, None where there is none; where it is shed, what says so without reading it."""
        path = handler_call_details.method
        if (shed := self._sheds.get(path)) is not None and (retry_s := shed()) is not None:
            if self._metrics is not None:
                self._metrics.shed(path)
            return _refused(call_error(overloaded(retry_s)))
        if (method := self._methods.get(path)) is None and self._metrics is not None:
            self._metrics.ended(path, Code.UNIMPLEMENTED, 0.0)
        return method


def _refused(status: CallError) -> Any:
    async def refuse(_requests: AsyncIterator[bytes], grpc_context: GrpcContext) -> bytes:
        await _abort(grpc_context, status)
        raise AssertionError("abort returns never")

    return grpc.stream_unary_rpc_method_handler(refuse)  # of a stream nothing need be read


async def _handle_all(
    stream: Stream, requests: AsyncIterator[bytes], grpc_context: GrpcContext, max_message_bytes: int
) -> None:
    async for request in requests:
        _check_size(request, max_message_bytes)
        await grpc_context.write(await stream.answer(request))


def _check_size(request: bytes, max_message_bytes: int) -> None:
    """Refuse a request that is too large, though grpcio has received it: see RECEIVED_FACTOR."""
    if len(request) > max_message_bytes:
        raise message_too_large(str(len(request)), max_message_bytes)


async def _abort(grpc_context: GrpcContext, status: CallError) -> None:
    details: list[tuple[str, str | bytes]] = []
    if status.details:
        details.append(("grpc-status-details-bin", status.details))
    if status.pushback_ms is not None:
        details.append((PUSHBACK, str(status.pushback_ms)))
    await grpc_context.abort(GRPC_CODES[status.code.value], status.message, tuple(details))
