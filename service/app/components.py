"""The composition root: makes the parts of a server and wires them to each other, and nothing else.

::

    wire ─► front_lean or front_aio ─► convert ─► batching ─► serving ─► scorer ─► online store (Redis)
                          │                                      ▲         └─────► model (ONNX)
                          ├─► handlers ─► recorder ─► customers ─┼► fold, commit (Redis)
                          └─► model_handlers ─────► registry_watch ◄─ registry
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from weakref import WeakSet

from feature_store.errors import InputError
from feature_store.online.active_layouts import is_ready
from feature_store.online.customer_store import CustomerStore
from feature_store.online.stale_cache import RecentStates
from feature_store.online.store import Redis, StateReader
from feature_store.state.events import HOUR_S, Rules
from feature_store.state.folding import Fold
from service.api.customers import Customers
from service.api.methods import handlers
from service.api.models import Models
from service.auth.access import Access
from service.batching.event_batcher import EventBatcher
from service.batching.score_batcher import ScoreBatcher
from service.file_watch import Watched
from service.scoring.alert_spikes import SpikeGuard
from service.scoring.model import Model
from service.scoring.model_loader import ModelLoader, first_model
from service.scoring.model_router import ModelRouter, ModelSet, ServingModel
from service.scoring.registry_watcher import RegistryWatcher
from service.scoring.scorer import Guards, Scorer
from service.settings import Settings
from service.telemetry.batch_stages import BatchObserver
from service.telemetry.setup import Telemetry
from service.transport import tls
from service.transport.grpcio.server import GrpcioServer
from service.transport.interface import Backend, Transport
from service.transport.lean.server import LeanServer
from service.transport.standard_services import SERVICES, STANDARD_SERVICES, method_paths

TURNS: Final = {"lean": 4, "grpcio": 16}
"""Of the loop, before a batch is taken. With 16 single calls in flight lean's 4 turns save a sixth of the CPU."""

SPIKE_WINDOW_S: Final = 60.0
"""Length of the windows in which alerts are counted."""


@dataclass(frozen=True, eq=False)
class Parts:
    """What a server is made of."""

    settings: Settings
    instruments: Telemetry
    store: Redis
    scorers: Scorers
    router: ModelRouter
    watch: RegistryWatcher
    customers: CustomerStore
    batcher: ScoreBatcher
    recorder: EventBatcher
    certificates: Watched[tls.Tls] | None
    access: Access | None
    transport: Transport

    @property
    def files(self) -> list[Watched[Any]]:
        """Those that are read again when they change."""
        callers = self.access.callers if self.access is not None else None
        return [files for files in (self.certificates, callers) if files is not None]


async def make_parts(settings: Settings) -> Parts:
    """All parts, with the registry's model; BundleError, InputError or OSError where there cannot be a server."""
    certificates, access = tls.watched(settings), Access.of(settings)
    store = Redis(settings.redis, settings.redis_timeout_s)
    if store.is_cluster and settings.durable_events:
        raise InputError("durable_events: a Redis cluster takes no live events: leave it out, or use a single Redis")
    model = await first_model(settings.registry, partial(is_ready, store))
    seen = Telemetry.of(settings, method_paths(SERVICES), method_paths(STANDARD_SERVICES))
    scorers = Scorers(store, settings, seen.observer)
    router = ModelRouter(ModelSet(ServingModel(model, scorers.make(model))))
    batcher = _batcher(settings, router, seen.observer)
    customers, rules = _customers(settings, store, model, scorers), _rules(settings)
    recorder = EventBatcher(customers.record, rules, scoring=batcher.busy, max_wait_s=settings.max_event_queue_s)
    shown = Customers(customers, model.interests)
    loader = ModelLoader(settings.registry, partial(is_ready, store))
    watch = RegistryWatcher(loader, router, scorers, partial(_use, customers, shown))
    await watch.look()
    methods = handlers(recorder, shown, Models(watch))
    backend = Backend(settings, batcher, methods, certificates, access, seen.metrics, seen.tracer)
    transport: Transport = LeanServer(backend) if settings.transport == "lean" else GrpcioServer(backend)
    return Parts(
        settings=settings,
        instruments=seen,
        store=store,
        scorers=scorers,
        router=router,
        watch=watch,
        customers=customers,
        batcher=batcher,
        recorder=recorder,
        certificates=certificates,
        access=access,
        transport=transport,
    )


class Scorers:
    """Makes a scorer for a model. All that answer show their alerts to the same guards, whatever is switched."""

    def __init__(self, store: Redis, settings: Settings, stages: BatchObserver | None = None) -> None:
        """``stages``: who wants to know of batches."""
        guard = partial(SpikeGuard, z=settings.spike_threshold, window_s=SPIKE_WINDOW_S)
        self._guards: Final = Guards(churn=guard(), propensity=guard())
        self._store: Final = store
        self._stale_bytes: Final = settings.stale_cache_bytes
        self._recent: Final[WeakSet[RecentStates]] = WeakSet()
        self._observer: Final = stages
        self.counts: Final[Counter[str]] = Counter()
        """Scores of all that answer or have answered: ``stale`` and ``explained``."""

    def make(self, model: Model, *, shadow: bool = False) -> Scorer:
        """The scorer of a model; that of a shadow marks no spikes, is not counted, and runs off the event loop."""
        if shadow:
            return Scorer(StateReader(self._store, model.layout), model, on_loop_rows=0)
        recent = RecentStates(self._stale_bytes) if self._stale_bytes else None
        if recent is not None:
            self._recent.add(recent)
        source = StateReader(self._store, model.layout, recent)
        return Scorer(source, model, self._guards, self._observer, counts=self.counts)

    def forget(self, customer_ids: Iterable[str]) -> None:
        """Use nothing any more that was read of these customers before."""
        ids = list(customer_ids)
        for recent in self._recent:
            recent.forget(ids)

    @property
    def spikes(self) -> int:
        """Windows that became a spike so far, in total and by item, of either offer."""
        return sum(guard.spikes + guard.item_spikes for guard in self._guards)

    @property
    def recent(self) -> tuple[int, int]:
        """Recent states that are kept, and the bytes that they take."""
        return sum(map(len, self._recent)), sum(recent.bytes for recent in self._recent)


def _batcher(settings: Settings, router: ModelRouter, stages: BatchObserver | None) -> ScoreBatcher:
    return ScoreBatcher(
        router.score,
        turns=TURNS[settings.transport],
        max_wait_s=settings.max_queue_s,
        observer=stages,
    )


def _customers(settings: Settings, store: Redis, model: Model, scorers: Scorers) -> CustomerStore:
    fold = Fold(model.layout, model.interests, _rules(settings))
    return CustomerStore(
        store,
        fold,
        most_waiting=settings.max_unarchived_commits,
        durable=settings.durable_events,
        forget=scorers.forget,
    )


def _rules(settings: Settings) -> Rules:
    return Rules(
        max_lateness_s=settings.max_lateness_hours * HOUR_S,
        max_future_s=settings.max_future_s,
        cap_type_hour=settings.max_events_per_type_hour,
        cap_hour=settings.max_events_per_hour,
        cap_total=settings.max_events_per_customer,
        keep_text=settings.keep_text,
    )


async def _use(customers: CustomerStore, shown: Customers, model: Model) -> None:
    """Let events and customers go by the features and interests of the model that is about to answer."""
    await customers.use(model.layout, model.interests)
    shown.interests = model.interests
