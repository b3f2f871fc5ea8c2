"""A public randomised e-mail campaign, for who has it beside the checkout: known effects must come out."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import duckdb
import numpy as np
import numpy.typing as npt
import pytest

from feature_store.state.layout import Floats
from training.evaluation.off_policy import check_chance, experiment
from training.evaluation.uplift import ABOVE_COST, EVERYBODY, NOBODY, evaluate_treatment
from training.evidence import Value

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "hillstrom" / "hillstrom.csv"

pytestmark = pytest.mark.skipif(not DATA.is_file(), reason=f"{DATA} is not there")

MENS, WOMENS = "Mens E-Mail", "Womens E-Mail"
VISIT_COST = 0.05


@cache
def campaign(email: str) -> tuple[Floats, npt.NDArray[np.bool_], Floats, npt.NDArray[np.uint64]]:
    """Features, who got the e-mail rather than none, visits and row numbers."""
    rows = duckdb.execute(
        """SELECT recency, ln(1 + history), mens, womens, newbie, zip_code = 'Rural', zip_code = 'Urban',
            channel = 'Web', channel = 'Phone', segment = $email, visit
        FROM read_csv($file) WHERE segment IN ($email, 'No E-Mail')""",
        {"email": email, "file": str(DATA)},
    ).fetchall()
    table = np.array(rows, dtype=np.float64)
    return table[:, :9], table[:, 9] == 1, table[:, 10], np.arange(len(table), dtype=np.uint64)


@cache
def values(email: str) -> dict[tuple[str, str], Value]:
    features, treated, visit, customer = campaign(email)
    result = evaluate_treatment(features, experiment(treated, 0.5, visit, customer, VISIT_COST))
    return {(row.policy, row.estimator): row for row in result}


@pytest.mark.parametrize("estimator", ["IPS", "SNIPS", "DR"])
@pytest.mark.parametrize(("email", "visits"), [pytest.param(MENS, 0.183, marks=pytest.mark.full), (WOMENS, 0.151)])
def test_the_known_shares_of_visitors_come_out(email: str, visits: float, estimator: str) -> None:
    result = values(email)
    assert result[NOBODY, estimator].value == pytest.approx(0.106, abs=0.001)
    assert result[EVERYBODY, estimator].value == pytest.approx(visits - VISIT_COST, abs=0.001)
    effect = result[f"{EVERYBODY} instead of {NOBODY}", estimator]
    assert effect.low < visits - 0.106 - VISIT_COST < effect.high
    assert effect.high - effect.low < 0.015


@pytest.mark.parametrize("email", [pytest.param(MENS, marks=pytest.mark.full), WOMENS])
def test_all_estimators_agree_about_each_policy(email: str) -> None:
    result = values(email)
    for (policy, estimator), row in result.items():
        assert row.low <= row.value <= row.high
        assert row.value == pytest.approx(result[policy, "DR"].value, abs=0.006), (policy, estimator)


def test_uplift_finds_the_customers_whom_the_womens_email_affects() -> None:
    # At 5 % of a visit it does not pay to write to everybody; to those who are moved it does.
    result = values(WOMENS)
    assert result[f"{EVERYBODY} instead of {NOBODY}", "DR"].low < 0
    assert result[f"{ABOVE_COST} instead of {NOBODY}", "DR"].low > 0.005
    assert result[f"{ABOVE_COST} instead of {EVERYBODY}", "DR"].low > 0.01
    assert result["treat 50% by uplift instead of treat 50% by chance", "DR"].low > 0.005
    assert result["treat 50% by uplift instead of treat 50% by response", "DR"].low > 0


def test_a_third_is_not_the_treatment_probability_among_two_of_three_arms() -> None:
    # Each arm got a third, so among those with this e-mail or none it is a half.
    _, treated, visit, customer = campaign(MENS)
    assert check_chance(experiment(treated, 0.5, visit, customer)) is None
    result = check_chance(experiment(treated, 1 / 3, visit, customer))
    assert result is not None
    assert "0.5000 of the rows were treated; by the stated probability it should be 0.3333" in result.message
