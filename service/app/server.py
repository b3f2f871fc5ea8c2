"""A server's life: its parts are made, they serve, health follows Redis, and they are stopped in order."""

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
from service.app.components import Parts, make_parts
from service.app.metric_catalog import expose
from service.app.supervisor import READY
from service.file_watch import keep
from service.settings import Settings
from service.telemetry.logs import log_loop_error, start_log
from service.telemetry.prometheus import answer_scrapes, exposed
from service.telemetry.setup import watch_loop

GC_EVERY: Final = 20_000
"""Objects made and not freed. Calls leave no cycles behind, so there is little to look for: it saves 3 % of a call."""
SWITCH_S: Final = 0.0005
"""The loop waits so long at most for a thread that runs Python: one that loads a model, explains or tries one out."""

COUNTS_S: Final = 60.0
SETTLE_S: Final = 0.05
"""A Redis that is away for so short a time is not told of."""
SERVING: Final = "health is SERVING"

logger: Final = logging.getLogger("tidemark")


def work(settings: Settings, listener: socket.socket, pipe: Connection, asked: Connection) -> None:
    """One of the workers on a listener: serve until told to stop, or until ``pipe`` is closed at its other end.

    At ``asked`` it is asked for its metrics.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a terminal tells all processes, and the supervisor alone acts on it
    start_log(settings)
    try:
        uvloop.run(serve(settings, asked, listener=listener, pipe=pipe))
    except (BundleError, InputError, OSError) as error:
        pipe.send(str(error))


def serve_alone(settings: Settings) -> None:
    """Serve in this process until SIGINT, SIGTERM or SIGHUP; as :func:`serve`."""
    ask, asked = Pipe()
    with exposed(settings, lambda: {0: ask}):
        uvloop.run(serve(settings, asked))


async def serve(
    settings: Settings, asked: Connection, *, listener: socket.socket | None = None, pipe: Connection | None = None
) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP; with listener and pipe as one of the workers that share a port.

    Whoever asks at the other end of ``asked`` is told the metrics. BundleError, InputError or OSError where serving
    cannot start.
    """
    sys.setswitchinterval(SWITCH_S)
    parts = await make_parts(settings)
    asyncio.get_running_loop().set_exception_handler(log_loop_error)
    stopping, stop = _stopping()
    for number in (signal.SIGINT, signal.SIGTERM, *((signal.SIGHUP,) if pipe is None else ())):
        asyncio.get_running_loop().add_signal_handler(number, stop, settings.drain_s)
    if (metrics := parts.instruments.metrics) is not None:
        expose(metrics, parts)
        answer_scrapes(asked, metrics.snapshot)
    port = await parts.transport.start(settings.port, listener)
    _leave_alone_what_is_loaded()
    _tell_model(parts)
    if pipe is None:
        logger.info("serving on %s:%d", settings.host_of_address, port)
    else:
        asyncio.get_running_loop().add_reader(pipe.fileno(), stop, 0.0)
        pipe.send(READY)
    tasks, watching = _tasks(parts), asyncio.create_task(_watch(parts))
    drain_s = await stopping
    for task in tasks:
        task.cancel()
    while not watching.done():  # a library in between may keep a cancellation to itself
        watching.cancel()
        await asyncio.wait([watching], timeout=0.1)
    await _stop(parts, drain_s)


def _stopping() -> tuple[asyncio.Future[float], Callable[[float], None]]:
    """When to stop, with the seconds to go on serving until then, and how to say so; the first word counts."""
    stopping: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def stop(drain_s: float) -> None:
        if not stopping.done():
            stopping.set_result(drain_s)

    return stopping, stop


def _leave_alone_what_is_loaded() -> None:
    """It stays: a collector that walks it all every now and then stops every call for that long."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_EVERY)


def _tell_model(parts: Parts) -> None:
    active = parts.router.model_set.active.model
    told = {"model": active.version, "fingerprint": active.layout.fingerprint}
    logger.info("model %s, fingerprint %s", *told.values(), extra=told)


def _tasks(parts: Parts) -> list[asyncio.Task[None]]:
    """What goes on beside the calls, until cancelled; each is begun."""
    follow = parts.watch.run(parts.settings.registry_interval_s)
    works = [follow, keep(parts.files), _tell_counts(parts)]
    if (metrics := parts.instruments.metrics) is not None:
        works.append(watch_loop(metrics))
    return [asyncio.create_task(work) for work in works]


async def _stop(parts: Parts, drain_s: float) -> None:
    """Health first, then no more calls, then those that run; what there was to count, and what was traced, last."""
    grace_s = parts.settings.grace_s
    await parts.transport.set_serving(False)
    what = "stopping: health is NOT_SERVING; in %g s no more calls, running ones have %g s"
    logger.info(what, drain_s, grace_s, extra={"serving": False})
    await asyncio.sleep(drain_s)
    await parts.transport.stop(grace_s)
    await parts.store.close()
    if parts.instruments.tracer is not None:
        await parts.instruments.tracer.close()
    for counts in _counts(parts):
        logger.info(counts)
    logger.info("stopped")


async def _watch(parts: Parts) -> None:
    """Let health follow Redis: at once where a call finds it away or a probe finds it back, else when asked."""
    store, told = parts.store, ""
    serving: bool | None = None
    while True:
        store.changed.clear()
        await store.follow()
        answers, why = await _state_of(parts.customers)
        if answers is not serving:
            await parts.transport.set_serving(answers)
            serving = answers
        if why != told:
            told = why
            logger.log(logging.INFO if why == SERVING else logging.WARNING, why, extra={"serving": answers})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(parts.settings.health_interval_s):
                await store.changed.wait()
            await asyncio.sleep(SETTLE_S)


async def _state_of(customers: CustomerStore) -> tuple[bool, str]:
    """Whether scores can be given, and what to log about it."""
    try:
        await (
            customers.ensure_registered()
        )  # each time: an emptied Redis does not know this server's definitions any more
    except ReadOnlyStoreError as error:
        return True, f"health is SERVING, scores only: Redis takes no writes ({error})"
    except StoreUnavailableError as error:
        return False, f"health is NOT_SERVING: Redis does not answer as it has to ({error})"
    return True, SERVING


async def _tell_counts(parts: Parts) -> None:
    """Log what became of events and calls, and how often guards did something, whenever that has changed."""
    told: list[str] = []
    while True:
        await asyncio.sleep(COUNTS_S)
        counts = _counts(parts)
        for line in counts:
            if line not in told:
                logger.info(line)
        told = counts


def _counts(parts: Parts) -> list[str]:
    """Counts since the start, in words; no line where there are none."""
    lines = []
    if events := _told({**parts.recorder.counts, "spikes": parts.scorers.spikes}):
        lines.append(f"events so far: {events}")
    for name, drops in (("scoring", parts.batcher.drops), ("event", parts.recorder.drops)):
        if lost := _told({kind: getattr(drops, kind) for kind in ("shed", "refused", "expired", "cancelled")}):
            lines.append(f"{name} calls not answered so far: {lost}")
    if parts.access is not None and (
        refused := _told({reason.lower(): count for reason, count in parts.access.refused.items()})
    ):
        lines.append(f"calls refused so far: {refused}")
    if parts.batcher.scored and len(lines) > bool(events):
        lines.append(f"customers scored so far: {parts.batcher.scored}")
    return lines


def _told(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()) if count)
