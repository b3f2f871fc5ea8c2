"""The typical customer: a state with the median of every slot, the baseline that explanations of scores compare with.

Training writes it into the manifest, with null for a slot that the typical customer does not have (no such event, or an
attribute that most customers lack). For bundles of earlier releases the median of the golden rows takes its place.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from feature_store.bundles.bundle import Bundle
from feature_store.state.layout import DAY_S, Floats, StateLayout


def typical_state(layout: StateLayout, slots: Floats) -> Floats:
    """The slots ``[slots]`` of the typical customer among some customers.

    The median of a slot is a value that some customer has (the lower of the two middle ones). Of a category it is the
    most frequent one. An attribute that most customers lack is NaN.

    Args:
        layout: The layout.
        slots: ``[n, slots]`` with n of at least 1, each row as of that customer's reference time.
    """
    ordered = np.sort(slots, axis=0)  # NaN is sorted last
    known = np.count_nonzero(~np.isnan(slots), axis=0)
    median = np.take_along_axis(ordered, np.maximum(known - 1, 0)[np.newaxis] // 2, axis=0)[0]
    for column, feature in enumerate(layout.features):
        if feature.categories is not None and known[column]:
            codes, counts = np.unique(ordered[: known[column], column], return_counts=True)
            median[column] = codes[np.argmax(counts)]
    return np.where(known * 2 >= len(slots), median, np.nan)


def to_manifest(slots: Floats) -> list[float | None]:
    """The slots of a state as they are written to the manifest."""
    return [float(value) if np.isfinite(value) else None for value in slots]


def typical_customer(bundle: Bundle, layout: StateLayout) -> Floats:
    """The slots ``[slots]`` of a bundle's typical customer, as of any time."""
    if (baseline := bundle.manifest.baseline) is not None:
        return _from_manifest(baseline, layout)
    golden = bundle.golden
    return typical_state(layout, layout.advance(golden["input_state"], golden["input_age"][:, 0] * DAY_S))


def _from_manifest(baseline: Sequence[float | None], layout: StateLayout) -> Floats:
    known = np.array([value is not None for value in baseline])
    return np.where(known, np.array([value or 0.0 for value in baseline]), layout.identity)
