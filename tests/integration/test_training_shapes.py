"""Every shape of table that a shop may have, from config to served scores; the configs are the guides' own."""

from __future__ import annotations

import csv
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest

from feature_store.__main__ import cli as feature_store_cli
from feature_store.bundles.bundle import OUTPUTS
from feature_store.online.state_writer import StateWriter
from service.scoring.model import Model
from training.__main__ import cli
from training.evidence import read_evidence

if TYPE_CHECKING:
    from tests.conftest import Call

Names = npt.NDArray[np.str_]
Floats = npt.NDArray[np.float64]

pytestmark = [
    pytest.mark.filterwarnings("ignore:Field onnx.AttributeProto.ints:DeprecationWarning"),
    pytest.mark.usefixtures("without_pictures", "few_trees"),
]

ECONOMICS = """
[economics]
margin = 0.25
churn = { contact_cost = 0.1, offer_cost = 2, success_rate = 0.2, redemption_rate = 0.1, budget_share = 0.1 }
propensity = { contact_cost = 0.05, offer_cost = 1, success_rate = 0.1, redemption_rate = 0.05, budget_share = 0.2 }
"""

EVENTS = (
    '''
[source] # an event log: views with a dwell time, carts, and purchases; returns are negative amounts
paths = { data = "." }
events = """
SELECT user_id AS customer_id, happened::TIMESTAMP AS event_time, action AS event_type, amount, seconds AS duration_s,
    product AS item_id
FROM read_csv('${data}/log.csv')"""

[churn]
horizon_days = 28
active_days = 56

[propensity]
horizon_days = 14

[evaluation]
step_days = 10
warm_up_days = 28

[candidates] # counts, sums and times of every type of event; training keeps the fewest that do as well
half_lives_days = [7, 56]

[interests]
view = "view"
purchase = "purchase"
'''
    + ECONOMICS
)

PURCHASES = (
    '''
[source] # orders alone
paths = { data = "." }
events = """
SELECT customer AS customer_id, ordered_at::TIMESTAMP AS event_time, 'purchase' AS event_type, total AS amount
FROM read_csv('${data}/orders.csv')"""

[evaluation]
warm_up_days = 60

[candidates]
half_lives_days = [14, 56]
'''
    + ECONOMICS
)

SNAPSHOT = """
[snapshot] # one row per customer: no cut-offs, so the test customers are drawn at random
paths = { data = "." }
table = "SELECT * FROM read_csv('${data}/crm.csv')"
label = "left"
value = "yearly_spend"       # what a customer will spend; or economics.value for all
contact_cost = "call_cost"   # each customer's own; where it is missing the one below counts
group = "household"          # rows that must not be split
leave_out = ["reason"]       # written after the label

[economics]
margin = 0.25

[economics.churn]
contact_cost = 0.5
offer_cost = 5
success_rate = 0.3
redemption_rate = 0.1
budget_share = 0.2
"""

TREATMENT = """
[snapshot] # a campaign whose letters were sent at random
paths = { data = "." }
table = "SELECT * FROM read_csv('${data}/campaign.csv')"
label = "bought"
target = "propensity"

[treatment] # the letter's effect is measured instead of assumed
column = "letter"
probability = 0.5
outcome = "bought"
cost = 0.05

[economics]
margin = 0.25
value = 40 # what everybody who buys spends

[economics.propensity]
contact_cost = 0.5
offer_cost = 0
success_rate = 0.3
redemption_rate = 0
budget_share = 0.3
"""

GUIDES = "".join(path.read_text() for path in (Path(__file__).parents[2] / "docs" / "how-to").glob("*.md"))
SMALL = "[evaluation]\nbootstrap = 100\nfolds = 2\nselection_rows = 1000\n"


@dataclass(frozen=True)
class Fitted:
    """What a fit printed, its registry, manifest and evidence."""

    out: str
    registry: Path
    config: Path

    @property
    def manifest(self) -> dict[str, Any]:
        return dict(json.loads((self.registry / "current" / "manifest.json").read_text()))

    @property
    def evidence(self) -> Any:
        return read_evidence((self.registry / "current").resolve())[0]


