"""What training reads of a config: every key is known, and a bad one is named by file, key and mend, in one line."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from feature_store.bundles.bundle import CONFIG_ECONOMICS
from feature_store.config import parse_config
from feature_store.errors import InputError
from training.config import TrainingConfig

CONFIG = """
[source]
events = "SELECT 1"

[churn]
horizon_days = 28
active_days = 60

[propensity]
event = "purchase"
horizon_days = 7

[economics]
margin = 0.25

[economics.churn]
contact_cost = 0.1
offer_cost = 3
success_rate = 0.2
redemption_rate = 0.1
budget_share = 0.1

[economics.propensity]
contact_cost = 0.05
offer_cost = 1
success_rate = 0.1
redemption_rate = 0.05
budget_share = 0.2

[[feature]]
name = "last_purchase"
event = "purchase"
aggregate = "latest"

[[feature]]
name = "visits_7d"
event = "visit"
aggregate = "count"
half_life_days = 7

[[overdue]]
name = "overdue"
latest = "last_purchase"
rate = "visits_7d"
"""


def parse(*edits: tuple[str, str]) -> TrainingConfig:
    text = CONFIG
    for old, new in edits:
        assert old in text
        text = text.replace(old, new, 1)
    return parse_config(TrainingConfig, tomllib.loads(text), Path("shops/corner.toml"))


def test_defaults_are_as_documented() -> None:
    config = parse(("[churn]\nhorizon_days = 28\nactive_days = 60\n\n[propensity]", "[propensity]"))
    assert (config.churn.event, config.churn.horizon_days, config.churn.active_days) == ("purchase", 28, 60)
    assert config.propensity.horizon_days == 7
    assert (config.evaluation.test_cutoffs, config.evaluation.step_days) == (3, 14)
    assert config.evaluation.least_cutoffs == 12


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[propensity]", "[propensty]", "propensty: Extra inputs are not permitted"),
        ("[economics]\nmargin = 0.25", "", "economics.margin: Field required"),
        ("margin = 0.25", "margin = 25", "economics.margin: Input should be less than or equal to 1"),
        ("margin = 0.25", "margin = 0.25\ncurrency = 'EUR'", "economics.currency: Extra inputs are not permitted"),
        (
            "margin = 0.25",
            "margin = 0.25\nthreshold_min = 0",
            "economics.threshold_min: Input should be greater than 0",
        ),
        ("margin = 0.25", "margin = nan", "economics.margin: Input should be"),
        ("contact_cost = 0.1", "", "economics.churn.contact_cost: Field required"),
        ("contact_cost = 0.1", "contact_cost = -1", "economics.churn.contact_cost: Input should be greater than or"),
        ("contact_cost = 0.1", "contact_cost = inf", "economics.churn.contact_cost: Input should be a finite number"),
        ("success_rate = 0.2", "success_rate = 1.2", "economics.churn.success_rate: Input should be less than or"),
        ("budget_share = 0.1", "budget_share = 0", "economics.churn.budget_share: Input should be greater than 0"),
        ("budget_share = 0.1", "budget = 0.1", "economics.churn.budget_share: Field required"),
        ("horizon_days = 28", "horizon_days = 0", "churn.horizon_days: Input should be greater than 0"),
        ("horizon_days = 28", "horizon_days = 'a month'", "churn.horizon_days: Input should be a valid number"),
        ("horizon_days = 28", "horizon_weeks = 4", "churn.horizon_weeks: Extra inputs are not permitted"),
        ("horizon_days = 7", "horizon_days = 29", "propensity.horizon_days must not be longer than churn.horizon_days"),
        ("active_days = 60", "active_days = nan", "churn.active_days: Input should be"),
        ("[churn]", "[evaluation]\ntest_cutoffs = 0\n[churn]", "evaluation.test_cutoffs: Input should be greater than"),
        ("[churn]", "[evaluation]\nstep_days = 1.5e9\n[churn]", "evaluation.step_days: Input should be less than or"),
        ("[churn]", "[evaluation]\nfolds = 1\n[churn]", "evaluation.folds: Input should be greater than or equal to 2"),
        ("[churn]", "[evaluation]\nparts = 5\n[churn]", "evaluation.parts: Extra inputs are not permitted"),
        ("[[overdue]]", "[[ratio]]", "ratio: Extra inputs are not permitted"),
        ('rate = "visits_7d"', "", "overdue.0.rate: Field required"),
        (
            'latest = "last_purchase"',
            'latest = "visits_7d"',
            "overdue 'overdue': 'latest' must name a feature with aggr",
        ),
        (
            'rate = "visits_7d"',
            'rate = "nobody"',
            "overdue 'overdue': 'rate' must name a feature with aggregate 'count'",
        ),
        ('"count"', '"mean"', "feature.1.aggregate: Input should be 'count', 'sum'"),
        ('name = "visits_7d"', 'name = "last_purchase"', "feature 'last_purchase' is defined twice"),
    ],
)
def test_a_bad_config_is_refused_with_file_key_and_fix_in_one_line(old: str, new: str, message: str) -> None:
    with pytest.raises(InputError) as refused:
        parse((old, new))
    assert str(refused.value).startswith(f"corner.toml: {message}")
    assert "\n" not in str(refused.value)


def test_the_graphs_economics_are_the_configs_with_the_prices_found() -> None:
    figures = parse().economics.figures({"churn": 0.5, "propensity": 4.0})
    assert tuple(figures) == CONFIG_ECONOMICS
    assert figures["margin"] == 0.25
    assert figures["churn.offer_cost"] == 3.0
    assert figures["propensity.success_rate"] == 0.1
    assert (figures["churn.budget_price"], figures["propensity.budget_price"]) == (0.5, 4.0)
