"""Scoring rows with the evaluation models, which have not seen the test rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from feature_store.bundles.bundle import OFFERS
from feature_store.bundles.onnx_session import Graph
from feature_store.state.layout import Floats
from training.arrays import Index
from training.config import TrainingConfig
from training.data.training_table import TrainingTable
from training.evaluation.scored_rows import ScoredRows, realised_value
from training.evaluation.stayers import corrected_by_stayers
from training.evidence import hashed_ids
from training.graph.customer_costs import own_figures, terms_of
from training.models.export import graph_inputs
from training.models.model_set import Models


class ScoringGraph:
    """A graph with fixed economics. It can be sent to worker processes."""

    def __init__(self, model: bytes, figures: Mapping[str, float], per_customer: Collection[str]) -> None:
        """Open the graph.

        Args:
            model: The serialised graph.
            figures: The economics by name.
            per_customer: Figures that the graph takes from the state of the customer.
        """
        self._model, self._figures, self._per_customer = model, figures, per_customer
        self._graph: Final = Graph(model)

    def __reduce__(self) -> tuple[type[ScoringGraph], tuple[bytes, Mapping[str, float], Collection[str]]]:
        """Pickle the serialised graph, because a session of onnxruntime cannot be pickled."""
        return ScoringGraph, (self._model, self._figures, self._per_customer)

    def run(self, state: Floats) -> dict[str, Floats]:
        """Outputs ``[n]`` by name for states ``[n, slots]``, in float64."""
        outputs = self._graph.run(**graph_inputs(state, self._figures, self._per_customer))
        return {name: value.astype(np.float64) for name, value in outputs.items()}


@dataclass(frozen=True)
class EvaluationScorer:
    """Scores rows with the evaluation models.

    Attributes:
        config: The config.
        table: All rows and their splits.
        models: The models, fitted without the test rows.
        model: Their serialised graph.
        figures: The economics, with the prices of the budgets found on the calibration rows.
    """

    config: TrainingConfig
    table: TrainingTable
    models: Models
    model: bytes
    figures: dict[str, float]

    @cached_property
    def graph(self) -> ScoringGraph:
        """The graph with these economics."""
        return ScoringGraph(self.model, self.figures, own_figures(self.config, self.table.spec.layout))

    @property
    def seed(self) -> int:
        """The seed of all random numbers."""
        return self.config.evaluation.seed

    @property
    def offers(self) -> list[str]:
        """The offers that have labels."""
        return [offer for offer in OFFERS if offer in self.table.splits]

    def run(self, state: Floats) -> dict[str, Floats]:
        """Outputs of the graph by name for states ``[n, slots]``, in float64."""
        return self.graph.run(state)

    def test_rows(self, offer: str) -> ScoredRows:
        """The test rows, scored by the graph."""
        index = self.table.splits[offer].test
        outputs = self.run(self.table.rows.state[index])
        return self._scored(offer, index, outputs[f"{offer}_probability"], outputs[f"{offer}_value_if_won"])

    def calibration_rows(self, offer: str) -> ScoredRows:
        """The calibration rows, scored by models that were not fitted on them."""
        held_out = self.models.held_out[offer]
        value = self.config.economics.margin * held_out.spend
        return self._scored(offer, self.table.splits[offer].evaluation.calibration, held_out.probability, value)

    def _scored(self, offer: str, index: Index, probability: Floats, value: Floats) -> ScoredRows:
        rows, has_time = self.table.rows.take(index), self.table.plan is not None
        terms = terms_of(self.config, self.table.spec.layout, offer, rows.state)
        realised, stayers = realised_value(self.config, rows, offer), None
        if offer == "churn" and has_time and self.config.economics.value is None:
            stay_value = self.config.economics.margin * rows.stay_spend
            realised, stayers = corrected_by_stayers(realised, probability, value, rows.churn > 0, stay_value)
        has_own_costs = terms is not self.config.economics.offer(offer)
        return ScoredRows(
            customer=hashed_ids(rows.customer_id.tolist()),
            probability=probability,
            value=value,
            realised_value=realised,
            label=rows.label(offer) > 0,
            recency=rows.recency_days if has_time else None,
            frequency=rows.frequency if has_time else None,
            monetary=rows.monetary if has_time else None,
            contact_cost=np.asarray(terms.contact_cost) if has_own_costs else None,
            offer_cost=np.asarray(terms.offer_cost) if has_own_costs else None,
            stayers=stayers,
        )
