"""Writes a simulated shop as ``tidemark fit`` reads it: Parquet files of events and customers, and a config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import duckdb
import numpy as np

from feature_store.state.layout import DAY_S
from training.simulation.design import OfferDesign, ShopDesign
from training.simulation.shop import SimulatedShop

EVENTS_FILE: Final = "events.parquet"
CUSTOMERS_FILE: Final = "customers.parquet"
CONFIG_FILE: Final = "shop.toml"

# A payment is the amount of a purchase, or a refund as a negative amount.
_EVENTS_SQL: Final = """
    SELECT customer_id, 'purchase' AS event_type, bought_s AS ts, amount, 'purchase:' || number AS event_id
    FROM purchases
    UNION ALL
    SELECT customer_id, 'payment', bought_s, amount, 'payment:' || number FROM purchases
    UNION ALL
    SELECT customer_id, 'payment', returned_s, -amount, 'refund:' || number FROM purchases WHERE returned_s <= $end
    UNION ALL
    SELECT customer_id, 'return', returned_s, NULL, 'return:' || number FROM purchases WHERE returned_s <= $end"""

_CONFIG: Final = '''# A simulated shop (training.simulation, seed {seed}).

[source]
paths = {{ data = "." }}
events = """
SELECT customer_id, to_timestamp(ts) AS event_time, event_type, amount, event_id FROM '${{data}}/{events}'"""
{attributes}
[churn]
event = "purchase"
horizon_days = {horizon_days:g}
active_days = {active_days:g}

[propensity]
event = "purchase"
horizon_days = {propensity_days:g}

[evaluation]
step_days = 14
warm_up_days = {active_days:g}
bootstrap = {bootstrap}
folds = 2

[economics]
event = "{paid}"
horizon_days = {value_days:g}
margin = {margin:g}
'''

_OFFER: Final = """
[economics.{name}]
contact_cost = {contact_cost!r}
offer_cost = {offer_cost!r}
success_rate = {success_rate!r}
redemption_rate = {redemption_rate!r}
budget_share = {budget_share!r}
"""

_OVERDUE: Final = """
[[overdue]]
name = "overdue"
latest = "purchase_latest"
rate = "purchase_count_112d"
"""


def write_shop(shop: SimulatedShop, folder: Path, *, bootstrap: int = 500) -> Path:
    """Write a shop's tables and its config.

    Args:
        shop: The shop.
        folder: Where the files are written; it is made if it is missing.
        bootstrap: Number of bootstrap resamples of a fit.

    Returns:
        The path of the config.
    """
    folder.mkdir(parents=True, exist_ok=True)
    design, bought = shop.design, shop.purchases
    purchases = {
        "customer_id": shop.customers.name[bought.customer].astype(str),
        "number": np.arange(len(bought.day)),
        "bought_s": _unix_seconds(design, bought.day),
        "returned_s": _unix_seconds(design, bought.returned_day),
        "amount": bought.amount,
    }
    with duckdb.connect() as connection:
        connection.register("purchases", purchases)
        events = f"FROM ({_EVENTS_SQL}) ORDER BY ts, event_id"
        connection.execute(f"COPY ({events}) TO '{folder / EVENTS_FILE}' (FORMAT parquet)", {"end": design.end_s})
        if shop.attributes:
            connection.register("customers", {"customer_id": shop.customers.name.astype(str), **shop.attributes})
            connection.execute(f"COPY (FROM customers) TO '{folder / CUSTOMERS_FILE}' (FORMAT parquet)")
    config = folder / CONFIG_FILE
    config.write_text(_config(shop, bootstrap))
    return config


def _unix_seconds(design: ShopDesign, day: np.ndarray[tuple[int], np.dtype[np.float64]]) -> np.ndarray:
    return np.round(design.start_s + day * DAY_S, 3)


def _config(shop: SimulatedShop, bootstrap: int) -> str:
    design = shop.design
    attributes = f"attributes = \"SELECT * FROM '${{data}}/{CUSTOMERS_FILE}'\"\n" if shop.attributes else ""
    head = _CONFIG.format(
        seed=shop.seed,
        events=EVENTS_FILE,
        attributes=attributes,
        paid="payment" if design.return_share else "purchase",
        bootstrap=bootstrap,
        **{name: getattr(design, name) for name in _PLAIN},
    )
    offers = [_OFFER.format(name=name, **_terms(offer)) for name, offer in design.offers.items()]
    features = [_feature(**keys) for keys in _features(shop)]
    return "".join([head, *offers, *features, _OVERDUE])


_PLAIN: Final = ("horizon_days", "active_days", "propensity_days", "value_days", "margin")


def _terms(offer: OfferDesign) -> dict[str, float]:
    names = ("contact_cost", "offer_cost", "success_rate", "redemption_rate", "budget_share")
    return {name: getattr(offer, name) for name in names}


def _features(shop: SimulatedShop) -> list[dict[str, str | float]]:
    """Features from which a model can see most of what is true: pace, value, time away, season and attributes."""
    features: list[dict[str, str | float]] = [
        {"name": f"purchase_{aggregate}", "event": "purchase", "aggregate": aggregate}
        for aggregate in ("latest", "earliest")
    ]
    features += [
        {"name": f"purchase_count_{days}d", "event": "purchase", "aggregate": "count", "half_life_days": days}
        for days in (14, 112, 365)
    ]
    features += [
        {
            "name": f"payment_amount_{days}d",
            "event": "payment",
            "aggregate": "sum",
            "field": "amount",
            "half_life_days": days,
        }
        for days in (14, 112, 365)
    ]
    if shop.design.return_share:
        features.append({"name": "return_count_365d", "event": "return", "aggregate": "count", "half_life_days": 365})
    return features + [{"name": name, "aggregate": "attribute"} for name in shop.attributes]


def _feature(**keys: str | float) -> str:
    """A ``[[feature]]`` section; a JSON string or number is also one in TOML."""
    return "\n[[feature]]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in keys.items())
