"""The life of a server: its components are built, serve while health follows Redis, and stop in order."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Final

import uvloop

from feature_store.bundles.bundle import BundleError
from feature_store.errors import InputError, ReadOnlyStoreError, StoreUnavailableError
from feature_store.online.customer_store import CustomerStore
from feature_store.online.store import RedisStore
from service.app.components import Components, build
from service.app.metric_catalog import expose
from service.app.worker_slot import READY
from service.file_watch import watch_files
from service.settings import Settings
from service.telemetry.logs import log_loop_error, start_log
from service.telemetry.prometheus import answer_scrapes, exposed
from service.telemetry.setup import watch_loop

GC_THRESHOLD: Final = 20_000
"""Allocations between garbage collections. Calls leave no cycles behind, so it seldom has to run: 3 % of a call."""
SWITCH_S: Final = 0.0005
"""How long the event loop waits for a thread that runs Python: one that loads a model, explains, or runs a shadow."""

COUNTS_S: Final = 60.0
SETTLE_S: Final = 0.05
"""An outage of Redis that is shorter is not reported by health."""
SERVING: Final = "health is SERVING"

logger: Final = logging.getLogger("tidemark")


def work(settings: Settings, listener: socket.socket, pipe: Connection, asked: Connection) -> None:
    """Serve as one of the workers, until SIGTERM or until the supervisor's end of ``pipe`` is closed.

    Args:
        settings: The settings of the server.
        listener: The socket to listen on.
        pipe: Takes READY, or why the worker cannot start.
        asked: Where metrics are asked for.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a terminal signals all processes; only the supervisor acts on it
    start_log(settings)
    try:
        uvloop.run(serve(settings, asked, listener=listener, pipe=pipe))
    except (BundleError, InputError, OSError) as error:
        pipe.send(str(error))


def serve_alone(settings: Settings) -> None:
    """Serve in this process, without a supervisor; see :func:`serve`."""
    ask, asked = Pipe()
    with exposed(settings, lambda: {0: ask}):
        uvloop.run(serve(settings, asked))


async def serve(
    settings: Settings, asked: Connection, *, listener: socket.socket | None = None, pipe: Connection | None = None
) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP.

    Args:
        settings: The settings of the server.
        asked: Where metrics are asked for.
        listener: The socket to listen on, for a worker.
        pipe: For a worker, the pipe to its supervisor; SIGHUP is then left to the supervisor.

    Raises:
        BundleError: The registry has no usable bundle.
        InputError: A setting cannot be used.
        OSError: The address cannot be listened on.
    """
    sys.setswitchinterval(SWITCH_S)
    components = await build(settings)
    asyncio.get_running_loop().set_exception_handler(log_loop_error)
    stopping, stop = _stopping()
    for number in (signal.SIGINT, signal.SIGTERM, *((signal.SIGHUP,) if pipe is None else ())):
        asyncio.get_running_loop().add_signal_handler(number, stop, settings.drain_s)
    if (metrics := components.telemetry.metrics) is not None:
        expose(metrics, components)
        answer_scrapes(asked, metrics.snapshot)
    port = await components.transport.start(settings.port, listener)
    _freeze_loaded_objects()
    _log_model(components)
    if pipe is None:
        logger.info("serving on %s:%d", settings.host_of_address, port)
    else:
        asyncio.get_running_loop().add_reader(pipe.fileno(), stop, 0.0)
        pipe.send(READY)
    tasks, watching = _tasks(components), asyncio.create_task(_watch(components))
    drain_s = await stopping
    for task in tasks:
        task.cancel()
    while not watching.done():  # a library in between may keep a cancellation to itself
        watching.cancel()
        await asyncio.wait([watching], timeout=0.1)
    await _stop(components, drain_s)


def _stopping() -> tuple[asyncio.Future[float], Callable[[float], None]]:
    """A future of the seconds to drain, set when the server has to stop, and the function that sets it once."""
    stopping: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def stop(drain_s: float) -> None:
        if not stopping.done():
            stopping.set_result(drain_s)

    return stopping, stop


def _freeze_loaded_objects() -> None:
    """Keep the garbage collector away from what stays loaded: walking it would pause all calls."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)


