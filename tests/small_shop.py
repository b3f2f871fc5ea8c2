"""The small shop of the end-to-end tests: numbered customers with visits, views and purchases."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import duckdb
import numpy as np

CUSTOMERS: Final = 1200
"""They are called "1" to "1200"."""
DAYS: Final = 200
START_S: Final = 1_700_006_400  # 2023-11-15 00:00 UTC

CONFIG: Final = '''
[source]
paths = { data = "." }
events = """
SELECT customer_id, to_timestamp(ts) AS event_time, event_type, amount, event_id FROM '${data}/events.parquet'"""

[churn]
event = "purchase"
horizon_days = 28
active_days = 60

[propensity]
event = "purchase"
horizon_days = 7

[evaluation]
step_days = 7
warm_up_days = 50
bootstrap = 100
folds = 2
selection_rows = 1000

[economics]
event = "purchase"
field = "amount"
horizon_days = 28
margin = 0.25

[economics.churn]
contact_cost = 0.1
offer_cost = 3.0
success_rate = 0.2
redemption_rate = 0.1
budget_share = 0.1

[economics.propensity]
contact_cost = 0.05
offer_cost = 1.0
success_rate = 0.1
redemption_rate = 0.05
budget_share = 0.2

[[feature]]
name = "purchase_latest"
event = "purchase"
aggregate = "latest"

[[feature]]
name = "purchase_earliest"
event = "purchase"
aggregate = "earliest"

[[feature]]
name = "purchase_count_28d"
event = "purchase"
aggregate = "count"
half_life_days = 28

[[feature]]
name = "purchase_amount_14d"
event = "purchase"
aggregate = "sum"
field = "amount"
half_life_days = 14

[[feature]]
name = "purchase_amount_56d"
event = "purchase"
aggregate = "sum"
field = "amount"
half_life_days = 56

[[feature]]
name = "visit_count_7d"
event = "visit"
aggregate = "count"
half_life_days = 7

[[feature]]
name = "visit_count_28d"
event = "visit"
aggregate = "count"
half_life_days = 28

[[overdue]]
name = "overdue"
latest = "purchase_latest"
rate = "visit_count_28d"
'''


def write_small_shop(folder: Path) -> Path:
    """Write the shop's events and config.

    Customers visit at different rates until they leave; some visits end in a purchase, and some purchases follow a
    view. Everyone has bought at least once.

    Args:
        folder: Where the files are written; it is made if it is missing.

    Returns:
        The path of the config.
    """
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(1)
    rate, stays = random.gamma(1.5, 1 / 12, CUSTOMERS), np.minimum(random.exponential(600, CUSTOMERS), DAYS)
    stays[899] = DAYS  # customer "900", of whom many tests ask, is still there
    number = 1 + random.poisson(rate * stays)
    customer = np.repeat(np.arange(1, CUSTOMERS + 1), number)
    day = random.random(len(customer)) * np.repeat(stays, number)
    first = np.r_[0, np.cumsum(number)[:-1]]
    buys = random.random(len(customer)) < 0.6
    buys[first] = True
    views = random.random(len(customer)) < 0.2
    amount = random.lognormal(np.repeat(random.normal(4.6, 0.6, CUSTOMERS), number), 0.5).round(2)
    moment = np.round(START_S + day * 86_400, 3)
    visits = {"customer": customer, "moment": moment, "amount": amount, "buys": buys, "views": views}
    with duckdb.connect() as connection:
        connection.register("visits", visits)
        connection.execute(
            f"""COPY (
            SELECT customer::VARCHAR AS customer_id, moment AS ts, 'visit' AS event_type, NULL AS amount,
                'visit:' || row_number() OVER () AS event_id FROM visits
            UNION ALL
            SELECT customer::VARCHAR, moment + 60, 'purchase', amount, 'purchase:' || row_number() OVER () FROM visits
            WHERE buys
            UNION ALL
            SELECT customer::VARCHAR, moment + 30, 'view', NULL, 'view:' || row_number() OVER () FROM visits WHERE views
            UNION ALL -- the data cover all of the days
            SELECT '1', moment, 'visit', NULL, 'visit:' || moment
            FROM (VALUES ({START_S}), ({START_S + DAYS * 86_400})) AS ends(moment)
            ORDER BY ts, customer_id, event_type) TO '{folder}/events.parquet' (FORMAT parquet)"""
        )
    config = folder / "shop.toml"
    config.write_text(CONFIG)
    return config
