"""The model that is served: a bundle read from the registry, checked, warmed, and run on decoded states."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from feature_store import bundle
from feature_store.baseline import baseline
from feature_store.bundle import OFFERS, OUTPUTS, defaults
from feature_store.graph import Graph, open_bundle
from feature_store.state import DAY_S, Floats, StateBatch, StateLayout
from service.explain import Explainer


class Model:
    """A bundle ready to serve: its golden rows came out right."""

    def __init__(self, loaded: bundle.Bundle) -> None:
        manifest = loaded.manifest
        self.version: Final = manifest.version
        self.layout: Final = StateLayout(manifest.features)
        self.interests: Final = manifest.interests
        self.economics: Final = defaults(manifest)
        self._graph: Final[Graph] = open_bundle(loaded)
        self.explainer: Final = Explainer(self.layout, baseline(loaded, self.layout), self.probabilities)

    @classmethod
    def current(cls, registry: Path) -> Model:
        """The registry's current model; BundleError where it must not be served."""
        return cls(bundle.read(registry))

    def run(self, states: StateBatch, now: float, economics: Floats) -> Floats:
        """Score states at ``now`` (unix seconds) under ``economics`` (float64 ``[n, figures]``).

        Returns float64 ``[n, outputs + 1]``: the graph's outputs in the order of OUTPUTS, and ``as_of``.
        """
        found = self._graph.run(
            state=np.ascontiguousarray(states.slots),
            age=((now - states.as_of) / DAY_S)[:, np.newaxis],
            economics=economics,
        )
        table = np.empty((len(states.slots), len(OUTPUTS) + 1))
        table[:, :-1] = np.array([found[name] for name in OUTPUTS]).T
        table[:, -1] = states.as_of
        return table

    def probabilities(self, slots: Floats) -> Floats:
        """Probabilities float64 ``[n, offers]`` of states ``[n, slots]`` as of now."""
        rows = len(slots)
        found = self._graph.run(state=slots, age=np.zeros((rows, 1)), economics=np.tile(self.economics, (rows, 1)))
        return np.array([found[f"{offer}_probability"] for offer in OFFERS], dtype=np.float64).T
