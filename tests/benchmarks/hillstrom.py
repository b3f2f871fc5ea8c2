"""Value of a learned policy on the randomised e-mails of Hillstrom (2008), where the data set is at hand.

Each of 64,000 customers got the men's e-mail, the women's e-mail or none, with probability 1/3. The learned policy
sends the e-mail with the highest uplift in spend, or none, by DR-learners that have not seen the customer. It is
compared with the best constant policy (the same for everybody), in realised spend, by the doubly robust estimator.
E-mails are free.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import duckdb
import numpy as np
import numpy.typing as npt
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from feature_store.state.layout import Floats
from tests.benchmarks.setting import Bench, Measured
from training.evaluation.off_policy import experiment
from training.evaluation.uplift import PENALTIES, fit_uplift
from training.statistics import clustered_standard_error

DATA: Final = Path(__file__).resolve().parents[3] / "shared" / "data" / "hillstrom" / "hillstrom.csv"
ARMS: Final = ("No E-Mail", "Mens E-Mail", "Womens E-Mail")
CHANCE: Final = 1 / len(ARMS)
FOLDS: Final = 5
SEEDS: Final = 5
Z_95: Final = 1.959964

Arms = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Comparison:
    """The learned policy against the best constant one.

    Attributes:
        lead: Difference in spend per customer.
        low: Lower end of its 95 % interval.
        high: Upper end.
        constant: The arm of the best constant policy.
        sent: Share of customers to whom the learned policy sends each arm.
    """

    lead: float
    low: float
    high: float
    constant: str
    sent: dict[str, float]


def hillstrom_policy(_bench: Bench) -> dict[str, Measured]:
    """Spend per customer of the learned policy minus that of the best constant policy."""
    if not DATA.is_file():
        return {}
    features, arm, spend = campaign()
    with threadpool_limits(1):
        results = sorted((compare(features, arm, spend, seed) for seed in range(SEEDS)), key=lambda result: result.lead)
    middle = results[SEEDS // 2]
    sent = ", ".join(f"{name} {share:.0%}" for name, share in middle.sent.items())
    note = (
        f"spend per customer, 95 % {middle.low:+.3f} to {middle.high:+.3f}; the median of {SEEDS} divisions, "
        f"{results[0].lead:+.3f} to {results[-1].lead:+.3f}; best constant: {middle.constant}; learned: {sent}"
    )
    return {"hillstrom_policy": (middle.lead, note)}


def campaign() -> tuple[Floats, Arms, Floats]:
    """Features ``[n, k]``, the number of the arm and the spend of each customer ``[n]``."""
    rows = duckdb.execute(
        """SELECT recency, ln(1 + history), mens, womens, newbie, zip_code = 'Rural', zip_code = 'Urban',
            channel = 'Web', channel = 'Phone', list_position($arms, segment) - 1, spend FROM read_csv($file)""",
        {"arms": list(ARMS), "file": str(DATA)},
    ).fetchall()
    table = np.array(rows, dtype=np.float64)
    return table[:, :9], table[:, 9].astype(np.intp), table[:, 10]


def compare(features: Floats, arm: Arms, spend: Floats, seed: int) -> Comparison:
    """Compare both policies, with one division of the customers into folds."""
    predicted, uplift = crossfit(features, arm, spend, seed)
    n = len(spend)
    learned = np.argmax(uplift, axis=0)
    values = [contributions(np.full(n, constant), arm, spend, predicted) for constant in range(len(ARMS))]
    best = int(np.argmax([value.mean() for value in values]))
    difference = contributions(learned, arm, spend, predicted) - values[best]
    lead, error = float(difference.mean()), Z_95 * clustered_standard_error(difference, np.arange(n))
    sent = {name: float((learned == number).mean()) for number, name in enumerate(ARMS)}
    return Comparison(lead, lead - error, lead + error, ARMS[best], sent)


def contributions(choice: Arms, arm: Arms, spend: Floats, predicted: Floats) -> Floats:
    """Contribution ``[n]`` of each customer to the doubly robust value of a policy (Dudik et al., 2011)."""
    row = np.arange(len(arm))
    residual = np.where(choice == arm, (spend - predicted[arm, row]) / CHANCE, 0.0)
    return np.asarray(predicted[choice, row] + residual)


def crossfit(features: Floats, arm: Arms, spend: Floats, seed: int) -> tuple[Floats, Floats]:
    """Predicted spend and uplift over no e-mail ``[arms, n]``, by models that have not seen the customer."""
    n = len(arm)
    fold = np.random.default_rng(seed).permutation(n) % FOLDS
    predicted, uplift = np.zeros((len(ARMS), n)), np.zeros((len(ARMS), n))
    for block in range(FOLDS):
        inside = fold == block
        for treated in range(1, len(ARMS)):
            rows = np.flatnonzero(~inside & np.isin(arm, (0, treated)))
            trial = experiment(arm[rows] == treated, 0.5, spend[rows], rows.astype(np.uint64))
            model = fit_uplift(features[rows], trial, np.ones(len(rows), dtype=bool), seed)
            uplift[treated, inside] = model.predict(features[inside])
        for number in range(len(ARMS)):
            rows = np.flatnonzero(~inside & (arm == number))
            outcome = make_pipeline(StandardScaler(), RidgeCV(PENALTIES)).fit(features[rows], spend[rows])
            predicted[number, inside] = outcome.predict(features[inside])
    return predicted, uplift
