"""Rows of made-up customers, for tests of what is learnt from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from feature_store.definitions import Feature
from feature_store.state.layout import Floats, StateLayout
from training.config import TrainingConfig
from training.data.dataset import Rows

OFFER = {"contact_cost": 0.1, "offer_cost": 1, "success_rate": 0.1, "redemption_rate": 0.1, "budget_share": 0.1}


def made_rows(state: Floats, **columns: Any) -> Rows:
    """Rows with these states ``[n, slots]``, each a customer of its own, all else unknown where it is not given."""
    n = len(state)
    unknown = np.full(n, np.nan)
    names = np.array([f"c{i:05}" for i in range(n)], dtype=object)
    usual: dict[str, Any] = dict.fromkeys(Rows.__dataclass_fields__, unknown)
    usual |= {"cutoff": np.zeros(n), "customer_id": names, "state": state, "group": np.arange(n)}
    return Rows(**usual | columns)


def attributes(names: Sequence[str]) -> StateLayout:
    """Slots that are numbers of the customer table."""
    return StateLayout([Feature(name=name, aggregate="attribute") for name in names])


def made_config(**sections: Any) -> TrainingConfig:
    """A config with a source that nobody opens."""
    usual: dict[str, Any] = {
        "source": {"events": ""},
        "candidates": {},
        "economics": {"margin": 0.3, "churn": OFFER, "propensity": OFFER},
    }
    if "snapshot" in sections:
        del usual["source"]
    return TrainingConfig.model_validate(usual | sections)
