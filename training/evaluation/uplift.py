"""Uplift modelling: learning the effect of an offer from randomised data, and the value of acting on it.

    rows ─► folds of customers ─► for each fold, from the others: outcome models, pseudo-outcomes, uplift model
                                     └─► its own rows: predictions, uplift ─► policies ─► IPS, SNIPS, DR

The uplift model is a DR-learner (Kennedy, 2023): with the known probability of treatment each row gets a
pseudo-outcome, whose mean is the effect for any outcome model, and the uplift model is fitted on these. It is the mean
of a ridge regression, which is robust if effects are weak, and small boosted trees, which find interactions. No row is
scored or evaluated by a model that has seen its customer.
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

from feature_store.state.layout import Floats
from training.evaluation.off_policy import Experiment, influences, policy_values
from training.evidence import Value

SHARES: Final = (0.1, 0.2, 0.3, 0.5)
FOLDS: Final = 5
PENALTIES: Final = np.logspace(-1, 5, 13)

NOBODY: Final = "treat nobody"
EVERYBODY: Final = "treat everybody"
ABOVE_COST: Final = "treat where uplift exceeds the cost"


def evaluate_treatment(
    features: Floats,
    trial: Experiment,
    *,
    budget_share: float = 0.1,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
) -> list[Value]:
    """Value per customer of treatment policies, and of the differences between them.

    Values are in the unit of the outcome, net of costs.

    Args:
        features: ``[n, k]``, NaN where unknown.
        trial: The randomised offer.
        budget_share: Share of customers that may be treated if the uplift exceeds the cost.
        shares: Shares of customers that are treated by ranking.
        seed: Of folds and models.
    """
    predicted, uplift, fold = crossfit(features, trial, seed=seed)
    choices = treatment_policies(
        trial, uplift, predicted[1], fold, budget_share=budget_share, shares=sorted({*shares, budget_share})
    )
    by_policy = {policy: influences(choice, trial, predicted) for policy, choice in choices.items()}
    values = [row for policy, each in by_policy.items() for row in policy_values(policy, each, trial.customer)]
    for better, worse in _comparisons(shares):
        difference = {name: by_policy[better][name] - by_policy[worse][name] for name in by_policy[better]}
        values += policy_values(f"{better} instead of {worse}", difference, trial.customer)
    return values


def crossfit(
    features: Floats, data: Experiment, folds: int = FOLDS, seed: int = 0
) -> tuple[Floats, Floats, npt.NDArray[np.int64]]:
    """Cross-fit outcome and uplift models (Chernozhukov et al., 2018).

    Returns:
        Predicted outcomes untreated and treated ``[2, n]``, uplift before costs ``[n]``, and the fold of each row.
    """
    fold = _folds(data.customer, folds, seed)
    predicted, uplift = np.zeros((2, len(data))), np.zeros(len(data))
    for number in range(folds):
        inside = fold == number
        predicted[:, inside] = _outcomes(features, data, ~inside, inside)
        uplift[inside] = fit_uplift(features, data, ~inside, seed).predict(features[inside])
    return predicted, uplift, fold


def treatment_policies(
    data: Experiment,
    uplift: Floats,
    response: Floats,
    fold: npt.NDArray[np.int64],
    *,
    budget_share: float,
    shares: Sequence[float],
) -> dict[str, Floats]:
    """Treatments of each policy: 0 or 1 for each row, or the probability of treatment."""
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


def _comparisons(shares: Sequence[float]) -> list[tuple[str, str]]:
    """Pairs of policies to compare."""
    rivals = [(_top_name(share, "uplift"), _top_name(share, by)) for share in shares for by in ("response", "chance")]
    return [(EVERYBODY, NOBODY), (ABOVE_COST, NOBODY), (ABOVE_COST, EVERYBODY), *rivals]


def _top_name(share: float, by: str) -> str:
    return f"treat {share:.0%} by {by}"


def _top(score: Floats, fold: npt.NDArray[np.int64], share: float) -> Floats:
    """1 for the highest share of each fold, because scores by models of different folds are not quite comparable."""
    chosen = np.zeros(len(score))
    for number in np.unique(fold):
        rows = np.flatnonzero(fold == number)
        best = np.argsort(-score[rows], kind="stable")[: round(share * len(rows))]
        chosen[rows[best]] = 1.0
    return chosen


def _folds(customer: npt.NDArray[np.uint64], folds: int, seed: int) -> npt.NDArray[np.int64]:
    """The fold of each row, the same for all rows of a customer."""
    names, rows = np.unique(customer, return_inverse=True)
    return np.asarray(np.random.default_rng(seed).permutation(len(names))[rows] % folds)


def _outcomes(
    features: Floats, data: Experiment, training: npt.NDArray[np.bool_], predicting: npt.NDArray[np.bool_]
) -> Floats:
    """Outcomes untreated and treated ``[2, predicting]``, by models of the ``training`` rows."""
    arms = (training & ~data.treated, training & data.treated)
    return np.stack([_ridge().fit(features[arm], data.outcome[arm]).predict(features[predicting]) for arm in arms])


def fit_uplift(features: Floats, data: Experiment, training: npt.NDArray[np.bool_], seed: int) -> Any:
    """Fit the uplift model, on pseudo-outcomes by outcome models of the other half of the training rows.

    Args:
        features: ``[n, k]``, NaN where unknown.
        data: The randomised offer.
        training: Which rows to learn from ``[n]``.
        seed: Of the halves and of the trees.

    Returns:
        A scikit-learn regressor of the uplift before costs, in the unit of the outcome.
    """
    half = _folds(data.customer, 2, seed + 1) == 0
    pseudo = np.zeros(len(data))
    for part in (training & half, training & ~half):
        untreated, treated = _outcomes(features, data, training & ~part, part)
        is_treated, chance = data.treated[part], data.chance[part]
        residual = data.outcome[part] - np.where(is_treated, treated, untreated)
        pseudo[part] = treated - untreated + residual * np.where(is_treated, 1 / chance, -1 / (1 - chance))
    trees = HistGradientBoostingRegressor(
        max_iter=40,
        max_leaf_nodes=6,
        learning_rate=0.05,
        min_samples_leaf=int(np.clip(training.sum() // 50, 20, 500)),
        l2_regularization=10.0,
        early_stopping=False,
        random_state=seed,
    )
    both = VotingRegressor([("ridge", _ridge()), ("trees", make_pipeline(_filled(), trees))])
    return both.fit(features[training], pseudo[training])


def _ridge() -> Any:
    return make_pipeline(_filled(), StandardScaler(), RidgeCV(PENALTIES))


def _filled() -> Any:
    """Fills unknown values with means, and adds columns that mark them."""
    return SimpleImputer(keep_empty_features=True, add_indicator=True)
