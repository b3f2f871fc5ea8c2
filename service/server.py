"""The composition root: wires settings, model, store, scorer, batcher and front, and nothing else.

::

    wire ─► front_lean or front_aio ─► convert ─► batching ─► scorer ─► online store (Redis)
                                                                └─────► model (ONNX)
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
from multiprocessing.connection import Connection
from typing import Final

import uvloop

from feature_store.bundle import BundleError
from feature_store.errors import InputError, StoreUnavailableError
from feature_store.online import StateReader
from service.batching import Batcher
from service.front_aio import AioFront
from service.front_lean import LeanFront
from service.models import Model
from service.scorer import Scorer
from service.settings import Settings
from service.workers import READY

TURNS: Final = {"lean": 4, "grpcio": 16}
"""Of the loop, before a batch is taken. With 16 single calls in flight lean's 4 turns save a sixth of the CPU."""
GC_EVERY: Final = 20_000
"""Objects made and not freed. Calls leave no cycles behind, so there is little to look for: it saves 3 % of a call."""

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
    store = StateReader(settings.redis, model.layout, settings.redis_timeout_ms / 1000)
    scorer = Scorer(store, model)
    front = _front(settings, scorer)
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
    watching = asyncio.create_task(_watch(store, front, settings.health_interval_ms / 1000))
    await stopping.wait()
    logger.info("stopping: running calls have %g s", settings.grace_s)
    while not watching.done():  # a library in between may keep a cancellation to itself
        watching.cancel()
        await asyncio.wait([watching], timeout=0.1)
    await front.stop(settings.grace_s)
    await store.close()
    logger.info("stopped")


def start_log(settings: Settings) -> None:
    """Log to stderr; with several workers each line says which."""
    process = "%(process)d " if settings.workers > 1 else ""
    form = f"%(asctime)s {process}%(levelname)s %(message)s"
    logging.basicConfig(level=settings.log_level, format=form, stream=sys.stderr)


def _front(settings: Settings, scorer: Scorer) -> AioFront | LeanFront:
    rows = {"max_rows": settings.max_batch_rows, "slice_rows": settings.slice_rows}
    batcher = Batcher(scorer.score, **rows, turns=TURNS[settings.front])
    return LeanFront(batcher, settings) if settings.front == "lean" else AioFront(batcher, settings)


async def _watch(store: StateReader, front: AioFront | LeanFront, interval_s: float) -> None:
    """Let health follow Redis."""
    serving = None
    while True:
        try:
            await store.ping()
            answers, why = True, ""
        except StoreUnavailableError as error:
            answers, why = False, str(error)
        if answers is not serving:
            await front.set_serving(answers)
            logger.log(
                logging.INFO if answers else logging.WARNING,
                "health is SERVING" if answers else f"health is NOT_SERVING: Redis does not answer ({why})",
            )
            serving = answers
        await asyncio.sleep(interval_s)


def _stop_signal() -> asyncio.Event:
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    return stopping
