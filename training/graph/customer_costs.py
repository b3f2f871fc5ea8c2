"""Costs per customer, for a snapshot with columns for them: as graph nodes, and in NumPy.

A figure of the economics that is NaN is taken from a slot of the customer's state, or from the config if that is NaN
too. A figure given in a call applies to all customers.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from feature_store.bundles.bundle import ECONOMICS, OFFERS
from feature_store.state.layout import Floats, StateLayout
from training.config import TrainingConfig
from training.graph.builder import GraphBuilder
from training.graph.thresholds import CustomerOffer, Terms

COSTS: Final = ("contact_cost", "offer_cost")


def own_figures(config: TrainingConfig, layout: StateLayout) -> dict[str, int]:
    """Slots with costs per customer, by the name of the economic figure that they replace."""
    snapshot = config.snapshot
    if snapshot is None:
        return {}
    columns = {getattr(snapshot, cost): f"{snapshot.target}.{cost}" for cost in COSTS if getattr(snapshot, cost)}
    return {columns[f.source_column]: i for i, f in enumerate(layout.features) if f.source_column in columns}


def terms_of(config: TrainingConfig, layout: StateLayout, offer: str, state: Floats) -> Terms:
    """The offer to customers with these states, with costs per customer if the snapshot has them."""
    default, own = config.economics.offer(offer), own_figures(config, layout)
    if not any(f"{offer}.{cost}" in own for cost in COSTS):
        return default
    costs = {}
    for cost in COSTS:
        slot = own.get(f"{offer}.{cost}")
        values = np.full(len(state), np.nan) if slot is None else state[:, slot]
        costs[cost] = np.where(np.isnan(values), getattr(default, cost), values)
    return CustomerOffer(
        **costs,
        success_rate=default.success_rate,
        redemption_rate=default.redemption_rate,
        budget_share=default.budget_share,
    )


def add_own_costs(graph: GraphBuilder, config: TrainingConfig, layout: StateLayout) -> str:
    """Add nodes that replace NaN costs in the graph's ``economics``; returns the name of float64 ``[n, figures]``.

    Other figures, and values if won, must be taken from ``economics`` itself.
    """
    own = own_figures(config, layout)
    if not own:
        return "economics"
    slots = [own.get(name, 0) for name in ECONOMICS]
    defaults = {f"{offer}.{cost}": getattr(config.economics.offer(offer), cost) for offer in OFFERS for cost in COSTS}
    filled = graph.add("Where", graph.add("IsNaN", "economics"), graph.columns("state", slots), "economics")
    fallback = graph.constant(np.array([defaults.get(name, 0.0) for name in ECONOMICS]))
    return graph.add("Where", graph.add("IsNaN", filled), fallback, filled)
