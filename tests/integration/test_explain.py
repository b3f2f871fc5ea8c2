"""Explanations of real graphs: against the bundle's typical customer, exact, and what drawn orders would be off by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from feature_store.bundles import bundle
from feature_store.bundles.bundle import BundleError, Manifest
from feature_store.bundles.typical_customer import to_manifest, typical_customer, typical_state
from feature_store.state.layout import DAY_S, Floats
from service.scoring.model import Model
from service.scoring.shapley import Coalitions, exact, sampled
from tidemark.explanation import Explanation

if TYPE_CHECKING:
    from tests.conftest import Trained


def rewrite(registry: Path, **changes: Any) -> None:
    """Change fields of the manifest; None removes one."""
    path = registry / bundle.CURRENT / bundle.MANIFEST_FILE
    manifest = json.loads(path.read_text()) | changes
    fields = {name: value for name, value in manifest.items() if value is not None}
    path.write_text(json.dumps(fields | {bundle.MANIFEST_HASH: bundle.manifest_hash(fields)}))


def golden(registry: Path) -> Floats:
    """Real states, as of now."""
    return np.asarray(bundle.read(registry).golden["input_state"])


def explained(model: Model, states: Floats, most: int = 50) -> list[dict[str, Explanation]]:
    result = model.explainer.explain(states, np.zeros(len(states)), model.probabilities(states), most)
    return [dict(item) for item in result if isinstance(item, dict)]


def test_the_sum_is_exact_on_a_trained_graph(toy: Trained) -> None:
    model, states = Model.current(toy.registry), golden(toy.registry)
    answered = model.probabilities(states)
    result = explained(model, states)
    assert len(result) == len(states)
    for row, explanations in zip(answered, result, strict=True):
        for wanted, why in zip(row, explanations.values(), strict=True):
            total = why.baseline_probability + sum(item.contribution for item in why.contributions)
            assert abs(total + why.other_contribution - wanted) < 1e-12
            assert abs(why.other_contribution) < 1e-6  # all were told
    names = {item.feature for explanations in result for why in explanations.values() for item in why.contributions}
    known = {"purchase_recency", "purchase_tenure", "purchase_count", "purchase_amount", "view_duration", "income"}
    assert names <= known
    assert len(names) > 2


def test_a_bundle_from_before_is_explained_against_the_median_of_its_golden_rows(registry: Path) -> None:
    rewrite(registry, baseline=None)
    loaded, model = bundle.read(registry), Model.current(registry)
    assert loaded.manifest.baseline is None
    rows = loaded.golden  # states of various ages
    now = model.layout.advance(rows["input_state"], rows["input_age"][:, 0] * DAY_S)
    middle = typical_state(model.layout, now)
    np.testing.assert_array_equal(typical_customer(loaded, model.layout), middle)
    expected = model.probabilities(middle[np.newaxis])[0]
    for explanations in explained(model, golden(registry)[:3]):
        assert [why.baseline_probability for why in explanations.values()] == pytest.approx(expected.tolist(), abs=1e-7)


def test_what_the_typical_customer_has_not_comes_back_from_the_manifest(registry: Path) -> None:
    layout = Model.current(registry).layout
    rewrite(registry, baseline=to_manifest(layout.identity))
    np.testing.assert_array_equal(typical_customer(bundle.read(registry), layout), layout.identity)
    again = Manifest.model_validate_json(bundle.read(registry).manifest.model_dump_json(exclude_none=True))
    assert again.baseline == to_manifest(layout.identity)
    for explanations in explained(Model.current(registry), golden(registry)[:3]):
        assert explanations["churn"].contributions


@pytest.mark.parametrize("damaged", [[], [1.0], [1.0] * 7, ["x"] * 6, [float("nan")] * 6, [float("inf")] * 6, 1.0])
def test_a_baseline_that_is_none_is_refused(registry: Path, damaged: Any) -> None:
    rewrite(registry, baseline=damaged)
    with pytest.raises(BundleError, match="baseline"):
        bundle.read(registry)


def test_drawn_orders_are_near_the_exact_values_on_the_sample(sample_registry: Path) -> None:
    model, states = Model.current(sample_registry), golden(sample_registry)
    players = model.explainer.players
    of = np.zeros(len(model.layout.features), dtype=np.intp)
    for at, player in enumerate(players):
        of[list(player.slots)] = at
    middle = typical_state(model.layout, states)

    def values(mixed: Coalitions) -> Floats:
        rows = [np.where(mixed.members[:, of], state, middle) for state in states]
        return np.array([mixed.weights @ model.probabilities(row) for row in rows])

    whole, drawn = values(exact(len(players))), values(sampled(len(players)))
    assert np.abs(whole - drawn).max() < 0.1 * np.abs(whole).max()
    assert np.abs(whole - drawn).mean() < 0.05 * np.abs(whole).mean()
