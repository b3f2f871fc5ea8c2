"""Two public data sets, for who has them beside the checkout: purchases alone, and views, carts and transactions."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from feature_store.__main__ import cli as feature_store_cli
from feature_store.bundles import bundle
from feature_store.bundles.bundle import OFFERS
from feature_store.bundles.onnx_session import load_graph
from training.__main__ import cli

if TYPE_CHECKING:
    from tests.conftest import Call

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

pytestmark = [
    pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not there"),
    pytest.mark.filterwarnings("ignore:Field onnx.AttributeProto.ints:DeprecationWarning"),
    pytest.mark.usefixtures("without_pictures"),
]

# 18 months of a CD shop: people come back after months, so horizons are twice as long as a grocer's.
CDNOW = r"""
[source]
paths = { data = "DATA/cdnow" }
events = '''
SELECT word[1] AS customer_id, strptime(word[2], '%Y%m%d') AS event_time, 'purchase' AS event_type,
    word[4]::DOUBLE AS amount
FROM (
    SELECT string_split_regex(trim(line), '\s+') AS word
    FROM read_csv('${data}/CDNOW_master.txt', columns = {'line': 'VARCHAR'}, header = false, skip = 1, delim = '|',
        auto_detect = false)
)'''

[churn]
horizon_days = 56
active_days = 112

[propensity]
horizon_days = 28

[evaluation]
step_days = 28
warm_up_days = 84

[economics]
horizon_days = 56
margin = 0.3
churn = { contact_cost = 0.05, offer_cost = 1, success_rate = 0.1, redemption_rate = 0.1, budget_share = 0.1 }
propensity = { contact_cost = 0.05, offer_cost = 1, success_rate = 0.1, redemption_rate = 0.05, budget_share = 0.2 }

[[overdue]]
name = "overdue"
latest = "last_purchase"
rate = "purchase_112d"
"""
# 4.5 months of a web shop: churn is not coming back to look, and an amount is a count of transactions.
RETAILROCKET = """
[source]
paths = { data = "DATA/retailrocket" }
events = '''
SELECT user_id AS customer_id, to_timestamp(ts) AS event_time, behavior AS event_type, item_id,
    CASE behavior WHEN 'transaction' THEN 1 END AS amount
FROM read_csv('${data}/events.csv')'''

[churn]
event = "view"
horizon_days = 7
active_days = 28

[propensity]
event = "transaction"
horizon_days = 7

[evaluation]
step_days = 7
warm_up_days = 14

[economics]
event = "transaction"
horizon_days = 7
margin = 1.0
churn = { contact_cost = 0.001, offer_cost = 0.01, success_rate = 0.1, redemption_rate = 0.1, budget_share = 0.1 }
propensity = { contact_cost = 0.001, offer_cost = 0.01, success_rate = 0.1, redemption_rate = 0.1, budget_share = 0.05 }
"""


def features(*lines: tuple[str, str, int | None]) -> str:
    """Feature lines of (event, aggregate, half-life)."""
    text = ""
    for event, aggregate, days in lines:
        name = {"latest": f"last_{event}", "earliest": f"first_{event}", "sum": f"spend_{days}d"}.get(aggregate)
        text += f'\n[[feature]]\nname = "{name or f"{event}_{days}d"}"\nevent = "{event}"\naggregate = "{aggregate}"\n'
        text += f"half_life_days = {days}\n" if days else ""
        text += 'field = "amount"\n' if aggregate == "sum" else ""
    return text


SHOPS = {
    "cdnow": CDNOW
    + features(
        ("purchase", "latest", None),
        ("purchase", "earliest", None),
        ("purchase", "count", 28),
        ("purchase", "count", 112),
        ("purchase", "sum", 112),
    ),
    "retailrocket": RETAILROCKET
    + features(
        ("view", "latest", None),
        ("view", "earliest", None),
        ("transaction", "latest", None),
        ("view", "count", 2),
        ("view", "count", 14),
        ("addtocart", "count", 7),
        ("transaction", "count", 14),
    ),
}


@pytest.mark.parametrize(
    ("name", "size"),
    [pytest.param("cdnow", (69_659, 23_570), marks=pytest.mark.full), ("retailrocket", (97_381, 2_174))],
)
def test_a_shop_nobody_tuned_for_is_read_whole_and_scored_better_than_by_recency(
    call: Call, tmp_path: Path, clean_redis: str, name: str, size: tuple[int, int]
) -> None:
    config, registry = tmp_path / f"{name}.toml", tmp_path / "registry"
    config.write_text(SHOPS[name].replace("DATA", str(DATA)))
    done = call(cli, "fit", config, "--registry", registry)
    assert (done.code, done.err) == (0, "")
    result = bundle.read(registry)
    load_graph(result)
    manifest = result.manifest
    assert (manifest.source["events"], manifest.source["customers"]) == size
    for offer in OFFERS:
        metrics = manifest.metrics[offer]
        assert metrics["auc"] > metrics["recency_alone"]["auc"] + 0.03
        assert metrics["log_loss"] < metrics["recency_alone"]["log_loss"]
        assert metrics["calibration_error"] < 0.06
        assert metrics["policy"]["profit_dynamic_threshold"] >= metrics["policy"]["profit_single_threshold"]
        # Where fewer pay at all than the budget allows, the share is smaller and the price nothing.
        share, price = metrics["alert_share_newest_block"], manifest.economics[f"{offer}.budget_price"]
        budget = float(re.findall(r"budget_share = ([\d.]+)", SHOPS[name])[OFFERS.index(offer)])
        assert share == pytest.approx(budget, abs=0.01) or (share < budget and price == 0.0)

    options = (config, "--registry", registry, "--redis", clean_redis)
    assert f"loaded {size[1]:,} customers" in call(feature_store_cli, "load", *options).out
    assert "online equals offline" in call(feature_store_cli, "verify", *options).out
