"""The composition root: wires settings, model, store, scorer, batcher and front, and nothing else.

::

    wire ─► front_lean or front_aio ─► convert ─► batching ─► serving ─► scorer ─► online store (Redis)
                          │                                      ▲         └─────► model (ONNX)
                          ├─► handlers ─► recorder ─► customers ─┼► fold, commit (Redis)
                          └─► model_handlers ─────► registry_watch ◄─ registry
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from multiprocessing.connection import Connection
from typing import Final
from weakref import WeakSet

import uvloop

from feature_store.bundle import BundleError
from feature_store.customers import CustomerStore
from feature_store.errors import InputError, ReadOnlyStoreError, StoreUnavailableError
from feature_store.events import HOUR_S, Rules
from feature_store.layouts import is_ready
from feature_store.live import Fold
from feature_store.online import Redis, StateReader
from feature_store.recent import RecentStates
from service import tls
from service.access import Access
from service.batching import Batcher
from service.front_aio import AioFront
from service.front_lean import LeanFront
from service.handlers import Customers, handlers
from service.logs import log_loop_error, start_log
from service.model_handlers import Models
from service.models import Model
from service.recorder import Recorder
from service.registry_watch import Hooks, RegistryWatch, first_model
from service.scorer import Scorer
from service.serving import Lineup, Served, Serving
from service.settings import Settings
from service.spikes import SpikeGuard
from service.watched import keep
from service.workers import READY

TURNS: Final = {"lean": 4, "grpcio": 16}
"""Of the loop, before a batch is taken. With 16 single calls in flight lean's 4 turns save a sixth of the CPU."""
GC_EVERY: Final = 20_000
"""Objects made and not freed. Calls leave no cycles behind, so there is little to look for: it saves 3 % of a call."""

COUNTS_S: Final = 60.0
SETTLE_S: Final = 0.05
"""A Redis that is away for so short a time is not told of."""
SERVING: Final = "health is SERVING"

logger: Final = logging.getLogger("tidemark")


def work(settings: Settings, listener: socket.socket, pipe: Connection) -> None:
    """One of the workers on a listener: serve until told to stop, or until the pipe is closed at its other end."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a terminal tells all processes, and the supervisor alone acts on it
    start_log(settings)
    try:
        uvloop.run(serve(settings, listener=listener, pipe=pipe))
    except (BundleError, InputError, OSError) as error:
        pipe.send(str(error))


async def serve(settings: Settings, *, listener: socket.socket | None = None, pipe: Connection | None = None) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP; with listener and pipe as one of the workers that share a port.

    BundleError, InputError or OSError where serving cannot start.
    """
    certificates, access = tls.watched(settings), Access.of(settings)
    store = Redis(settings.redis, settings.redis_timeout_ms / 1000)
    if store.is_cluster and settings.durable:
        raise InputError("durable: a Redis cluster takes no live events: leave it out, or use a single Redis")
    model = await first_model(settings.registry, partial(is_ready, store))
    scorers = Scorers(store, settings)
    serving = Serving(Lineup(Served(model, scorers(model))))
    rules = _rules(settings)
    fold = Fold(model.layout, model.interests, rules)
    customers = CustomerStore(
        store,
        fold,
        most_waiting=settings.max_unarchived,
        durable=settings.durable,
        forget=scorers.forget,
    )
    batcher = Batcher(
        serving.score,
        max_rows=settings.max_batch_rows,
        slice_rows=settings.slice_rows,
        turns=TURNS[settings.front],
        max_wait_s=settings.max_queue_ms / 1000,
    )
    recorder = Recorder(customers.record, rules, scoring=batcher.busy, max_wait_s=settings.max_events_queue_ms / 1000)
    shown = Customers(customers, model.interests)
    hooks = Hooks(scorers, partial(is_ready, store), partial(_use, customers, shown))
    watch = RegistryWatch(settings.registry, serving, hooks)
    await watch.look()
    methods = handlers(recorder, shown, Models(watch))
    front = (LeanFront if settings.front == "lean" else AioFront)(batcher, settings, methods, certificates, access)
    asyncio.get_running_loop().set_exception_handler(log_loop_error)
    stopping, stop = _stopping()
    for number in (signal.SIGINT, signal.SIGTERM, *((signal.SIGHUP,) if pipe is None else ())):
        asyncio.get_running_loop().add_signal_handler(number, stop, settings.drain_s)
    port = await front.start(settings.port, listener)
    # What has been loaded stays: a collector that walks it all every now and then stops every call for that long.
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_EVERY)
    active = serving.lineup.active.model
    logger.info("model %s, fingerprint %s", active.version, active.layout.fingerprint)
    if pipe is None:
        logger.info("serving on %s:%d", settings.host_of_address, port)
    else:
        asyncio.get_running_loop().add_reader(pipe.fileno(), stop, 0.0)
        pipe.send(READY)
    watching = asyncio.create_task(_watch(store, customers, front, settings.health_interval_ms / 1000))
    following = asyncio.create_task(watch.run(settings.registry_interval_ms / 1000))
    files = [one for one in (certificates, access.callers if access else None) if one is not None]
    renewing = asyncio.create_task(keep(files))
    counting = asyncio.create_task(_tell_counts(recorder, scorers, batcher, access))
    drain_s = await stopping
    for task in (counting, renewing, following):
        task.cancel()
    while not watching.done():  # a library in between may keep a cancellation to itself
        watching.cancel()
        await asyncio.wait([watching], timeout=0.1)
    await front.set_serving(False)
    logger.info(
        "stopping: health is NOT_SERVING; in %g s no more calls, running ones have %g s", drain_s, settings.grace_s
    )
    await asyncio.sleep(drain_s)
    await front.stop(settings.grace_s)
    await store.close()
    for counts in _counts(recorder, scorers, batcher, access):
        logger.info(counts)
    logger.info("stopped")


