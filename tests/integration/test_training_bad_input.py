"""Bad input to ``fit`` ends in one line on stderr and exit code 2, and nothing is written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from training.__main__ import cli

if TYPE_CHECKING:
    from tests.conftest import Call, Outcome, Run, Shop, Trained

END = 1_700_006_400 + 365 * 86_400

pytestmark = [
    pytest.mark.filterwarnings("ignore:Field onnx.AttributeProto.ints:DeprecationWarning"),
    pytest.mark.usefixtures("quick_fits"),
]


def fit(call: Call, config: object, registry: Path) -> Outcome:
    """Fit and make sure that, where that fails, nothing is left."""
    done = call(cli, "fit", config, "--registry", registry)
    assert done.code == 0 or not registry.exists()
    return done


def test_a_missing_config_is_refused_and_built_in_ones_are_listed(call: Call, tmp_path: Path) -> None:
    for name in ("nowhere", tmp_path / "nowhere.toml", "../secrets"):
        done = fit(call, name, tmp_path / "registry")
        assert done.is_bad_input
        assert done.err == f"error: config '{name}' is neither a TOML file nor a built-in config (complete_journey)\n"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"[source", "broken.toml: not valid TOML: Expected ']'"),
        (b"a = 1\na = 2", "broken.toml: not valid TOML: Cannot overwrite a value"),
        (b"a = '\xff'", "broken.toml' cannot be read: UnicodeDecodeError"),
        (b"", "broken.toml: source: Field required"),
    ],
)
def test_a_config_that_cannot_be_read_is_refused(call: Call, tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "broken.toml").write_bytes(content)
    done = fit(call, tmp_path / "broken.toml", tmp_path / "registry")
    assert done.is_bad_input
    assert told in done.err


def test_a_folder_is_no_config(call: Call, tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    done = fit(call, tmp_path / "folder.toml", tmp_path / "registry")
    assert done.is_bad_input
    assert "cannot be read: IsADirectoryError" in done.err


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (("[churn]", "[churn]\nhorizon_weeks = 4"), "edited.toml: churn.horizon_weeks: Extra inputs are not permitted"),
        (("[economics]", "[economy]"), "edited.toml: economics.margin: Field required"),
        (("${data}/events", "${date}/events"), "the SQL uses an unknown folder 'date'"),
        (("/events.parquet", "/orders.parquet"), "source.events: IO Error: No files found that match"),
        (("amount, duration_s FROM", "revenue FROM"), "source.events: Binder Error"),
        (
            ("customer_id, income", "customer_id"),
            "feature 'income': source.attributes has no column 'income': select it there",
        ),
        (("step_days = 14", "step_days = 60"), "the source's 365 days give 7 cut-offs, 12 are needed: bring a longer"),
        (
            ('event = "purchase"\nhorizon_days = 28', 'event = "purchse"\nhorizon_days = 28'),
            "churn.event: the source has no events of type 'purchse': name one that it has: view, purchase",
        ),
        (
            ('event = "purchase"\nhorizon_days = 7', 'event = "purchse"\nhorizon_days = 7'),
            "propensity.event: the source has no events of type 'purchse': name one that it has: view, purchase",
        ),
        (
            ('event = "purchase"\nhorizon_days = 7', 'event = "purchase"\nhorizon_days = 0.001'),
            "or change propensity.event, propensity.horizon_days or churn.active_days",
        ),
    ],
    ids=lambda value: value[1].replace("\n", " ") if isinstance(value, tuple) else "",
)
def test_a_source_that_cannot_be_trained_on_is_refused_with_the_fix(
    call: Call, shop: Shop, tmp_path: Path, edit: tuple[str, str], told: str
) -> None:
    done = fit(call, shop.edited(edit), tmp_path / "registry")
    assert done.is_bad_input, done.err
    assert told in done.err


def test_too_short_a_history_is_refused(call: Call, shop: Shop, tmp_path: Path) -> None:
    shop.change_events(f"FROM old WHERE ts > {END - 200 * 86_400}")
    done = fit(call, shop.config, tmp_path / "registry")
    assert done.is_bad_input
    assert "days give 7 cut-offs, 12 are needed: bring a longer history" in done.err


def test_a_calibration_block_of_one_outcome_is_refused(call: Call, shop: Shop, tmp_path: Path) -> None:
    shop.change_events(f"FROM old WHERE event_type = 'view' OR ts < {END - 100 * 86_400}")
    done = fit(call, shop.config, tmp_path / "registry")
    assert done.is_bad_input
    assert "have the rarer outcome; 5 are required: add customers, or change churn.event" in done.err


def test_a_test_block_of_one_outcome_is_refused(call: Call, shop: Shop, tmp_path: Path) -> None:
    shop.change_events(f"FROM old WHERE event_type = 'view' OR ts < {END - 56 * 86_400}")
    assert fit(call, shop.config, tmp_path / "registry").is_bad_input


@pytest.mark.parametrize("amount", ["NULL::DOUBLE", "-amount"])
def test_a_shop_without_any_spend_is_refused_or_served(call: Call, shop: Shop, tmp_path: Path, amount: str) -> None:
    shop.change_events(f"SELECT * REPLACE ({amount} AS amount) FROM old")
    done = fit(call, shop.config, tmp_path / "registry")
    assert done.is_bad_input or done.code == 0


def test_customers_too_few_to_differ_are_refused(call: Call, shop: Shop, tmp_path: Path) -> None:
    shop.change_events("FROM old WHERE customer_id < 'c0008'")
    done = fit(call, shop.config, tmp_path / "registry")
    assert done.is_bad_input
    assert "customers have a 'purchase'; 50 are required and at least 200 recommended: add customers" in done.err


def test_a_handful_of_customers_is_refused_without_a_warning(call: Call, shop: Shop, tmp_path: Path) -> None:
    shop.change_events("FROM old WHERE customer_id < 'c0020'")
    done = fit(call, shop.config, tmp_path / "registry")
    assert done.is_bad_input
    assert "18 customers have a 'purchase'; 50 are required" in done.err


def test_a_registry_that_is_a_file_is_refused_before_any_work(call: Call, toy: Trained, tmp_path: Path) -> None:
    (tmp_path / "registry").write_text("mine")
    done = call(cli, "fit", toy.shop.config, "--registry", tmp_path / "registry")
    assert done.is_bad_input
    assert done.err == f"error: --registry {tmp_path}/registry is a file: give a folder\n"
    assert "reading the source" not in done.out
    assert (tmp_path / "registry").read_text() == "mine"


def test_a_registry_that_cannot_be_written_is_refused(call: Call, toy: Trained, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    done = call(cli, "fit", toy.shop.config, "--registry", tmp_path / "file" / "registry")
    assert done.is_bad_input
    assert "cannot be written: Not a directory" in done.err


def test_missing_arguments_are_named(call: Call) -> None:
    for arguments, reported in ((["fit"], "CONFIG"), (["fit", "complete_journey"], "--registry"), (["fat"], "fat")):
        done = call(cli, *arguments)
        assert done.is_bad_input
        assert reported in done.err


@pytest.mark.full
def test_as_a_separate_process_it_ends_the_same_way(run_module: Run, shop: Shop, tmp_path: Path) -> None:
    config = shop.edited(("step_days = 14", "step_days = 60"))
    done = run_module("training", "fit", config, "--registry", "registry")
    assert done.is_bad_input, done.err
    assert not (tmp_path / "registry").exists()
