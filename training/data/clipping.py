"""The most that a sum takes from one event, learnt from the past, so that one typing error is not a big spender."""

from __future__ import annotations

import math
from collections.abc import Sequence

from feature_store.definitions import Feature
from feature_store.offline.store import OfflineStore

QUANTILE = 0.999
FACTOR = 2.0
"""Twice what all but one in a thousand events stay below: real events are hardly ever clipped."""


def learn_clips(source: OfflineStore, features: Sequence[Feature], until: float) -> list[Feature]:
    """The features, with a clip for each sum that has none of its own, from events up to ``until`` (unix seconds)."""
    found: dict[tuple[str, str], float | None] = {}
    learnt = []
    for feature in features:
        if feature.aggregate == "sum" and feature.clip is None:
            key = str(feature.event), str(feature.field)
            if key not in found:
                found[key] = _clip(source, *key, until)
            feature = feature.model_copy(update={"clip": found[key]})  # noqa: PLW2901  # the same line, complete
        learnt.append(feature)
    return learnt


def _clip(source: OfflineStore, event: str, field: str, until: float) -> float | None:
    """None where there is nothing to learn from."""
    query = f"SELECT quantile_cont(abs({field}), {QUANTILE}) FROM events WHERE event_type = $event AND t <= $until"
    ((usual,),) = source.connection.execute(query, {"event": event, "until": until}).fetchall()
    return rounded_up(FACTOR * usual) if usual else None


def rounded_up(value: float) -> float:
    """To two digits, so that a little more data gives the same clip, and with it the same fingerprint."""
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / step) * step:.1e}")
