"""The grpc.aio front: bytes in, bytes out. A front knows how gRPC travels, and nothing about customers.

What the bytes mean is in ``convert``, what is done with them in ``batching``. This is the standard implementation.
"""

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

from service.api.methods import NO_HANDLERS, Handlers, Stream, Unary
from service.api.scoring import METHODS, Method
from service.api.status import encoded_status
from service.auth.access import Access, Gate
from service.batching.admission import overloaded
from service.batching.score_batcher import ScoreBatcher
from service.call_context import CallContext
from service.errors import PUSHBACK, Code, Reason, RequestError, given_up, server_stopping
from service.file_watch import Watched
from service.settings import Settings
from service.telemetry.batch_stages import Trace, Tracer
from service.telemetry.metrics import Metrics
from service.transport import tls
from service.transport.grpcio.queue_probe import Lag
from service.transport.lean.framing import CallError
from service.transport.standard_services import SERVICES, Health, Reflection

GRPC_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}
MOST_MS: Final = 2**31 - 1
TELL_S: Final = 1.0
"""At a stop, those who watch health must have taken the news by then, and calls that are given up their status."""
UNARY: Final = grpc.unary_unary_rpc_method_handler
STREAM: Final = grpc.stream_unary_rpc_method_handler

GrpcContext = grpc.aio.ServicerContext[bytes, bytes]


class AioFront:
    """A grpc.aio server with all services, health and reflection."""

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
        self._batcher = batcher
        self._settings = settings
        self._metrics = metrics
        self._tracer = tracer
        self.serving = False
        self._lag = Lag(settings.max_queue_ms / 1000)
        self._certificates = certificates
        own = self._handlers(METHODS, handlers)
        if access is not None:
            gate = Gate(access, self._handlers, handlers)
            own = {path: _admitted(gate, path) for path in own}
        kinds: dict[str, tuple[Any, Handler]] = {
            **{path: (STREAM if path in handlers.streams else UNARY, handler) for path, handler in own.items()},
            # Not the servicer of grpcio-health-checking: there all watchers are forgotten when one of them leaves.
            "/grpc.health.v1.Health/Check": (UNARY, self._check),
            "/grpc.health.v1.Health/Watch": (grpc.unary_stream_rpc_method_handler, self._watch),
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": (
                grpc.stream_stream_rpc_method_handler,
                self._reflect,
            ),
        }
        self._methods = {path: kind(self._told(path, handler)) for path, (kind, handler) in kinds.items()}
        self._health = Health(("", *SERVICES))
        self._reflection = Reflection((*SERVICES, health.SERVICE_NAME))
        self._watches: set[asyncio.Queue[bytes | None]] = set()
        self._streams: set[asyncio.Task[bytes]] = set()

    def _handlers(self, scores: Mapping[str, Method], handlers: Handlers) -> dict[str, Handler]:
        """What answers a call, by path."""
        return {
            **{path: self._score(method) for path, method in scores.items()},
            **{path: _handle(handler) for path, handler in handlers.unary.items()},
            **{path: self._take(begin) for path, begin in handlers.streams.items()},
        }

    async def start(self, port: int, listener: socket.socket | None = None) -> int:
        """Listen and return the port; OSError where that is not possible.

        With a listener on its port beside others; grpcio takes no socket, so the kernel spreads connections over all.
        """
        port = port if listener is None else int(listener.getsockname()[1])
        credentials = None if self._certificates is None else tls.server_credentials(self._certificates)
        self._server = grpc.aio.server(options=self._options(listener is not None))
        sheds = dict.fromkeys(METHODS, self._shed_unread)
        self._server.add_generic_rpc_handlers([_Methods(self._methods, sheds, self._metrics)])
        address = f"{self._settings.host_of_address}:{port}"
        try:
            add = self._server.add_insecure_port
            found = add(address) if credentials is None else self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}") from error
        self._server.add_insecure_port(self._lag.address())
        await self._server.start()
        self._lag.start()
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
        self._health.set_serving(serving)
        if not serving and self._watches:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.gather(*(told.join() for told in self._watches)), TELL_S)

    async def stop(self, grace_s: float) -> None:
        """Take no new calls, and give the running ones time to finish."""
        await self.set_serving(False)
        stopping = asyncio.get_running_loop().create_task(self._server.stop(grace_s + TELL_S))
        await asyncio.sleep(0)  # GOAWAY first: who watches comes back elsewhere
        for told in self._watches:
            told.put_nowait(None)
        await asyncio.wait([stopping], timeout=grace_s)
        for taking in self._streams:
            taking.cancel()
        await stopping
        await self._lag.stop()

    async def _check(self, request: bytes, _context: CallContext, _grpc: GrpcContext) -> bytes:
        """Health.Check."""
        return self._health.check(request)

    async def _watch(self, request: bytes, _context: CallContext, grpc_context: GrpcContext) -> None:
        """Health.Watch: now, and whenever it changes."""
        told: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._health.watch(request, told.put_nowait)
        self._watches.add(told)
        try:
            while (reply := await told.get()) is not None:
                await grpc_context.write(reply)
                told.task_done()
            raise server_stopping()
        finally:
            self._watches.discard(told)
            self._health.unwatch(told.put_nowait)

    async def _reflect(self, requests: AsyncIterator[bytes], _context: CallContext, grpc_context: GrpcContext) -> None:
        """ServerReflectionInfo."""
        async for request in requests:
            await grpc_context.write(self._reflection.answer(request))

    def _take(self, begin: Callable[[CallContext], Stream]) -> Handler:
        async def take(requests: AsyncIterator[bytes], context: CallContext, _grpc: GrpcContext) -> bytes:
            taking = asyncio.get_running_loop().create_task(_taken(begin(context), requests))
            self._streams.add(taking)
            try:
                return await taking
            except asyncio.CancelledError:
                if (mine := asyncio.current_task()) is not None and mine.cancelling():  # nobody waits any more
                    raise
                raise server_stopping() from None
            finally:
                self._streams.discard(taking)

        return take

    def _shed_unread(self) -> float | None:
        if self._lag.sheds():
            return self._batcher.shed_for_lag()
        return self._batcher.shed_unread()

    def _score(self, method: Method) -> Handler:
        async def score(request: bytes, context: CallContext, grpc_context: GrpcContext) -> bytes:
            part = method.decode(request)
            scores = await self._batcher.score(part, grpc_context.cancelled, context)
            began = time.monotonic()
            reply = method.encode(part, scores)
            if self._metrics is not None:
                self._metrics.stages["encode"].observe(time.monotonic() - began)
            return reply

        return score

    def _told(self, path: str, handler: Handler) -> GrpcHandler:
        """The handler with every error told as a status, and every end to those who count or trace."""

        async def told(request: Any, grpc_context: GrpcContext) -> Any:
            began, code, cause = time.monotonic(), Code.OK, None
            trace = self._begin_trace(path, grpc_context, began)
            try:
                return await handler(request, CallContext(_deadline(grpc_context), trace), grpc_context)
            except asyncio.CancelledError:
                code = given_up(grpc_context.time_remaining())
                raise
            except CallError as error:
                code = Code(error.code)
                await grpc_context.abort(GRPC_CODES[code.value], error.message)
            except Exception as error:  # nothing of the inside may reach the caller
                cause = _as_told(error)
                code = cause.code
                await _abort(grpc_context, cause)
            finally:
                if self._metrics is not None:
                    self._metrics.ended(path, code, time.monotonic() - began, cause)
                if trace is not None:
                    trace.end(code, cause)
            raise AssertionError("abort returns never")

        return told

    def _begin_trace(self, path: str, grpc_context: GrpcContext, began: float) -> Trace | None:
        if self._tracer is None:
            return None
        headers: dict[str, Any] = dict(grpc_context.invocation_metadata() or ())
        return self._tracer.begin(path, headers.get("traceparent"), headers.get("tracestate"), began)