def fitted(call: Call, folder: Path, config: str) -> Fitted:
    """Fit a config in the folder of its data, with small resamples."""
    small = config.replace("[evaluation]", SMALL) if "[evaluation]" in config else f"{config}\n{SMALL}"
    path = folder / "shop.toml"
    path.write_text(small)
    audit = call(cli, "audit", path)
    assert (audit.code, audit.err) == (0, "")
    done = call(cli, "fit", path, "--registry", folder / "models")
    assert (done.code, done.err) == (0, "")
    assert "nan" not in done.out.lower()
    report = (folder / "models" / "current" / "report.html").read_text()
    assert " nan" not in report.lower()
    return Fitted(done.out, folder / "models", path)


def serve(call: Call, made: Fitted, url: str, names: list[str]) -> dict[str, np.ndarray[Any, Any]]:
    """Load, verify, and score customers from what is stored, all finite: columns by output."""
    options = (made.config, "--registry", made.registry, "--redis", url)
    assert "loaded" in call(feature_store_cli, "load", *options, "--shift-to-now").out
    verified = call(feature_store_cli, "verify", *options)
    assert "online equals offline" in verified.out, verified.err
    model = Model.current(made.registry)
    with StateWriter(url, model.layout) as redis:
        states = model.layout.unpack(redis.read(names))
    assert states.found.all()
    result = model.run(states, time.time(), np.tile(model.economics, (len(names), 1)))
    assert np.isfinite(result).all()
    return dict(zip(OUTPUTS, result.T, strict=False))


