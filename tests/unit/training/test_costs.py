"""Costs of each customer's own: the graph counts with the same ones as NumPy does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store.bundles.bundle import ECONOMICS, OFFERS
from feature_store.bundles.onnx_session import Graph
from feature_store.state.layout import Floats
from tests.made_rows import OFFER, attributes, made_config
from training.graph.builder import GraphBuilder
from training.graph.customer_costs import add_own_costs, own_figures, terms_of
from training.graph.thresholds import CustomerOffer, add_thresholds, add_values, threshold
from training.models.export import graph_inputs

SNAPSHOT = {"table": "", "label": "left"}
ECONOMY = {
    "margin": 0.5,
    "value": 40.0,
    "churn": OFFER | {"contact_cost": 0.25, "offer_cost": 3.0},
    "propensity": OFFER,
}
LAYOUT = attributes(["age", "mailing", "voucher"])
PRICE = 0.125


def config(**columns: Any) -> Any:
    return made_config(snapshot=SNAPSHOT | columns, economics=ECONOMY)


BOTH = config(contact_cost="mailing", offer_cost="voucher")


def thresholds(settings: Any, state: Floats, economics: Floats) -> dict[str, Floats]:
    """Thresholds of a graph in which everybody spends 40."""
    graph = GraphBuilder()
    graph.input("state", 3)
    graph.input("economics", len(ECONOMICS))
    values = add_values(graph, graph.constant(np.full((1, len(OFFERS)), 40.0)), "economics", OFFERS)
    result = add_thresholds(graph, values, add_own_costs(graph, settings, LAYOUT), OFFERS, 0.01)
    whole = graph.add("Cast", result, to=graph.float32)
    for column, offer in enumerate(OFFERS):
        graph.output(offer, whole, column)
    if not own_figures(settings, LAYOUT):
        graph.output("state_as_it_came", graph.add("Cast", "state", to=graph.float32), columns=3)
    return Graph(graph.build("costs")).run(state=state, economics=economics)


def figures(settings: Any) -> dict[str, float]:
    result: dict[str, float] = settings.economics.figures({"churn": PRICE, "propensity": PRICE})
    return result


costs = st.integers(0, 2000).map(lambda cents: cents / 100) | st.just(np.nan)
states = st.lists(st.tuples(costs, costs, costs), min_size=1, max_size=8).map(np.array)


@pytest.mark.parametrize(
    "columns",
    [{"contact_cost": "mailing", "offer_cost": "voucher"}, {"contact_cost": "mailing"}, {"offer_cost": "voucher"}, {}],
    ids=lambda columns: "+".join(columns) or "none",
)
@given(state=states)
def test_the_graph_uses_the_same_costs_as_numpy(columns: dict[str, str], state: Floats) -> None:
    settings = config(**columns)
    own = own_figures(settings, LAYOUT)
    inputs = graph_inputs(state, figures(settings), own)
    result = thresholds(settings, state, inputs["economics"])
    value = np.full(len(state), 0.5 * 40.0)
    for offer in OFFERS:
        expected = threshold(value, terms_of(settings, LAYOUT, offer, state), PRICE, 0.01)
        np.testing.assert_allclose(result[offer], expected, atol=1e-6)


def test_the_slots_of_the_costs_are_found_by_their_columns() -> None:
    assert own_figures(BOTH, LAYOUT) == {"churn.contact_cost": 1, "churn.offer_cost": 2}
    buyers = config(offer_cost="voucher", target="propensity")
    assert own_figures(buyers, LAYOUT) == {"propensity.offer_cost": 2}
    assert own_figures(made_config(), LAYOUT) == {}


def test_a_customer_without_costs_gets_those_of_the_config() -> None:
    state = np.array([[30.0, 1.5, 7.0], [30.0, np.nan, np.nan]])
    terms = terms_of(BOTH, LAYOUT, "churn", state)
    assert isinstance(terms, CustomerOffer)
    assert terms.contact_cost.tolist() == [1.5, 0.25]
    assert terms.offer_cost.tolist() == [7.0, 3.0]
    assert terms.success_rate == BOTH.economics.churn.success_rate
    # The other offer has no costs of its own.
    assert terms_of(BOTH, LAYOUT, "propensity", state) is BOTH.economics.propensity


def test_a_figure_given_in_a_call_applies_to_all_customers() -> None:
    state = np.array([[30.0, 1.5, 7.0], [30.0, 9.0, 1.0]])
    named = graph_inputs(state, figures(BOTH))["economics"]
    result = thresholds(BOTH, state, named)["churn"]
    usual = threshold(np.full(2, 20.0), BOTH.economics.churn, PRICE, 0.01)
    np.testing.assert_allclose(result, usual, atol=1e-6)
    assert result[0] == result[1]
