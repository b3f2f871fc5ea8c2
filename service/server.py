"""The composition root: wires settings, model, store, scorer, batcher and front, and nothing else.

::

    wire ─► front_aio ─► convert ─► batching ─► scorer ─► online store (Redis)
                                                  └─────► model (ONNX)
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from typing import Final

from feature_store.errors import StoreUnavailableError
from feature_store.online import StateReader
from service.batching import Batcher
from service.front_aio import AioFront
from service.models import Model
from service.scorer import Scorer
from service.settings import Settings

logger: Final = logging.getLogger("tidemark")


async def serve(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM. BundleError, InputError or OSError where serving cannot start."""
    model = Model.current(settings.registry)
    store = StateReader(settings.redis, model.layout, settings.redis_timeout_ms / 1000)
    scorer = Scorer(store, model)
    batcher = Batcher(scorer.score, max_rows=settings.max_batch_rows, slice_rows=settings.slice_rows)
    front = AioFront(batcher)
    stopping = _stop_signal()
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    port = await front.start(f"{host}:{settings.port}")
    logger.info("model %s, fingerprint %s", model.version, model.layout.fingerprint)
    logger.info("serving on %s:%d", host, port)
    watching = asyncio.create_task(_watch(store, front, settings.health_interval_ms / 1000))
    await stopping.wait()
    logger.info("stopping: running calls have %g s", settings.grace_s)
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
    await front.stop(settings.grace_s)
    await store.close()
    logger.info("stopped")


async def _watch(store: StateReader, front: AioFront, interval_s: float) -> None:
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
