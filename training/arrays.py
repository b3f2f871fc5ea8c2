"""Types of arrays, beside ``feature_store.state.layout.Floats`` for float64."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Features = npt.NDArray[np.float32]
"""Model features ``[n, names]``."""

Index = npt.NDArray[np.intp]
"""Indexes of rows, or numbers of groups."""

Bools = npt.NDArray[np.bool_]
"""Masks and binary labels."""
