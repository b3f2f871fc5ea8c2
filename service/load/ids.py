"""The ids to ask for: those that are in Redis under the served bundle, or the lines of a file."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Final

from feature_store import bundle
from feature_store.errors import InputError
from feature_store.online import StateWriter
from feature_store.state import StateLayout

MOST_IDS: Final = 1_000_000


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


def from_file(path: Path) -> list[str]:
    """The lines of a file that are not blank, a million at most; InputError where there are none."""
    try:
        with path.open(encoding="utf-8") as file:
            found = [line for text in islice(file, MOST_IDS) if (line := text.strip())]
    except (OSError, UnicodeError) as error:
        raise InputError(f"{path} cannot be read as UTF-8 text: {type(error).__name__}") from error
    if not found:
        raise InputError(f"{path} holds no ids: one a line is wanted")
    return found
