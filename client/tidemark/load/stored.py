"""The ids of customers who are in Redis under the served bundle."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from feature_store.bundles import bundle
from feature_store.errors import InputError
from feature_store.online.store import StateWriter
from feature_store.state.layout import StateLayout
from tidemark.load.ids import MOST_IDS


def from_redis(url: str, registry: Path) -> list[str]:
    """Ids of customers with a state under the registry's current bundle, a million at most, in one order.

    InputError where there are none or the bundle cannot be read, StoreUnavailableError where Redis does not answer.
    """
    try:
        features = bundle.read(registry).manifest.features
    except bundle.BundleError as error:
        raise InputError(str(error)) from error
    with StateWriter(url, StateLayout(features)) as redis:
        found = sorted(islice(redis.customer_ids(), MOST_IDS))
    if not found:
        raise InputError("Redis holds no customers of this registry's bundle: load them (python -m feature_store load)")
    return found
