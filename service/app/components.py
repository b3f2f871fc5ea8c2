"""The composition root: makes the components of a server and connects them to each other, and does nothing else.

::

    client ─► transport ─► api ─┬─► score batcher ─► model router ─► scorer ─┬─► state reader ─► Redis
              (lean or grpcio)  │                        ▲                   └─► model (ONNX)
                                ├─► event batcher ─► customer store ─► Redis
                                └─► registry watcher ────┘ ◄─ registry
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from feature_store.errors import InputError
from feature_store.online.active_layouts import is_ready
from feature_store.online.customer_store import CustomerStore
from feature_store.online.store import RedisStore
from feature_store.state.events import HOUR_S, Rules
from feature_store.state.folding import EventFolder
from service.api.customers import Customers
from service.api.methods import handlers
from service.api.models import Models
from service.app.model_scorers import ModelScorers
from service.auth.access import Access
from service.batching.event_batcher import EventBatcher
from service.batching.score_batcher import ScoreBatcher
from service.error_pages import ERROR_PAGES
from service.file_watch import WatchedFiles
from service.scoring.model import Model
from service.scoring.model_loader import ModelLoader, first_model
from service.scoring.model_router import ModelRouter, ModelSet, ServingModel
from service.scoring.registry_watcher import RegistryWatcher
from service.settings import Settings
from service.telemetry.setup import Telemetry
from service.transport import tls
from service.transport.grpcio.server import GrpcioServer
from service.transport.interface import Backend, Transport
from service.transport.lean.server import LeanServer
from service.transport.standard_services import SERVICES, STANDARD_SERVICES, method_paths

LOOP_TURNS: Final = {"lean": 4, "grpcio": 16}
"""Turns of the event loop before a batch is formed, by transport, so that calls on their way in join it.

With 16 single calls in flight lean's 4 turns save a sixth of the CPU.
"""


@dataclass(frozen=True, eq=False)
class Components:
    """What a server consists of."""

    settings: Settings
    telemetry: Telemetry
    redis: RedisStore
    scorers: ModelScorers
    router: ModelRouter
    watcher: RegistryWatcher
    customers: CustomerStore
    score_batcher: ScoreBatcher
    event_batcher: EventBatcher
    certificates: WatchedFiles[tls.Tls] | None
    access: Access | None
    transport: Transport

    @property
    def watched_files(self) -> list[WatchedFiles[Any]]:
        """The files that are read again when they change."""
        callers = self.access.callers if self.access is not None else None
        return [files for files in (self.certificates, callers) if files is not None]


async def build(settings: Settings) -> Components:
    """Make the components of a server, with the current model of the registry.

    Raises:
        BundleError: The registry has no usable bundle.
        InputError: A setting or a file that it names cannot be used.
        OSError: The registry cannot be read.
    """
    ERROR_PAGES.use(settings.docs_url)
    certificates, access = tls.watched(settings), Access.of(settings)
    redis = RedisStore(settings.redis, settings.redis_timeout_s)
    if redis.is_cluster and settings.durable_events:
        raise InputError("durable_events: a Redis cluster takes no live events: leave it out, or use a single Redis")
    states_are_loaded = partial(is_ready, redis)
    model = await first_model(settings.registry, states_are_loaded)
    telemetry = Telemetry.of(settings, method_paths(SERVICES), method_paths(STANDARD_SERVICES))
    scorers = ModelScorers(redis, settings, telemetry.observer)
    router = ModelRouter(ModelSet(ServingModel(model, scorers.make(model))))
    score_batcher = ScoreBatcher(
        router.score,
        turns=LOOP_TURNS[settings.transport],
        max_wait_s=settings.max_queue_s,
        observer=telemetry.observer,
    )
    rules = _rules(settings)
    customers = CustomerStore(
        redis,
        EventFolder([model.layout], model.interests, rules),
        max_waiting=settings.max_unarchived_commits,
        durable=settings.durable_events,
        forget=scorers.forget,
    )
    event_batcher = EventBatcher(
        customers.record, rules, scoring=score_batcher.busy, max_wait_s=settings.max_event_queue_s
    )
    customer_methods = Customers(customers, model.interests)
    loader = ModelLoader(settings.registry, states_are_loaded)
    watcher = RegistryWatcher(loader, router, scorers, partial(_use_model, customers, customer_methods))
    await watcher.look()
    methods = handlers(event_batcher, customer_methods, Models(watcher))
    backend = Backend(settings, score_batcher, methods, certificates, access, telemetry.metrics, telemetry.tracer)
    return Components(
        settings=settings,
        telemetry=telemetry,
        redis=redis,
        scorers=scorers,
        router=router,
        watcher=watcher,
        customers=customers,
        score_batcher=score_batcher,
        event_batcher=event_batcher,
        certificates=certificates,
        access=access,
        transport=LeanServer(backend) if settings.transport == "lean" else GrpcioServer(backend),
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


async def _use_model(customers: CustomerStore, customer_methods: Customers, model: Model) -> None:
    """Fold events for the features of the model that is about to answer, and show its interests."""
    await customers.use(model.layout, model.interests)
    customer_methods.interests = model.interests
