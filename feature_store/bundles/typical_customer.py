"""The typical customer: a state with the median of every slot, which explanations of a score compare with.

Training writes it into the manifest, null where the typical customer has nothing (no such event, an attribute that most
have not). A bundle of before that has golden rows, and their median stands in.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from feature_store.bundles.bundle import Bundle
from feature_store.state.layout import DAY_S, Floats, StateLayout


def typical(layout: StateLayout, slots: Floats) -> Floats:
    """The typical state ``[slots]`` of states ``[n, slots]`` (one or more), each as of its own reference.

    A slot's median is a value that some customer has (the lower of two), of a category the most frequent one; NaN for
    an attribute that most have not.
    """
    ordered = np.sort(slots, axis=0)  # what is unknown comes last
    known = np.count_nonzero(~np.isnan(slots), axis=0)
    found = np.take_along_axis(ordered, np.maximum(known - 1, 0)[np.newaxis] // 2, axis=0)[0]
    for column, feature in enumerate(layout.features):
        if feature.categories is not None and known[column]:
            codes, counts = np.unique(ordered[: known[column], column], return_counts=True)
            found[column] = codes[np.argmax(counts)]
    return np.where(known * 2 >= len(slots), found, np.nan)


def told(slots: Floats) -> list[float | None]:
    """A state as the manifest has it."""
    return [float(value) if np.isfinite(value) else None for value in slots]


def baseline(bundle: Bundle, layout: StateLayout) -> Floats:
    """The typical state ``[slots]`` of a bundle, as of whichever moment one looks at."""
    if (written := bundle.manifest.baseline) is not None:
        return _read(written, layout)
    golden = bundle.golden
    return typical(layout, layout.advance(golden["input_state"], golden["input_age"][:, 0] * DAY_S))


def _read(written: Sequence[float | None], layout: StateLayout) -> Floats:
    known = np.array([value is not None for value in written])
    return np.where(known, np.array([value or 0.0 for value in written]), layout.identity)