def write_table(path: Path, columns: dict[str, np.ndarray[Any, Any]]) -> None:
    """Columns as CSV; what is not a number, or no text, is left empty."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(columns)
        for row in zip(*(column.tolist() for column in columns.values()), strict=True):
            rows.writerow("" if value != value else value for value in row)  # noqa: PLR0124 - only NaN is not itself


def visits(seed: int, customers: int, days: int, per_day: float) -> tuple[Names, Floats]:
    """Who comes on which day, at rates of their own until they leave."""
    random = np.random.default_rng(seed)
    rate, stays = random.gamma(1.5, per_day / 1.5, customers), random.exponential(days * 0.7, customers)
    born = random.uniform(0, days * 0.5, customers)
    span = np.minimum(born + stays, days) - born
    number = random.poisson(rate * span)
    day = np.repeat(born, number) + random.random(number.sum()) * np.repeat(span, number)
    return np.repeat([f"c{i:04}" for i in range(customers)], number), day


def moments(day: Floats) -> Names:
    """Days since the beginning of 2024 as times."""
    return np.datetime_as_string(np.datetime64("2024-01-01", "s") + (day * 86_400).astype("timedelta64[s]"))


def write_orders(path: Path, *, customers: int, days: int, per_day: float) -> Names:
    """Orders; who made them."""
    customer, day = visits(1, customers, days, per_day)
    total = np.random.default_rng(2).lognormal(3, 0.6, len(day)).round(2)
    write_table(path, {"customer": customer, "ordered_at": moments(day), "total": total})
    return np.unique(customer)


def write_log(path: Path) -> tuple[Names, int]:
    """Views, carts, purchases and returns; the customers who are named, and the number of events without one."""
    random = np.random.default_rng(3)
    user, day = visits(4, 500, 200, 0.4)
    action = random.choice(["view", "cart", "purchase"], len(day), p=[0.6, 0.15, 0.25])
    amount = np.where(action == "purchase", random.lognormal(3, 0.6, len(day)).round(2), np.nan)
    back = np.flatnonzero((action == "purchase") & (random.random(len(day)) < 0.1))
    every = np.concatenate([np.arange(len(day)), back])
    user = np.where(random.random(len(every)) < 0.03, "", user[every])
    write_table(
        path,
        {
            "user_id": user,
            "happened": moments(np.concatenate([day, np.minimum(day[back] + 3, 200)])),
            "action": action[every],
            "amount": np.concatenate([amount, -amount[back]]),
            "seconds": np.where(action == "view", random.exponential(40, len(day)).round(1), np.nan)[every],
            "product": random.integers(0, 50, len(every)),
        },
    )
    return np.unique(user[user != ""]), int((user == "").sum())


def write_crm(path: Path, *, customers: int = 1200, longer: float = 0.0) -> None:
    """Customers of a CRM; ``longer``: months by which the first one has been there longer."""
    random = np.random.default_rng(6)
    tenure, calls = random.exponential(24, customers), random.poisson(1.2, customers)
    plan = random.choice(["basic", "plus", ""], customers, p=[0.5, 0.4, 0.1])
    risk = -1 - 0.05 * tenure + 0.8 * calls + np.where(plan == "basic", 1, 0)
    left = random.random(customers) < 1 / (1 + np.exp(-risk))
    table = {
        "customer_id": np.array([f"k{i:05}" for i in range(customers)]),
        "household": random.integers(0, customers // 2, customers),
        "tenure": tenure.round(1) + longer * (np.arange(customers) == 0),
        "calls": calls,
        "plan": plan,
        "income": np.where(random.random(customers) < 0.2, np.nan, random.lognormal(10, 0.5, customers).round()),
        "yearly_spend": (random.lognormal(4, 0.5, customers) * (1 + tenure / 40)).round(2),
        "call_cost": np.where(random.random(customers) < 0.1, np.nan, random.choice([0.2, 4.0], customers)),
        "reason": np.where(left, "price", "none"),
        "left": left.astype(int),
    }
    write_table(path, table)


def write_campaign(path: Path, customers: int = 2000) -> None:
    random = np.random.default_rng(7)
    recency, letter = random.uniform(0, 365, customers), random.random(customers) < 0.5
    moved = recency < 120
    chance = 0.1 + 0.15 * (recency < 60) + np.where(letter & moved, 0.3, 0)
    table = {
        "customer_id": np.array([f"m{i:05}" for i in range(customers)]),
        "recency_days": recency.round(),
        "orders": random.poisson(3, customers),
        "region": random.choice(["north", "south"], customers),
        "letter": letter.astype(int),
        "bought": (random.random(customers) < chance).astype(int),
    }
    write_table(path, table)


def write_tags(path: Path, customers: int = 1000) -> None:
    random = np.random.default_rng(8)
    tags = (random.random((customers, 40)) < random.uniform(0.1, 0.5, 40)).astype(int)
    tags[:, 6] = tags[:, 5]
    risk = -0.5 + 1.5 * tags[:, 0] - 1.5 * tags[:, 5]
    table = {"customer_id": np.array([f"t{i:05}" for i in range(customers)])}
    table |= {f"tag_{i}": tags[:, i] for i in range(40)}
    write_table(path, table | {"churn": (random.random(customers) < 1 / (1 + np.exp(-risk))).astype(int)})


@pytest.mark.parametrize("example", [EVENTS, PURCHASES, SNAPSHOT, TREATMENT])
def test_the_examples_are_those_of_the_guides(example: str) -> None:
    assert example.removesuffix(ECONOMICS).strip() in GUIDES


def test_an_event_log_with_views_carts_dwell_returns_and_missing_ids(
    call: Call, tmp_path: Path, clean_redis: str
) -> None:
    customers, missing = write_log(tmp_path / "log.csv")
    made = fitted(call, tmp_path, EVENTS)
    assert f"left out {missing:,} events without a usable customer_id" in made.out
    assert "later than all training" in made.out
    manifest = made.manifest
    assert manifest["metrics"]["churn_auc"] > manifest["metrics"]["churn"]["recency_alone"]["auc"] - 0.02
    assert "purchase_latest" in [feature["name"] for feature in manifest["features"]]
    scores = serve(call, made, clean_redis, customers[:50].tolist())
    assert np.ptp(scores["churn_probability"]) > 0.1


def test_three_months_of_purchases_alone_are_proposed_fitted_and_served(
    call: Call, tmp_path: Path, clean_redis: str
) -> None:
    customers = write_orders(tmp_path / "orders.csv", customers=400, days=91, per_day=0.15)
    proposed = call(cli, "init", "--events", tmp_path / "orders.csv", "--output", tmp_path / "proposed.toml")
    assert proposed.code == 0
    assert "too short" not in proposed.err
    made = fitted(call, tmp_path, (tmp_path / "proposed.toml").read_text())
    assert len(made.manifest["cutoffs"]["test"]) == 3
    serve(call, made, clean_redis, customers[:50].tolist())


def test_a_year_of_purchases_alone(call: Call, tmp_path: Path) -> None:
    write_orders(tmp_path / "orders.csv", customers=400, days=365, per_day=0.08)
    made = fitted(call, tmp_path, PURCHASES)
    # Somebody who has been gone for long is gone: no clever features are needed to tell, and none may do harm.
    assert made.manifest["metrics"]["churn_auc"] > made.manifest["metrics"]["churn"]["recency_alone"]["auc"] - 0.02
    assert {offer.offer for offer in made.evidence.optimism} == {"churn", "propensity"}


def test_a_snapshot_with_categories_gaps_values_own_costs_and_households(
    call: Call, tmp_path: Path, clean_redis: str
) -> None:
    write_crm(tmp_path / "crm.csv")
    made = fitted(call, tmp_path, SNAPSHOT)
    assert "chosen at random, all rows of one household together" in made.out
    assert "cut-off" not in made.out
    assert "recency" not in made.out
    manifest = made.manifest
    kept = {feature["name"] for feature in manifest["features"]}
    assert {"tenure", "calls", "call_cost"} <= kept
    assert kept.isdisjoint({"reason", "left", "household", "yearly_spend"})
    assert 0.7 < manifest["metrics"]["churn_auc"] < 0.95
    assert manifest["own_figures"] == ["churn.contact_cost"]
    scores = serve(call, made, clean_redis, [f"k{i:05}" for i in range(200)])
    assert (scores["propensity_threshold"] == 1).all()  # nothing was learnt about it, so nobody is told to buy
    assert np.ptp(scores["churn_threshold"]) > 0

    write_crm(tmp_path / "crm.csv", longer=1.0)
    options = (made.config, "--registry", made.registry, "--redis", clean_redis)
    assert call(feature_store_cli, "verify", *options).code == 1


def test_a_randomised_campaign_is_valued_by_what_the_letter_changed(call: Call, tmp_path: Path) -> None:
    write_campaign(tmp_path / "campaign.csv")
    made = fitted(call, tmp_path, TREATMENT)
    values = {(row.policy, row.estimator): row for row in made.evidence.treatment}
    effect = values["treat everybody instead of treat nobody", "DR"]
    assert effect.low < 0.3 * 120 / 365 - 0.05 < effect.high
    assert values["treat where uplift exceeds the cost instead of treat nobody", "DR"].low > 0
    assert "letter" not in {feature["name"] for feature in made.manifest["features"]}


def test_redundant_attributes_are_found_in_a_table_of_binary_attributes(call: Call, tmp_path: Path) -> None:
    write_tags(tmp_path / "tags.csv")
    proposed = call(cli, "init", "--snapshot", tmp_path / "tags.csv", "--output", tmp_path / "proposed.toml")
    assert proposed.code == 0
    made = fitted(call, tmp_path, (tmp_path / "proposed.toml").read_text())
    tags = {tag.tag: tag for tag in made.evidence.tags}
    assert len(tags) == 40
    assert "tag_5" in tags["tag_6"].said_by or "tag_6" in tags["tag_5"].said_by
    assert len(made.manifest["features"]) < 20
