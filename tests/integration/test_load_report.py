"""The report of a load test in a real browser: phone, desk, dark and paper."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tidemark.load.outcomes import NO_ANSWER, NO_CONNECTION, OK, Outcome
from tidemark.load.plan import Plan, Target
from tidemark.load.rate_search import SearchResult
from tidemark.load.reporting import report
from tidemark.load.reporting.terminal import verdict
from tidemark.load.results import Result, Tally
from tidemark.load.sending.sender import Records

PHONE, DESK = 360, 1200
LOOKS = {
    "phone": {"width": PHONE, "scheme": "light"},
    "desk": {"width": DESK, "scheme": "light"},
    "dark": {"width": DESK, "scheme": "dark"},
}
PLAN = Plan(Target("scores.example", 50051, "192.0.2.7", remote=True), rate=400, duration_s=90, p99_ms=5, find=True)
OUTCOMES = [OK, Outcome("RESOURCE_EXHAUSTED", "A_REASON_WITH_A_RATHER_LONG_NAME"), NO_ANSWER, NO_CONNECTION]


def step(rate: float) -> Result:
    """A step that gets slower and refuses more as the rate goes up."""
    rng, calls = np.random.default_rng(1), int(rate * PLAN.duration_s / 20)
    kinds = rng.choice(4, calls, p=[0.97 - rate / 40_000, rate / 40_000, 0.02, 0.01])
    latency = rng.gamma(2, rate / 1e6, calls) + 0.0005
    rows = np.column_stack([rng.uniform(0, PLAN.duration_s, calls), latency, rng.exponential(1e-4, calls), kinds])
    tally = Tally(PLAN, rate)
    tally.add(Records(rows.tobytes(), OUTCOMES, last=(0, 4.0)))
    return replace(tally.result(PLAN.duration_s), models={"20261122T100536-b11830bc": calls})


@pytest.fixture(scope="module")
def seen(node_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a browser makes of the report of a search."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        pytest.skip("the browser is built for Linux on x86_64")
    folder = tmp_path_factory.mktemp("load")
    results, result = [step(rate) for rate in (400, 800, 1600, 3200)], SearchResult(800.0, 1600.0, 4)
    whole = report.Report(
        PLAN, "2,469 ids", datetime.now(UTC), results, result, verdict(PLAN, results, result), results[1]
    )
    page, unpacked = folder / "load.html", folder / "browser"
    report.write(page, report.as_html(whole))
    unpacked.mkdir()
    plan = {"url": page.as_uri(), "folder": str(unpacked), "looks": LOOKS}
    command = ["node", str(node_folder / "report.mjs")]
    ended = subprocess.run(command, input=json.dumps(plan), capture_output=True, text=True, timeout=600, check=False)
    shutil.rmtree(unpacked)
    assert (ended.returncode, ended.stderr) == (0, "")
    found_there: dict[str, Any] = json.loads(ended.stdout)
    return found_there | {"url": page.as_uri()}


def test_a_browser_has_nothing_to_complain_of_and_nothing_to_ask_for(seen: dict[str, Any]) -> None:
    assert seen["console"] == []
    assert set(seen["requests"]) == {seen["url"]}
    assert seen["pages"] <= 4


@pytest.mark.parametrize("look", LOOKS)
def test_the_page_fits_the_screen_and_its_charts_are_large_enough(seen: dict[str, Any], look: str) -> None:
    result = seen["looks"][look]
    assert result["across"] == LOOKS[look]["width"]
    assert result["beyond"] == []
    charts = {plot["label"]: plot for plot in result["plots"] if plot["label"]}
    assert [label.partition(":")[0] for label in charts] == [
        "Steps of the search",
        "Latency by percentile",
        "Latency over time",
        "Rates over time",
    ]
    assert min(chart["width"] for chart in charts.values()) > 280
    for word in result["texts"]:
        chart = charts[word["plot"]]
        assert min(word["width"], word["height"]) > 4, word
        assert word["x"] >= chart["x"] - 1, word
        assert word["x"] + word["width"] <= chart["x"] + chart["width"] + 1, word
        assert word["y"] + word["height"] <= chart["y"] + chart["height"] + 1, word


def test_it_says_first_what_came_of_it_and_follows_the_scheme(seen: dict[str, Any]) -> None:
    (headline,) = seen["looks"]["phone"]["headlines"]
    assert "calls/s hold a p99 of 5 ms" in headline
    assert seen["looks"]["desk"]["background"] != seen["looks"]["dark"]["background"]
    assert seen["looks"]["desk"]["line"] != seen["looks"]["dark"]["line"]
