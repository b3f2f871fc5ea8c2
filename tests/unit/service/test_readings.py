"""What the parts of a server count is exposed under its name, as it is when somebody asks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from feature_store.online.transport.circuit_breaker import CircuitBreaker
from service.api.scoring import METHODS
from service.app.components import Components
from service.app.metric_catalog import expose
from service.batching.event_batcher import EventBatcher
from service.batching.score_batcher import ScoreBatcher
from service.errors import Reason
from service.scoring.model_router import ModelRouter, ModelSet
from service.settings import Settings
from service.telemetry.metrics import Metrics
from service.transport.interface import Backend
from service.transport.lean.server import LeanServer

SCORE = next(path for path, method in METHODS.items() if method.single)


def one(version: str, **more: Any) -> Any:
    """A model in a model set."""
    return SimpleNamespace(model=SimpleNamespace(version=version, layout=SimpleNamespace(fingerprint="f")), **more)


class Shown:
    """A server's parts, as far as they are asked, and what is told of them."""

    def __init__(self) -> None:
        self.batcher = ScoreBatcher(cast("Any", None))
        self.router = ModelRouter(ModelSet(one("v1")))
        self.components: Any = SimpleNamespace(
            score_batcher=self.batcher,
            event_batcher=EventBatcher(cast("Any", None), cast("Any", None)),
            scorers=SimpleNamespace(counts=Counter[str](), spikes=0, cached_states=0, cached_bytes=0),
            redis=SimpleNamespace(breaker=CircuitBreaker()),
            router=self.router,
            watcher=SimpleNamespace(switches=0, loader=SimpleNamespace(refusals=0)),
            access=None,
            transport=SimpleNamespace(serving=True, expose=lambda _metrics: None),
        )
        self.metrics = Metrics([SCORE])
        expose(self.metrics, cast("Components", self.components))

    def told(self, name: str) -> dict[tuple[str, ...], float]:
        """Values by labels."""
        (family,) = (family for family in self.metrics.snapshot() if family["name"] == name)
        return {tuple(labels): value for labels, value in family["samples"]}


@pytest.fixture
def shown() -> Shown:
    return Shown()


def test_calls_that_are_not_worked_on_are_told_by_queue_and_cause(shown: Shown) -> None:
    shown.batcher.drops.shed, shown.batcher.drops.expired = 3, 2
    shown.components.event_batcher.drops.cancelled = 1
    reported = {labels: count for labels, count in shown.told("tidemark_dropped_calls_total").items() if count}
    assert reported == {("scoring", "shed"): 3, ("scoring", "expired"): 2, ("events", "cancelled"): 1}


def test_who_is_refused_is_told_under_the_names_of_the_reasons(shown: Shown) -> None:
    reasons = {(Reason.CREDENTIALS_MISSING,), (Reason.CREDENTIALS_INVALID,), (Reason.SCOPE_MISSING,)}
    assert shown.told("tidemark_access_refused_total") == dict.fromkeys(reasons, 0)
    shown.components.access = SimpleNamespace(refused=Counter({Reason.SCOPE_MISSING: 4}))
    assert shown.told("tidemark_access_refused_total")["SCOPE_MISSING",] == 4


def test_a_redis_that_is_away_and_what_is_kept_for_that_are_told(shown: Shown) -> None:
    assert shown.told("tidemark_breaker_open") == {(): False}
    shown.components.redis.breaker.record_failure(0, "gone")
    shown.components.scorers.cached_states, shown.components.scorers.cached_bytes = 7, 4096
    shown.components.scorers.counts.update(stale=5, explained=6)
    assert shown.told("tidemark_breaker_open") == {(): True}
    result = {name: shown.told(f"tidemark_{name}")[()] for name in ("recent_states", "recent_bytes", "stale_total")}
    assert result == {"recent_states": 7, "recent_bytes": 4096, "stale_total": 5}
    assert shown.told("tidemark_breaker_opened_total") == {(): 1}
    assert shown.told("tidemark_explained_total") == {(): 6}


def test_models_are_told_with_their_roles_and_a_shadow_with_what_it_has_seen(shown: Shown) -> None:
    assert shown.told("tidemark_model_info") == {("v1", "f", "active"): 1}
    assert set(shown.told("tidemark_shadow_rows_total").values()) == {0}
    assert set(shown.told("tidemark_shadow_difference_total")) == {("churn",), ("propensity",)}
    churn = SimpleNamespace(total=1.5, largest=0.5, alerts=2)
    nothing = SimpleNamespace(total=0.0, largest=0.0, alerts=0)
    seen = {"compared": 9, "unscored": 1, "dropped": 0, "differences": {"churn": churn, "propensity": nothing}}
    shown.router.model_set = ModelSet(one("v2"), one("v3"), 0.25, one("v4", **seen))
    shown.components.watcher.switches, shown.components.watcher.loader.refusals = 1, 2
    roles = {("v2", "f", "active"): 1, ("v3", "f", "canary"): 1, ("v4", "f", "shadow"): 1}
    assert shown.told("tidemark_model_info") == roles
    assert shown.told("tidemark_canary_share") == {(): 0.25}
    assert shown.told("tidemark_model_switches_total") == {(): 1}
    assert shown.told("tidemark_model_refusals_total") == {(): 2}
    assert shown.told("tidemark_shadow_rows_total") == {("compared",): 9, ("unscored",): 1, ("dropped",): 0}
    assert shown.told("tidemark_shadow_difference_total")["churn",] == 1.5
    assert shown.told("tidemark_shadow_difference_largest")["churn",] == 0.5
    assert shown.told("tidemark_shadow_alerts_total")["churn",] == 2


def test_a_call_that_is_shed_before_it_is_read_is_counted_without_a_time(
    shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shown.batcher, "shed_unread", lambda: 0.5)
    settings = Settings(registry=Path("none"), redis="none")
    server = LeanServer(Backend(settings, shown.batcher, metrics=shown.metrics))
    assert server.sheds[SCORE.encode()]() is not None
    assert shown.metrics.calls() == {(SCORE[1:], "RESOURCE_EXHAUSTED"): 1}
    assert shown.metrics.call_seconds() == {}
    assert shown.metrics.errors == {Reason.OVERLOADED: 1}
