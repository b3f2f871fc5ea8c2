"""The built-in sample of real purchases: the figures that issue 2 asks for, and its states in Redis."""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from feature_store.__main__ import cli
from feature_store.bundles import bundle
from feature_store.bundles.bundle import OFFERS, OUTPUTS, Manifest
from feature_store.bundles.onnx_session import beyond_tolerance, load_graph

if TYPE_CHECKING:
    from tests.conftest import Call


@pytest.fixture(scope="module")
def manifest(sample_registry: Path) -> Manifest:
    return bundle.read(sample_registry).manifest


def days(texts: list[str]) -> list[datetime]:
    return [datetime.fromisoformat(text) for text in texts]


def test_churn_and_propensity_reach_the_documented_quality(manifest: Manifest) -> None:
    assert manifest.metrics["churn_auc"] >= 0.85
    assert manifest.metrics["propensity_auc"] >= 0.807


def test_recency_alone_is_as_good_as_was_measured_before(manifest: Manifest) -> None:
    # Another figure here would mean other labels or other cut-offs, with which the goals mean nothing.
    assert manifest.metrics["churn"]["recency_alone"]["auc"] == pytest.approx(0.744, abs=0.005)
    assert manifest.metrics["propensity"]["recency_alone"]["auc"] == pytest.approx(0.706, abs=0.015)


@pytest.mark.parametrize("offer", OFFERS)
def test_the_models_beat_recency_in_every_way(manifest: Manifest, offer: str) -> None:
    result, baseline = manifest.metrics[offer], manifest.metrics[offer]["recency_alone"]
    assert result["auc"] > baseline["auc"]
    assert result["average_precision"] > baseline["average_precision"]
    assert result["brier"] < baseline["brier"]
    assert result["log_loss"] < baseline["log_loss"]


def test_the_whole_year_was_read(manifest: Manifest) -> None:
    assert manifest.config == "complete_journey"
    assert manifest.source["customers"] == 2469
    assert manifest.source["start"].startswith("2017-01-01")
    assert manifest.source["end"].startswith("2018-01-01") or manifest.source["end"].startswith("2017-12-31")
    assert manifest.source["left_out"] == {}


def test_the_test_is_three_cut_offs_fourteen_days_apart_one_horizon_before_the_end(manifest: Manifest) -> None:
    test, end = days(manifest.cutoffs["test"]), days([manifest.source["end"]])[0]
    assert [b - a for a, b in pairwise(test)] == [timedelta(days=14)] * 2
    assert end - test[-1] == timedelta(days=28)
    trained = days([*manifest.cutoffs["fit"], *manifest.cutoffs["gap"], *manifest.cutoffs["calibration"]])
    assert len(trained) + len(test) >= 12
    assert max(trained) + timedelta(days=28) <= test[0]


def test_the_graph_agreed_with_scikit_learn_on_every_test_row(manifest: Manifest) -> None:
    parity = manifest.metrics["parity"]
    assert set(parity) == {*OUTPUTS, "segment", "rfm"}
    assert beyond_tolerance(parity) is None
    assert manifest.metrics["rows"]["test"] > 6000


@pytest.mark.parametrize(("offer", "budget"), [("churn", 0.10), ("propensity", 0.20)])
def test_alerts_meet_the_budget_and_pay_better_than_one_threshold_for_all(
    manifest: Manifest, offer: str, budget: float
) -> None:
    result = manifest.metrics[offer]
    assert result["alert_share_newest_block"] == pytest.approx(budget, abs=0.01)
    assert result["policy"]["profit_dynamic_threshold"] > result["policy"]["profit_single_threshold"]


def test_the_bundle_opens(sample_registry: Path) -> None:
    load_graph(bundle.read(sample_registry))


def test_every_household_in_redis_follows_from_its_purchases(
    call: Call, sample_registry: Path, clean_redis: str
) -> None:
    options = ("complete_journey", "--registry", sample_registry, "--redis", clean_redis)
    loaded = call(cli, "load", *options, "--shift-to-now")
    assert (loaded.code, loaded.err) == (0, "")
    assert "loaded 2,469 customers" in loaded.out
    verified = call(cli, "verify", *options)
    assert verified.code == 0
    assert "compared            2,469 of 2,469 customers" in verified.out
    assert "online equals offline" in verified.out