class Scorers:
    """Makes a scorer for a model. All that answer show their alerts to the same guards, whatever is switched."""

    def __init__(self, store: Redis, settings: Settings) -> None:
        guard = partial(SpikeGuard, z=settings.spike_z, window_s=settings.spike_window_s)
        self._guards: Final = guard(), guard()
        self._store: Final = store
        self._stale_bytes: Final = settings.stale_cache_bytes
        self._recent: Final[WeakSet[RecentStates]] = WeakSet()

    def __call__(self, model: Model, *, shadow: bool = False) -> Scorer:
        """A scorer; that of a shadow alerts nobody, and leaves the loop to others."""
        if shadow:
            return Scorer(StateReader(self._store, model.layout), model, on_loop_rows=0)
        recent = RecentStates(self._stale_bytes) if self._stale_bytes else None
        if recent is not None:
            self._recent.add(recent)
        source = StateReader(self._store, model.layout, recent)
        return Scorer(source, model, guard=iter(self._guards).__next__)

    def forget(self, customer_ids: Iterable[str]) -> None:
        """Use nothing any more that was read of these customers before."""
        ids = list(customer_ids)
        for recent in self._recent:
            recent.forget(ids)

    @property
    def spikes(self) -> int:
        """Windows that became a spike so far, in total and by item, of either offer."""
        return sum(guard.spikes + guard.item_spikes for guard in self._guards)


async def _use(customers: CustomerStore, shown: Customers, model: Model) -> None:
    """Let events and customers go by the features and interests of the model that is about to answer."""
    await customers.use(model.layout, model.interests)
    shown.interests = model.interests


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
    """Let health follow Redis: at once where a call finds it away or a probe finds it back, else when asked."""
    serving, told = None, ""
    while True:
        store.changed.clear()
        await store.follow()
        answers, why = await _state_of(customers)
        if answers is not serving:
            await front.set_serving(answers)
            serving = answers
        if why != told:
            told = why
            logger.log(logging.INFO if why == SERVING else logging.WARNING, why)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(interval_s):
                await store.changed.wait()
            await asyncio.sleep(SETTLE_S)


async def _state_of(customers: CustomerStore) -> tuple[bool, str]:
    """Whether scores can be given, and what to log about it."""
    try:
        await customers.register()  # each time: an emptied Redis does not know this server's definitions any more
    except ReadOnlyStoreError as error:
        return True, f"health is SERVING, scores only: Redis takes no writes ({error})"
    except StoreUnavailableError as error:
        return False, f"health is NOT_SERVING: Redis does not answer as it has to ({error})"
    return True, SERVING


async def _tell_counts(recorder: Recorder, scorers: Scorers, batcher: Batcher, access: Access | None) -> None:
    """Log what became of events and calls, and how often guards did something, whenever that has changed."""
    told: list[str] = []
    while True:
        await asyncio.sleep(COUNTS_S)
        counts = _counts(recorder, scorers, batcher, access)
        for line in counts:
            if line not in told:
                logger.info(line)
        told = counts


def _counts(recorder: Recorder, scorers: Scorers, batcher: Batcher, access: Access | None) -> list[str]:
    """Counts since the start, in words; no line where there are none."""
    lines = []
    if events := _told({**recorder.counts, "spikes": scorers.spikes}):
        lines.append(f"events so far: {events}")
    for name, queue in (("scoring", batcher), ("event", recorder)):
        if lost := _told({kind: getattr(queue, kind) for kind in ("shed", "refused", "expired", "cancelled")}):
            lines.append(f"{name} calls not answered so far: {lost}")
    if access is not None and (refused := _told(access.refused)):
        lines.append(f"calls refused so far: {refused}")
    if batcher.scored and len(lines) > bool(events):
        lines.append(f"customers scored so far: {batcher.scored}")
    return lines


def _told(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()) if count)


def _stopping() -> tuple[asyncio.Future[float], Callable[[float], None]]:
    """When to stop, with the seconds to go on serving until then, and how to say so; the first word counts."""
    stopping: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def stop(drain_s: float) -> None:
        if not stopping.done():
            stopping.set_result(drain_s)

    return stopping, stop
