"""The model that is served: a bundle read from the registry, checked, warmed, and run on decoded states."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from feature_store.bundles import bundle
from feature_store.bundles.bundle import OFFERS, OUTPUTS, BundleError, defaults
from feature_store.bundles.onnx_session import Graph, open_bundle
from feature_store.bundles.typical_customer import baseline
from feature_store.state.layout import DAY_S, Floats, StateBatch, StateLayout
from service.scoring.shapley import Explainer

WARM_ROWS: Final = (1, 256)
"""Sizes of the batches that it is warmed with."""


class Model:
    """A bundle ready to serve: its golden rows came out right. BundleError where they did not."""

    def __init__(self, loaded: bundle.Bundle, rest: Callable[[], None] = lambda: None) -> None:
        """``rest`` is called between the steps that this takes."""
        manifest = loaded.manifest
        self.version: Final = manifest.version
        self.created: Final = manifest.created
        self.layout: Final = StateLayout(manifest.features)
        self.interests: Final = manifest.interests
        self.economics: Final = defaults(manifest)
        rest()
        self._graph: Final[Graph] = open_bundle(loaded)
        rest()
        self._warm()
        rest()
        # Nothing that refers to the model itself: a replaced one is freed when the last batch is done with it.
        self.probabilities: Final = partial(_probabilities, self._graph, self.economics)
        self.explainer: Final = Explainer(self.layout, baseline(loaded, self.layout), self.probabilities)

    @classmethod
    def current(cls, registry: Path, version: str = bundle.CURRENT, rest: Callable[[], None] = lambda: None) -> Model:
        """The registry's current model, or another one; BundleError where it must not be served.

        ``rest`` is called between the steps that this takes.
        """
        try:
            model = cls(bundle.read(registry, version), rest)
        except BundleError:
            raise
        except Exception as error:  # whatever may be in those files, it is not what training writes
            raise BundleError(f"{version}: the bundle cannot be read ({type(error).__name__})") from error
        if version not in (bundle.CURRENT, model.version):
            raise BundleError(f"{version}: the manifest is that of {model.version}: copy no folders")
        return model

    def _warm(self) -> None:
        """Run on customers of whom nothing is known: so the first batches are as fast as all others."""
        for rows in WARM_ROWS:
            states = self.layout.unpack([None] * rows)
            try:
                self.run(states, 0.0, np.tile(self.economics, (rows, 1)))
            except Exception as error:  # the graph takes or gives something else than these features and figures
                raise BundleError(f"{self.version}: the graph cannot be run ({type(error).__name__})") from error

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


def _probabilities(graph: Graph, economics: Floats, slots: Floats) -> Floats:
    """Probabilities float64 ``[n, offers]`` of states ``[n, slots]`` as of now."""
    rows = len(slots)
    found = graph.run(state=slots, age=np.zeros((rows, 1)), economics=np.tile(economics, (rows, 1)))
    return np.array([found[f"{offer}_probability"] for offer in OFFERS], dtype=np.float64).T
