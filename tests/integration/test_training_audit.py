"""``python -m training audit``: findings as a table and as JSON, and exit codes that a pipeline can stop on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import write_shop
from training.__main__ import cli
from training.evidence import Finding

if TYPE_CHECKING:
    from tests.conftest import Call, Run, Shop

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def messages(call: Call, config: Path, folder: Path) -> str:
    """What the audit of a config without anything fatal found, not broken into the lines of a table."""
    assert call(cli, "audit", config, "--json", folder / "found.json").code == 0
    return "\n".join(finding["message"] for finding in json.loads((folder / "found.json").read_text()))


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return write_shop(tmp_path / "shop")


def test_a_healthy_shop_ends_well_and_its_findings_are_in_the_file(call: Call, shop: Shop, tmp_path: Path) -> None:
    done = call(cli, "audit", shop.config, "--json", tmp_path / "found.json")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[-1] == "0 fatal, 1 warning, 1 note"
    undated, result = [Finding.model_validate(row) for row in json.loads((tmp_path / "found.json").read_text())]
    assert (undated.severity, undated.check) == ("warning", "attributes without times")
    assert (result.severity, result.where) == ("note", "attributes.income")
    assert result.share == pytest.approx(1 / 7, abs=0.01)


def test_a_fatal_finding_ends_with_exit_code_1_and_shows_place_problem_and_fix(
    call: Call, shop: Shop, tmp_path: Path
) -> None:
    config = shop.edited(('[propensity]\nevent = "purchase"', '[propensity]\nevent = "order"'))
    done = call(cli, "audit", config, "--json", tmp_path / "found.json")
    assert (done.code, done.err) == (1, "")
    assert done.out.splitlines()[-1].startswith("1 fatal, ")
    for reported in ("fatal", "propensity.event", "the source has no events of type 'order'", "name one that it has:"):
        assert reported in done.out
    assert json.loads((tmp_path / "found.json").read_text())[0]["severity"] == "fatal"


def test_problems_in_a_shops_data_are_found(call: Call, shop: Shop, tmp_path: Path) -> None:
    shop.change_events("FROM old UNION ALL FROM old UNION ALL SELECT * REPLACE ('c9999' AS customer_id) FROM old")
    reported = messages(call, shop.config, tmp_path)
    assert "repeat another one in every column" in reported
    assert "one customer has 33.3% of all events" in reported
    assert "c9999" not in (tmp_path / "found.json").read_text()


def test_a_source_that_cannot_be_read_is_bad_input(call: Call, shop: Shop, tmp_path: Path) -> None:
    config = shop.edited(("/events.parquet", "/orders.parquet"))
    done = call(cli, "audit", config, "--json", tmp_path / "found.json")
    assert done.is_bad_input
    assert "source.events: IO Error" in done.err
    assert not (tmp_path / "found.json").exists()
    assert call(cli, "audit", "nowhere").is_bad_input
    done = call(cli, "audit", shop.config, "--json", tmp_path / "no" / "found.json")
    assert done.is_bad_input
    assert "found.json cannot be written: No such file or directory" in done.err


def test_as_a_separate_process_it_prints_wide_tables_into_pipes(run_module: Run, shop: Shop) -> None:
    config = shop.edited(("step_days = 14", "step_days = 60"))
    done = run_module("training", "audit", config)
    assert (done.code, done.err) == (1, "")
    assert "the source's 365 days give" in done.out


def test_the_built_in_sample_has_no_finding_but_christmas(call: Call) -> None:
    done = call(cli, "audit", "complete_journey")
    assert done.code == 0
    assert "2017-12-25 to 2017-12-25" in done.out
    assert done.out.splitlines()[-1] == "0 fatal, 0 warnings, 1 note"


@pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not there")
def test_known_problems_of_public_data_are_found(call: Call, tmp_path: Path) -> None:
    config = tmp_path / "cdnow.toml"
    assert call(cli, "init", "--events", DATA / "cdnow" / "CDNOW_master.txt", "--output", config).code == 0
    reported = messages(call, config, tmp_path)
    assert "51% of the customers with a 'purchase' have only one" in reported
    assert "dates without a time of day" in reported
    config = tmp_path / "retailrocket.toml"
    assert call(cli, "init", "--events", DATA / "retailrocket" / "events.csv", "--output", config).code == 0
    assert "one customer has 5.1% of all events, 111 times the average" in messages(call, config, tmp_path)
