"""Simulated shops of which everything is known: to check methods and evidence, and to try tidemark without data.

In a real shop nobody knows the probability that a customer leaves, what the customer would bring if an offer won it
back, or what another policy would have earned. In a simulated shop all of it is known exactly, so every statement of a
fit can be compared with the truth.

A shop is drawn from a design and a seed. Each customer has a pace, a basket, a chance to leave after each purchase and
a share of goods that it returns; some buy once, the season moves the rate of purchases, and the success rate of an
offer may drift:

>>> from training.simulation import ShopDesign, simulate
>>> shop = simulate(ShopDesign(customers=2000, risk_value_correlation=0.5), seed=7)
>>> len(shop.customers.name), len(shop.purchases.day) > 2000
(2000, True)

``at`` gives the truth at any moments of the history: probabilities, values, and the profit of acting on each customer.
The probabilities are those of an observer who knows how each customer behaves and what it did so far. They can be
compared with what happened, which is known as well:

>>> cutoff = shop.design.end_s - 28 * 86_400
>>> truth = shop.at([cutoff], "churn")
>>> abs(truth.probability.mean() - truth.history.label.mean()) < 0.05
np.True_

Every policy has a true expected profit: that of contacting the tenth with the highest probability of churn, and that of
the oracle, the best policy with as many contacts:

>>> import numpy as np
>>> contacts = len(truth) // 10
>>> riskiest = truth.probability >= np.sort(truth.probability)[-contacts]
>>> truth.profit(riskiest) < truth.profit(truth.oracle(contacts))
True

The gain of acting is ``p * s * (v - d) - (1 - p) * r * d - c`` for a customer with probability p and value if won v, an
offer that costs d and a contact that costs c, and the rates of success s and redemption r. ``draw_profit`` draws what
acting would have earned in one possible future; its mean over futures is the gain.

``write_shop`` writes what ``tidemark fit`` reads: events and customers as Parquet files, and a config.

>>> import tempfile
>>> from pathlib import Path
>>> from training.simulation import write_shop
>>> with tempfile.TemporaryDirectory() as folder:
...     config = write_shop(shop, Path(folder))
...     print(config.name, sorted(path.name for path in config.parent.iterdir()))
shop.toml ['customers.parquet', 'events.parquet', 'shop.toml']

The truth depends on no other code of ``training``, so that it can judge all of it.
"""

from training.simulation.design import OfferDesign, ShopDesign
from training.simulation.shop import Customers, Purchases, SimulatedShop, simulate
from training.simulation.tables import write_shop
from training.simulation.truth import History, TrueRows

__all__ = [
    "Customers",
    "History",
    "OfferDesign",
    "Purchases",
    "ShopDesign",
    "SimulatedShop",
    "TrueRows",
    "simulate",
    "write_shop",
]
