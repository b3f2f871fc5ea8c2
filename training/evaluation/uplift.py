"""Whom an offer moves: uplift learnt from randomised data, and the value of acting on it.

    rows ─► folds of customers ─► for each fold, from the others: outcome models, pseudo-outcomes, uplift model
                                     └─► its own rows: predictions, uplift ─► policies ─► IPS, SNIPS, DR

The uplift model is a DR-learner (Kennedy, 2023): with the known chance of treatment each row gets a pseudo-outcome
whose mean is the effect whatever the outcome models say, and a model of that is the uplift. It is the mean of a ridge
and small boosted trees: the one holds up where effects are faint, the other where they depend on two things at once.
No row is scored or judged by a model that has seen its customer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import HistGradientBoostingRegressor, VotingRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from feature_store.state.layout import Floats
from training.evaluation.off_policy import Experiment, experiment, influences, policy_values
from training.evidence import Value

SHARES: Final = (0.1, 0.2, 0.3, 0.5)
FOLDS: Final = 5
PENALTIES: Final = np.logspace(-1, 5, 13)

NOBODY: Final = "treat nobody"
EVERYBODY: Final = "treat everybody"
ABOVE_COST: Final = "treat where uplift exceeds the cost"


def evaluate_treatment(
    features: Floats,
    treated: npt.ArrayLike,
    chance: npt.ArrayLike,
    outcome: npt.ArrayLike,
    customer: npt.NDArray[np.uint64],
    *,
    cost: npt.ArrayLike = 0.0,
    response: Floats | None = None,
    budget_share: float = 0.1,
    shares: Sequence[float] = SHARES,
    folds: int = FOLDS,
    seed: int = 0,
) -> list[Value]:
    """Value per customer, in the outcome's unit and after costs, of policies and of the differences that matter.

    features: ``[n, k]``, NaN where unknown; response: how likely or valuable a customer is without regard to the
    treatment (probability times value), by default the predicted outcome of the treated. InputError where the columns
    are no randomised trial.
    """
    data = experiment(treated, chance, outcome, customer, cost)
    predicted, uplift, fold = crossfit(features, data, folds, seed)
    ranking = predicted[1] if response is None else response
    choices = policies(data, uplift, ranking, fold, budget_share=budget_share, shares=sorted({*shares, budget_share}))
    found = {policy: influences(choice, data, predicted) for policy, choice in choices.items()}
    values = [row for policy, each in found.items() for row in policy_values(policy, each, customer)]
    for better, worse in _contests(shares):
        each = {name: found[better][name] - found[worse][name] for name in found[better]}
        values += policy_values(f"{better} instead of {worse}", each, customer)
    return values


def crossfit(
    features: Floats, data: Experiment, folds: int = FOLDS, seed: int = 0
) -> tuple[Floats, Floats, npt.NDArray[np.int64]]:
    """Predicted outcomes untreated and treated ``[2, n]``, uplift ``[n]`` before costs, and the fold of each row."""
    fold = _folds(data.customer, folds, seed)
    predicted, uplift = np.zeros((2, len(data))), np.zeros(len(data))
    with threadpool_limits(1):  # models this small lose more by waiting for threads than these bring
        for number in range(folds):
            inside = fold == number
            predicted[:, inside] = _outcomes(features, data, ~inside, inside)
            uplift[inside] = _uplift(features, data, ~inside, seed).predict(features[inside])
    return predicted, uplift, fold


def policies(
    data: Experiment,
    uplift: Floats,
    response: Floats,
    fold: npt.NDArray[np.int64],
    *,
    budget_share: float,
    shares: Sequence[float],
) -> dict[str, Floats]:
    """Whom each policy treats: 0 or 1 for each row, or the chance of it."""
    pays = uplift > data.cost
    net = uplift - data.cost
    chosen: dict[str, Floats] = {
        NOBODY: np.zeros(len(data)),
        EVERYBODY: np.ones(len(data)),
        ABOVE_COST: pays.astype(np.float64),
        f"{ABOVE_COST}, at most {budget_share:.0%}": pays * _top(net, fold, budget_share),
    }
    for share in shares:
        chosen[_top_name(share, "uplift")] = _top(net, fold, share)
        chosen[_top_name(share, "response")] = _top(response, fold, share)
        chosen[_top_name(share, "chance")] = np.full(len(data), share)
    return chosen


def _contests(shares: Sequence[float]) -> list[tuple[str, str]]:
    """Which policies are set against which."""
    rivals = [(_top_name(share, "uplift"), _top_name(share, by)) for share in shares for by in ("response", "chance")]
    return [(EVERYBODY, NOBODY), (ABOVE_COST, NOBODY), (ABOVE_COST, EVERYBODY), *rivals]


def _top_name(share: float, by: str) -> str:
    return f"treat {share:.0%} by {by}"


def _top(score: Floats, fold: npt.NDArray[np.int64], share: float) -> Floats:
    """1 for the best share of each fold: models of different folds are not quite on one scale."""
    chosen = np.zeros(len(score))
    for number in np.unique(fold):
        rows = np.flatnonzero(fold == number)
        best = np.argsort(-score[rows], kind="stable")[: round(share * len(rows))]
        chosen[rows[best]] = 1.0
    return chosen


def _folds(customer: npt.NDArray[np.uint64], folds: int, seed: int) -> npt.NDArray[np.int64]:
    """A fold for each row, the same one for all rows of a customer."""
    names, rows = np.unique(customer, return_inverse=True)
    return np.asarray(np.random.default_rng(seed).permutation(len(names))[rows] % folds)


def _outcomes(
    features: Floats, data: Experiment, learnt: npt.NDArray[np.bool_], asked: npt.NDArray[np.bool_]
) -> Floats:
    """Outcome untreated and treated ``[2, asked]`` by models of the rows ``learnt``."""
    arms = (learnt & ~data.treated, learnt & data.treated)
    return np.stack([_ridge().fit(features[arm], data.outcome[arm]).predict(features[asked]) for arm in arms])


def _uplift(features: Floats, data: Experiment, learnt: npt.NDArray[np.bool_], seed: int) -> Any:
    """The uplift model of the rows ``learnt``, from pseudo-outcomes by outcome models of the other half of them."""
    half = _folds(data.customer, 2, seed + 1) == 0
    pseudo = np.zeros(len(data))
    for asked in (learnt & half, learnt & ~half):
        untreated, treated = _outcomes(features, data, learnt & ~asked, asked)
        took, chance = data.treated[asked], data.chance[asked]
        residual = data.outcome[asked] - np.where(took, treated, untreated)
        pseudo[asked] = treated - untreated + residual * np.where(took, 1 / chance, -1 / (1 - chance))
    trees = HistGradientBoostingRegressor(
        max_iter=40,
        max_leaf_nodes=6,
        learning_rate=0.05,
        min_samples_leaf=int(np.clip(learnt.sum() // 50, 20, 500)),
        l2_regularization=10.0,
        early_stopping=False,
        random_state=seed,
    )
    both = VotingRegressor([("ridge", _ridge()), ("trees", make_pipeline(_filled(), trees))])
    return both.fit(features[learnt], pseudo[learnt])


def _ridge() -> Any:
    return make_pipeline(_filled(), StandardScaler(), RidgeCV(PENALTIES))


def _filled() -> Any:
    """Means for what is unknown, and a column that says so."""
    return SimpleImputer(keep_empty_features=True, add_indicator=True)
