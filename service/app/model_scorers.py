"""The scorers of a process: one for each model that it serves, with the same guards, counts and cache of states."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final
from weakref import WeakSet

from feature_store.online.stale_cache import StaleStateCache
from feature_store.online.state_reader import StateReader
from feature_store.online.store import RedisStore
from service.scoring.alert_spikes import SpikeGuard
from service.scoring.model import Model
from service.scoring.scorer import Guards, Scorer
from service.settings import Settings
from service.telemetry.batch_stages import BatchObserver

SPIKE_WINDOW_S: Final = 60.0
"""Length of the windows in which alerts are counted."""


class ModelScorers:
    """Makes the scorers of models. Those that answer calls share their spike guards, so a model switch resets none."""

    def __init__(self, store: RedisStore, settings: Settings, observer: BatchObserver | None = None) -> None:
        """``observer``: is notified of the stages of batches; None if nobody measures."""
        self._guards: Final = Guards(churn=_guard(settings), propensity=_guard(settings))
        self._store: Final = store
        self._stale_cache_bytes: Final = settings.stale_cache_bytes
        self._caches: Final[WeakSet[StaleStateCache]] = WeakSet()
        self._observer: Final = observer
        self.counts: Final[Counter[str]] = Counter()
        """Scores that were ``stale`` or ``explained``, over all models."""

    def make(self, model: Model, *, shadow: bool = False) -> Scorer:
        """The scorer of a model; that of a shadow marks no spikes, is not counted, and runs off the event loop."""
        if shadow:
            return Scorer(StateReader(self._store, model.layout), model, on_loop_rows=0)
        cache = StaleStateCache(self._stale_cache_bytes) if self._stale_cache_bytes else None
        if cache is not None:
            self._caches.add(cache)
        source = StateReader(self._store, model.layout, cache)
        return Scorer(source, model, self._guards, self._observer, counts=self.counts)

    def forget(self, customer_ids: Iterable[str]) -> None:
        """Remove customers from the caches of recent states."""
        ids = list(customer_ids)
        for cache in self._caches:
            cache.forget(ids)

    @property
    def spikes(self) -> int:
        """Windows with a spike of alerts so far, of either offer, in total and by item."""
        return sum(guard.spikes + guard.item_spikes for guard in self._guards)

    @property
    def cached_states(self) -> int:
        """States in the caches."""
        return sum(map(len, self._caches))

    @property
    def cached_bytes(self) -> int:
        """Bytes that the caches use."""
        return sum(cache.bytes for cache in self._caches)


def _guard(settings: Settings) -> SpikeGuard:
    return SpikeGuard(z=settings.spike_threshold, window_s=SPIKE_WINDOW_S)