def _log_model(components: Components) -> None:
    active = components.router.model_set.active.model
    names = {"model": active.version, "fingerprint": active.layout.fingerprint}
    logger.info("model %s, fingerprint %s", *names.values(), extra=names)


def _tasks(components: Components) -> list[asyncio.Task[None]]:
    """Start what runs beside the calls, until it is cancelled."""
    follow = components.watcher.run(components.settings.registry_interval_s)
    works = [follow, watch_files(components.watched_files), _log_counts(components)]
    if (metrics := components.telemetry.metrics) is not None:
        works.append(watch_loop(metrics))
    return [asyncio.create_task(work) for work in works]


async def _stop(components: Components, drain_s: float) -> None:
    """Stop in order: health, new calls, running calls, and at last the traces and the log of counts."""
    grace_s = components.settings.grace_s
    await components.transport.set_serving(False)
    what = "stopping: health is NOT_SERVING; new calls are taken for %g s more, then running calls have %g s to finish"
    logger.info(what, drain_s, grace_s, extra={"serving": False})
    await asyncio.sleep(drain_s)
    await components.transport.stop(grace_s)
    await components.redis.close()
    if components.telemetry.tracer is not None:
        await components.telemetry.tracer.close()
    for counts in _counts(components):
        logger.info(counts)
    logger.info("stopped")


async def _watch(components: Components) -> None:
    """Let health follow Redis: at once when a call or the breaker notices a change, otherwise at each probe."""
    redis, last_state = components.redis, ""
    serving: bool | None = None
    while True:
        redis.changed.clear()
        await redis.follow()
        answers, state = await probe(redis, components.customers)
        if answers is not serving:
            await components.transport.set_serving(answers)
            serving = answers
        if state != last_state:
            last_state = state
            logger.log(logging.INFO if state == SERVING else logging.WARNING, state, extra={"serving": answers})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(components.settings.health_interval_s):
                await redis.changed.wait()
            await asyncio.sleep(SETTLE_S)


async def probe(redis: RedisStore, customers: CustomerStore) -> tuple[bool, str]:
    """Whether scores can be answered, and the line for the log.

    The probe registers this server's features: that changes nothing in a Redis that knows them, restores them in one
    that was emptied, and shows whether Redis takes writes.
    """
    try:
        await redis.check()
        await customers.ensure_registered()
    except ReadOnlyStoreError as error:
        return True, f"health is SERVING, scores only: Redis takes no writes ({error})"
    except StoreUnavailableError as error:
        return False, f"health is NOT_SERVING: Redis does not answer as it should ({error})"
    return True, SERVING


async def _log_counts(components: Components) -> None:
    """Log the counts of events and dropped calls every minute in which they have changed."""
    last_lines: list[str] = []
    while True:
        await asyncio.sleep(COUNTS_S)
        lines = _counts(components)
        for line in lines:
            if line not in last_lines:
                logger.info(line)
        last_lines = lines


def _counts(components: Components) -> list[str]:
    """Counts since the start as lines for the log; empty if there is nothing to report."""
    lines = []
    if events := _joined({**components.event_batcher.counts, "spikes": components.scorers.spikes}):
        lines.append(f"events so far: {events}")
    for name, drops in (("scoring", components.score_batcher.drops), ("event", components.event_batcher.drops)):
        if lost := _joined({kind: getattr(drops, kind) for kind in ("shed", "refused", "expired", "cancelled")}):
            lines.append(f"{name} calls not answered so far: {lost}")
    if components.access is not None and (
        refused := _joined({reason.lower(): count for reason, count in components.access.refused.items()})
    ):
        lines.append(f"calls refused so far: {refused}")
    if components.score_batcher.scored and len(lines) > bool(events):
        lines.append(f"customers scored so far: {components.score_batcher.scored}")
    return lines


def _joined(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()) if count)
