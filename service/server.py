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
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, Final

import uvloop

from feature_store.bundle import BundleError
from feature_store.customers import CustomerStore
from feature_store.errors import InputError, StoreUnavailableError
from feature_store.events import HOUR_S, Rules
from feature_store.live import Fold
from feature_store.online import Redis, StateReader
from service.batching import Batcher
from service.exposition import answer, exposed
from service.front_aio import AioFront
from service.front_lean import LeanFront
from service.handlers import Customers, handlers
from service.instruments import Instruments, watch_loop
from service.logs import start_log
from service.models import Model
from service.readings import expose
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


def work(settings: Settings, port: int, pipe: Connection, asked: Connection) -> None:
    """One of several workers on ``port``: serve until told to stop, or until the process at the pipe's end is gone.

    At ``asked`` it is asked for its metrics.
    """
    start_log(settings)
    try:
        uvloop.run(serve(settings, asked, port=port, pipe=pipe))
    except (BundleError, InputError, OSError) as error:
        pipe.send(str(error))


def serve_alone(settings: Settings) -> None:
    """Serve in this process until SIGINT or SIGTERM; as :func:`serve`."""
    ask, asked = Pipe()
    with exposed(settings, lambda: {0: ask}):
        uvloop.run(serve(settings, asked))


async def serve(
    settings: Settings, asked: Connection, *, port: int | None = None, pipe: Connection | None = None
) -> None:
    """Serve until SIGINT or SIGTERM; with a pipe as one of several workers, which share ``port``.

    Whoever asks at the other end of ``asked`` is told the metrics. BundleError, InputError or OSError where serving
    cannot start.
    """
    model = Model.current(settings.registry)
    store = Redis(settings.redis, settings.redis_timeout_ms / 1000)
    guard = partial(SpikeGuard, z=settings.spike_z, window_s=settings.spike_window_s)
    instruments = Instruments.of(settings)
    metrics, tracer, stages = instruments.metrics, instruments.tracer, instruments.stages
    seen: dict[str, Any] = {} if stages is None else {"took": stages.took, "aged": stages.aged}
    scorer = Scorer(StateReader(store, model.layout), model, guard=guard, **seen)
    rules = _rules(settings)
    fold = Fold(model.layout, model.interests, rules)
    customers = CustomerStore(store, fold, most_waiting=settings.max_unarchived, durable=settings.durable)
    rows = {"max_rows": settings.max_batch_rows, "slice_rows": settings.slice_rows}
    batcher = Batcher(scorer.score, **rows, turns=TURNS[settings.front], stages=stages)
    recorder = Recorder(customers.record, rules, scoring=batcher.busy)
    methods = handlers(recorder, Customers(customers, model.layout, model.interests))
    front = (LeanFront if settings.front == "lean" else AioFront)(batcher, settings, methods, metrics, tracer)
    if metrics is not None:
        expose(metrics, front, batcher, scorer, model, recorder)
        answer(asked, metrics.snapshot)
    stopping = _stop_signal()
    port = await front.start(settings.port if port is None else port, share_port=pipe is not None)
    # What has been loaded stays: a collector that walks it all every now and then stops every call for that long.
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_EVERY)
    told = {"model": model.version, "fingerprint": model.layout.fingerprint}
    logger.info("model %s, fingerprint %s", *told.values(), extra=told)
    if pipe is None:
        logger.info("serving on %s:%d", settings.host_of_address, port)
    else:
        asyncio.get_running_loop().add_reader(pipe.fileno(), stopping.set)
        pipe.send(READY)
    watching = asyncio.create_task(_watch(store, customers, front, settings.health_interval_ms / 1000))
    others = [asyncio.create_task(_tell_counts(recorder, scorer))]
    if metrics is not None:
        others.append(asyncio.create_task(watch_loop(metrics)))
    await stopping.wait()
    for task in others:
        task.cancel()
    logger.info("stopping: running calls have %g s", settings.grace_s)
    while not watching.done():  # a library in between may keep a cancellation to itself
        watching.cancel()
        await asyncio.wait([watching], timeout=0.1)
    await front.stop(settings.grace_s)
    await store.close()
    if tracer is not None:
        await tracer.close()
    if counts := _counts(recorder, scorer):
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
                extra={"serving": answers},
            )
            serving = answers
        await asyncio.sleep(interval_s)


async def _tell_counts(recorder: Recorder, scorer: Scorer) -> None:
    """Log what became of events, and how often guards did something, whenever that has changed."""
    told = ""
    while True:
        await asyncio.sleep(COUNTS_S)
        if (counts := _counts(recorder, scorer)) != told:
            logger.info(counts)
            told = counts


def _counts(recorder: Recorder, scorer: Scorer) -> str:
    """Counts since the start, in words; empty where there are none."""
    counts = [
        f"{name} {count}" for name, count in sorted({**recorder.counts, "spikes": scorer.spikes}.items()) if count
    ]
    return f"events so far: {', '.join(counts)}" if counts else ""


def _stop_signal() -> asyncio.Event:
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    return stopping
