"""The composition root: wires settings, model, store, scorer, batcher and front, and nothing else.

::

    wire ─► front_lean or front_aio ─► convert ─► batching ─► scorer ─► online store (Redis)
                          │                                     └─────► model (ONNX)
                          └─► handlers ─► recorder ─► customers ─► fold, commit (Redis)
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from collections.abc import Mapping
from functools import partial
from multiprocessing.connection import Connection
from typing import Final

import uvloop

from feature_store.bundle import BundleError
from feature_store.customers import CustomerStore
from feature_store.errors import InputError, StoreUnavailableError
from feature_store.events import HOUR_S, Rules
from feature_store.live import Fold
from feature_store.online import Redis, StateReader
from service.batching import Batcher
from service.front_aio import AioFront
from service.front_lean import LeanFront
from service.handlers import Customers, handlers
from service.logs import start_log
from service.models import Model
from service.recorder import Recorder
from service.scorer import Scorer
from service.settings import Settings
from service.spikes import SpikeGuard
from service.workers import READY

TURNS: Final = {"lean": 4, "grpcio": 16}
"""Of the loop, before a batch is taken. With 16 single calls in flight lean's 4 turns save a sixth of the CPU."""
GC_EVERY: Final = 20_000
"""Objects made and not freed. Calls leave no cycles behind, so there is little to look for: it saves 3 % of a call."""

COUNTS_S: Final = 60.0

logger: Final = logging.getLogger("tidemark")


def work(settings: Settings, port: int, pipe: Connection) -> None:
    """One of several workers on ``port``: serve until told to stop, or until the process at the pipe's end is gone."""
    start_log(settings)
    try:
        uvloop.run(serve(settings, port=port, pipe=pipe))
    except (BundleError, InputError, OSError) as error:
        pipe.send(str(error))


async def serve(settings: Settings, *, port: int | None = None, pipe: Connection | None = None) -> None:
    """Serve until SIGINT or SIGTERM; with a pipe as one of several workers, which share ``port``.

    BundleError, InputError or OSError where serving cannot start.
    """
    model = Model.current(settings.registry)
    store = Redis(settings.redis, settings.redis_timeout_ms / 1000)
    guard = partial(SpikeGuard, z=settings.spike_z, window_s=settings.spike_window_s)
    scorer = Scorer(StateReader(store, model.layout), model, guard=guard)
    rules = _rules(settings)
    fold = Fold(model.layout, model.interests, rules)
    customers = CustomerStore(store, fold, most_waiting=settings.max_unarchived, durable=settings.durable)
    batcher = Batcher(
        scorer.score,
        max_rows=settings.max_batch_rows,
        slice_rows=settings.slice_rows,
        turns=TURNS[settings.front],
        max_wait_s=settings.max_queue_ms / 1000,
    )
    recorder = Recorder(customers.record, rules, scoring=batcher.busy, max_wait_s=settings.max_events_queue_ms / 1000)
    methods = handlers(recorder, Customers(customers, model.layout, model.interests))
    front = (LeanFront if settings.front == "lean" else AioFront)(batcher, settings, methods)
    stopping = _stop_signal()
    port = await front.start(settings.port if port is None else port, share_port=pipe is not None)
    # What has been loaded stays: a collector that walks it all every now and then stops every call for that long.
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_EVERY)
    logger.info("model %s, fingerprint %s", model.version, model.layout.fingerprint)
    if pipe is None:
        logger.info("serving on %s:%d", settings.host_of_address, port)
    else:
        asyncio.get_running_loop().add_reader(pipe.fileno(), stopping.set)
        pipe.send(READY)
    watching = asyncio.create_task(_watch(store, customers, front, settings.health_interval_ms / 1000))
    counting = asyncio.create_task(_tell_counts(recorder, scorer, batcher))
    await stopping.wait()
    counting.cancel()
    logger.info("stopping: running calls have %g s", settings.grace_s)
    while not watching.done():  # a library in between may keep a cancellation to itself
        watching.cancel()
        await asyncio.wait([watching], timeout=0.1)
    await front.stop(settings.grace_s)
    await store.close()
    for counts in _counts(recorder, scorer, batcher):
        logger.info(counts)
    logger.info("stopped")


def _rules(settings: Settings) -> Rules:
    return Rules(
        max_lateness_s=settings.max_lateness_hours * HOUR_S,
        max_future_s=settings.max_future_s,
        cap_type_hour=settings.cap_type_hour,
        cap_hour=settings.cap_hour,
        cap_total=settings.cap_total,
        keep_text=settings.keep_text,
    )


async def _watch(store: Redis, customers: CustomerStore, front: AioFront | LeanFront, interval_s: float) -> None:
    """Let health follow Redis."""
    serving = None
    while True:
        try:
            await (store.ping() if serving else customers.register())
            answers, why = True, ""
        except StoreUnavailableError as error:
            answers, why = False, str(error)
        if answers is not serving:
            await front.set_serving(answers)
            logger.log(
                logging.INFO if answers else logging.WARNING,
                "health is SERVING"
                if answers
                else f"health is NOT_SERVING: Redis does not answer as it has to ({why})",
            )
            serving = answers
        await asyncio.sleep(interval_s)


async def _tell_counts(recorder: Recorder, scorer: Scorer, batcher: Batcher) -> None:
    """Log what became of events and calls, and how often guards did something, whenever that has changed."""
    told: list[str] = []
    while True:
        await asyncio.sleep(COUNTS_S)
        counts = _counts(recorder, scorer, batcher)
        for line in counts:
            if line not in told:
                logger.info(line)
        told = counts


def _counts(recorder: Recorder, scorer: Scorer, batcher: Batcher) -> list[str]:
    """Counts since the start, in words; no line where there are none."""
    lines = []
    if events := _told({**recorder.counts, "spikes": scorer.spikes}):
        lines.append(f"events so far: {events}")
    for name, queue in (("scoring", batcher), ("event", recorder)):
        if lost := _told({kind: getattr(queue, kind) for kind in ("shed", "refused", "expired", "cancelled")}):
            lines.append(f"{name} calls not answered so far: {lost}")
    if batcher.scored and len(lines) > bool(events):
        lines.append(f"customers scored so far: {batcher.scored}")
    return lines


def _told(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()) if count)


def _stop_signal() -> asyncio.Event:
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    return stopping