def _deadline(grpc_context: GrpcContext) -> float:
    """A call's deadline by the monotonic clock."""
    left_s = grpc_context.time_remaining()
    return math.inf if left_s is None else time.monotonic() + left_s


Handler = Callable[[Any, CallContext, GrpcContext], Awaitable[Any]]
"""Answers a call; RequestError where it fails."""
GrpcHandler = Callable[[Any, GrpcContext], Awaitable[Any]]
"""The same as grpcio calls it: no error leaves it but as a status."""


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
            return _refused(overloaded(retry_s))
        if (method := self._methods.get(path)) is None and self._metrics is not None:
            self._metrics.ended(path, Code.UNIMPLEMENTED, 0.0)
        return method


def _refused(error: RequestError) -> Any:
    async def refuse(_requests: AsyncIterator[bytes], context: GrpcContext) -> bytes:
        await _abort(context, error)
        raise AssertionError("abort returns never")

    return grpc.stream_unary_rpc_method_handler(refuse)  # of a stream nothing need be read


async def _taken(stream: Stream, requests: AsyncIterator[bytes]) -> bytes:
    async for request in requests:
        await stream.add(request)
    return stream.reply()


def _admitted(gate: Gate[Handler], path: str) -> Handler:
    """The handler for those who may call it; RequestError for others."""

    async def admitted(request: Any, context: CallContext, grpc_context: GrpcContext) -> Any:
        sent = dict(grpc_context.invocation_metadata() or ()).get("authorization")
        header = sent.encode() if isinstance(sent, str) else sent
        handler = gate.find(path, header, tls.names_of_peer(grpc_context.auth_context()))
        return await handler(request, context, grpc_context)

    return admitted


def _handle(handler: Unary) -> Handler:
    async def handle(request: bytes, context: CallContext, _grpc: GrpcContext) -> bytes:
        return await handler(request, context)

    return handle


def _as_told(error: Exception) -> RequestError:
    """The error as its caller is told of it."""
    if isinstance(error, RequestError):
        return error
    return RequestError(Reason.INTERNAL, f"the server failed ({type(error).__name__})")


async def _abort(grpc_context: GrpcContext, error: RequestError) -> None:
    details: list[tuple[str, str | bytes]] = [("grpc-status-details-bin", encoded_status(error))]
    if error.pushback_ms is not None:
        details.append((PUSHBACK, str(error.pushback_ms)))
    await grpc_context.abort(GRPC_CODES[Code(error.code).value], error.message, tuple(details))
