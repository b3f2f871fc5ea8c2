"""Costs of each customer's own, where a snapshot has columns for them: in the graph, and beside it.

A figure of the economics that is not a number means the customer's own, which is a slot of the state; where the
customer has none it is the config's. A caller who names a figure prices everybody alike.
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
    """Slots with costs of each customer's own, by the name of the economic figure they stand for."""
    snapshot = config.snapshot
    if snapshot is None:
        return {}
    columns = {getattr(snapshot, cost): f"{snapshot.target}.{cost}" for cost in COSTS if getattr(snapshot, cost)}
    return {columns[f.source_column]: i for i, f in enumerate(layout.features) if f.source_column in columns}


def terms_of(config: TrainingConfig, layout: StateLayout, offer: str, state: Floats) -> Terms:
    """The offer to customers with these states, at costs of their own where they have some."""
    usual, own = config.economics.offer(offer), own_figures(config, layout)
    if not any(f"{offer}.{cost}" in own for cost in COSTS):
        return usual
    costs = {}
    for cost in COSTS:
        slot = own.get(f"{offer}.{cost}")
        found = np.full(len(state), np.nan) if slot is None else state[:, slot]
        costs[cost] = np.where(np.isnan(found), getattr(usual, cost), found)
    return CustomerOffer(
        **costs,
        success_rate=usual.success_rate,
        redemption_rate=usual.redemption_rate,
        budget_share=usual.budget_share,
    )


def add_own_costs(graph: GraphBuilder, config: TrainingConfig, layout: StateLayout) -> str:
    """Nodes from the graph's ``economics`` to the same float64 ``[n, figures]`` without a missing number."""
    own = own_figures(config, layout)
    if not own:
        return "economics"
    slots = [own.get(name, 0) for name in ECONOMICS]
    usual = {f"{offer}.{cost}": getattr(config.economics.offer(offer), cost) for offer in OFFERS for cost in COSTS}
    found = graph.add("Where", graph.add("IsNaN", "economics"), graph.columns("state", slots), "economics")
    fallback = graph.constant(np.array([usual.get(name, 0.0) for name in ECONOMICS]))
    return graph.add("Where", graph.add("IsNaN", found), fallback, found)
