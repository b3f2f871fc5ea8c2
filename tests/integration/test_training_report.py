"""The commands ``report`` and ``compare``, and a report in a real browser: phone, desk, dark and paper."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from feature_store.bundles.bundle import OFFERS
from tests.conftest import Call, DrawnReport
from tests.made_evidence import made_bundle, made_evidence, made_rows
from tests.waiting import FIT_S
from training.__main__ import cli
from training.evidence import ROWS_FILE, Evidence
from training.report.words import FIGURES

PHONE, DESK = 360, 1200
LOOKS = {
    "phone": {"width": PHONE, "scheme": "light"},
    "desk": {"width": DESK, "scheme": "light"},
    "dark": {"width": DESK, "scheme": "dark"},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = {offer: made_rows(offer, customers=200) for offer in OFFERS}
    return made_bundle(tmp_path / "models", rows, made_evidence())


# --- commands -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("without_pictures")
def test_report_is_written_beside_the_model_and_leaves_the_bundle_whole(folder: Path, call: Call) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    done = call(cli, "report", folder)
    assert (done.code, done.out.strip()) == (0, str(folder / "report.html"))
    assert "Churn: will this customer leave?" in (folder / "report.html").read_text()
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "report.html"} == before


@pytest.mark.usefixtures("without_pictures")
def test_report_takes_the_current_version_and_another_place(folder: Path, tmp_path: Path, call: Call) -> None:
    done = call(cli, "report", folder.parent / "current", "--output", tmp_path / "seen.html")
    assert done.code == 0
    assert folder.name in (tmp_path / "seen.html").read_text()
    assert not (folder / "report.html").exists()


@pytest.mark.usefixtures("without_pictures")
def test_report_says_what_is_missing(folder: Path, tmp_path: Path, call: Call) -> None:
    nowhere = call(cli, "report", tmp_path / "nowhere")
    assert nowhere.is_bad_input
    unwritable = call(cli, "report", folder, "--output", tmp_path / "no" / "folder.html")
    assert unwritable.is_bad_input
    assert "No such file or directory" in unwritable.err
    (folder / ROWS_FILE).unlink()
    without = call(cli, "report", folder)
    assert without.is_bad_input
    assert "fit it again" in without.err


def test_compare_prints_a_verdict_and_keeps_the_figures(folder: Path, tmp_path: Path, call: Call) -> None:
    done = call(cli, "compare", folder, folder, "--json", tmp_path / "found.json")
    assert done.code == 0
    assert done.out.splitlines()[-1].startswith("verdict: no difference shown (log loss +0.0000")
    result = json.loads((tmp_path / "found.json").read_text())
    assert (result["a"], result["b"], result["verdict"]) == (folder.name, folder.name, "no difference shown")
    assert list(result["offers"]["churn"]["measures"]) == ["log_loss", "brier", "auc", "profit"]


def test_compare_says_why_bundles_cannot_be_compared(folder: Path, tmp_path: Path, call: Call) -> None:
    snapshot = {offer: made_rows(offer, customers=50, snapshot=True) for offer in OFFERS}
    other = made_bundle(tmp_path / "models", snapshot, Evidence(), version="other")
    done = call(cli, "compare", folder, other)
    assert done.is_bad_input
    assert "B at a snapshot" in done.err


# --- in a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seen(drawn_report: DrawnReport, node_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a browser makes of a report with everything in it."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        pytest.skip("the browser is built for Linux on x86_64")
    unpacked, url = tmp_path_factory.mktemp("browser"), drawn_report.path.as_uri()
    plan = {"url": url, "folder": str(unpacked), "looks": LOOKS}
    command = ["node", str(node_folder / "report.mjs")]
    ended = subprocess.run(command, input=json.dumps(plan), capture_output=True, text=True, timeout=FIT_S, check=False)
    shutil.rmtree(unpacked)
    assert (ended.returncode, ended.stderr) == (0, "")
    result: dict[str, Any] = json.loads(ended.stdout)
    return result | {"url": url, "metrics": drawn_report.manifest.metrics}


def test_a_browser_reports_no_errors_and_requests_no_other_files(seen: dict[str, Any]) -> None:
    assert seen["console"] == []
    assert set(seen["requests"]) == {seen["url"]}


@pytest.mark.parametrize("look", LOOKS)
def test_the_page_fits_the_screen(seen: dict[str, Any], look: str) -> None:
    result, width = seen["looks"][look], LOOKS[look]["width"]
    assert result["across"] == width
    assert result["beyond"] == []
    assert len(result["plots"]) > 30
    for plot in result["plots"]:
        assert plot["width"] > 250, plot["label"]
        assert plot["height"] > 80, plot["label"]


@pytest.mark.parametrize("look", ["phone", "desk"])
def test_words_in_plots_are_large_enough_inside_and_do_not_overlap(seen: dict[str, Any], look: str) -> None:
    result = seen["looks"][look]
    plots = {plot["label"]: plot for plot in result["plots"]}
    words: dict[str, list[dict[str, Any]]] = {}
    for word in result["texts"]:
        if word["text"].strip():
            words.setdefault(word["plot"], []).append(word)
    assert set(words) == set(plots)
    for label, inside in words.items():
        plot = plots[label]
        for word in inside:
            assert min(word["width"], word["height"]) > 4, (label, word)  # a browser without fonts draws nothing
            assert max(word["width"], word["height"]) > 10, (label, word)
            assert word["x"] >= plot["x"] - 1, (label, word)
            assert word["x"] + word["width"] <= plot["x"] + plot["width"] + 1, (label, word)
        crowded = [(a["text"], b["text"]) for a, b in combinations(inside, 2) if _overlap(a, b)]
        assert crowded == [], label


def _overlap(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Boxes of words share more than the blank around letters."""
    across = min(a["x"] + a["width"], b["x"] + b["width"]) - max(a["x"], b["x"])
    down = min(a["y"] + a["height"], b["y"] + b["height"]) - max(a["y"], b["y"])
    return bool(across > 1.5 and down > 0.4 * min(a["height"], b["height"]))


def test_headlines_come_first_and_say_what_the_manifest_says(seen: dict[str, Any]) -> None:
    result = seen["looks"]["phone"]
    assert result["headings"][:3] == [
        "How good is this model?",
        "Churn: will this customer leave?",
        "Propensity: will this customer buy?",
    ]
    assert result["headings"][-2:] == ["Model card", "Notes of the fit"]
    for offer, headline in zip(OFFERS, result["headlines"], strict=True):
        for name, label in FIGURES.items():
            assert f"{label}\n{seen['metrics'][offer][name]:.4f}" in headline


def test_the_dark_page_has_plots_in_other_colours(seen: dict[str, Any]) -> None:
    light, dark = seen["looks"]["desk"], seen["looks"]["dark"]
    assert (light["background"], light["line"]) == ("rgb(255, 255, 255)", "rgb(0, 114, 178)")
    assert (dark["background"], dark["line"]) == ("rgb(20, 23, 27)", "rgb(86, 180, 233)")


def test_on_paper_it_has_pages(seen: dict[str, Any]) -> None:
    assert 5 < seen["pages"] < 30
