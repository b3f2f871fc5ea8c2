"""A model that is served: a bundle of the registry, checked, warmed up, and run on decoded states."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from feature_store.bundles import bundle
from feature_store.bundles.bundle import OFFERS, OUTPUTS, BundleError, default_economics
from feature_store.bundles.onnx_session import Graph, load_graph
from feature_store.bundles.typical_customer import typical_customer
from feature_store.state.layout import DAY_S, Floats, StateBatch, StateLayout
from service.scoring.shapley import Explainer

WARM_UP_ROWS: Final = (1, 256)
"""Sizes of the batches of a warm-up."""


class Model:
    """A bundle that is ready to serve."""

    def __init__(self, loaded: bundle.Bundle, pause: Callable[[], None] = lambda: None) -> None:
        """Build the model of a bundle, check its golden rows, and warm it up.

        Args:
            loaded: The bundle.
            pause: Is called between these steps.

        Raises:
            BundleError: The graph cannot be run, or computes other golden rows than training did.
        """
        manifest = loaded.manifest
        self.version: Final = manifest.version
        self.created: Final = manifest.created
        self.layout: Final = StateLayout(manifest.features)
        self.interests: Final = manifest.interests
        self.economics: Final = default_economics(manifest)
        pause()
        self._graph: Final[Graph] = load_graph(loaded)
        pause()
        self._warm()
        pause()
        # No reference to the model itself, so that a replaced model is freed when its last batch is done.
        self.probabilities: Final = partial(_probabilities, self._graph, self.economics)
        self.explainer: Final = Explainer(self.layout, typical_customer(loaded, self.layout), self.probabilities)

    @classmethod
    def current(cls, registry: Path, version: str = bundle.CURRENT, pause: Callable[[], None] = lambda: None) -> Model:
        """Load the registry's current model, or another version.

        Args:
            registry: The folder of the registry.
            version: The version, or the name of the link to the current one.
            pause: Is called between the steps of loading.

        Raises:
            BundleError: The bundle must not be served.
        """
        try:
            model = cls(bundle.read(registry, version), pause)
        except BundleError:
            raise
        except Exception as error:  # of any kind: the files may contain anything
            raise BundleError(f"{version}: the bundle cannot be read ({type(error).__name__})") from error
        if version not in (bundle.CURRENT, model.version):
            raise BundleError(f"{version}: the manifest is that of {model.version}: copy no folders")
        return model

    def _warm(self) -> None:
        """Run on empty states, so that the first batches are as fast as all others."""
        for rows in WARM_UP_ROWS:
            states = self.layout.unpack([None] * rows)
            try:
                self.run(states, 0.0, np.tile(self.economics, (rows, 1)))
            except Exception as error:  # the graph has other inputs or outputs than its manifest says
                raise BundleError(f"{self.version}: the graph cannot be run ({type(error).__name__})") from error

    def run(self, states: StateBatch, now: float, economics: Floats) -> Floats:
        """Compute scores.

        Args:
            states: The states of n customers.
            now: The time as of which to score, in unix seconds.
            economics: float64 ``[n, figures]``, in the order of ECONOMICS.

        Returns:
            float64 ``[n, outputs + 1]``: the graph's outputs in the order of OUTPUTS, then the states' ``as_of``.
        """
        outputs = self._graph.run(
            state=np.ascontiguousarray(states.slots),
            age=((now - states.as_of) / DAY_S)[:, np.newaxis],
            economics=economics,
        )
        table = np.empty((len(states.slots), len(OUTPUTS) + 1))
        table[:, :-1] = np.array([outputs[name] for name in OUTPUTS]).T
        table[:, -1] = states.as_of
        return table


def _probabilities(graph: Graph, economics: Floats, slots: Floats) -> Floats:
    """The probabilities, float64 ``[n, offers]``, of states as of now, ``[n, slots]``."""
    rows = len(slots)
    outputs = graph.run(state=slots, age=np.zeros((rows, 1)), economics=np.tile(economics, (rows, 1)))
    return np.array([outputs[f"{offer}_probability"] for offer in OFFERS], dtype=np.float64).T
