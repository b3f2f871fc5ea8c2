"""Clipping thresholds (winsorisation) of sums, learnt from the past, so that a typing error does not dominate a sum."""

from __future__ import annotations

import math
from collections.abc import Sequence

from feature_store.definitions import Feature
from feature_store.offline.store import OfflineStore

QUANTILE = 0.999
FACTOR = 2.0
"""The threshold is this multiple of the QUANTILE, so that real events are hardly ever clipped."""


def learn_clips(source: OfflineStore, features: Sequence[Feature], until: float) -> list[Feature]:
    """Set the clipping threshold of each sum that has none.

    Args:
        source: The open source.
        features: All features.
        until: Unix seconds; later events are not read.

    Returns:
        All features, in the same order.
    """
    clips: dict[tuple[str, str], float | None] = {}
    learnt = []
    for feature in features:
        if feature.aggregate == "sum" and feature.clip is None:
            key = str(feature.event), str(feature.field)
            if key not in clips:
                clips[key] = _clip(source, *key, until)
            feature = feature.model_copy(update={"clip": clips[key]})  # noqa: PLW2901  # the same line, complete
        learnt.append(feature)
    return learnt


def _clip(source: OfflineStore, event: str, field: str, until: float) -> float | None:
    """The threshold for a field of an event type; None without values."""
    query = f"SELECT quantile_cont(abs({field}), {QUANTILE}) FROM events WHERE event_type = $event AND t <= $until"
    ((usual,),) = source.connection.execute(query, {"event": event, "until": until}).fetchall()
    return rounded_up(FACTOR * usual) if usual else None


def rounded_up(value: float) -> float:
    """Round up to two digits, so that a little more data gives the same threshold and the same fingerprint."""
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / step) * step:.1e}")
