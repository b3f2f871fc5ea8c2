"""Cut-offs: the moments at which training and evaluation pretend to be, counted back from the end of the data.

::

    start ── warm-up ──┬── fit ──┬── gap ──┬── calibration ──┬─ one horizon ─┬── test ──┬─ one horizon ─ end

A label looks one horizon ahead. The gap is one horizon long, so that the calibration uses no outcome that the model was
fitted on; afterwards the model is fitted again on everything before the test. No label of the training cut-offs (fit,
gap and calibration) reaches the first test cut-off. Propensity has its own, shorter horizon and therefore later
cut-offs; its training cut-offs are on the same grid, so that the states of customers are shared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from feature_store.errors import InputError
from feature_store.state.layout import DAY_S
from training.config import TrainingConfig

TARGETS: Final = ("churn", "propensity", "stay_spend", "purchase_amount", "spend")
"""What is predicted: the outcome of each offer, the spend of a customer who is won by each, and spend in any case."""

VALUE_TARGETS: Final = {"churn": "stay_spend", "propensity": "purchase_amount"}
"""By offer: the spend that a win brings."""

CvFold = tuple[list[float], list[float]]
"""Cut-offs to fit on, and later ones to validate on."""


@dataclass(frozen=True)
class Cutoffs:
    """Cut-offs by block, unix seconds, ascending; ``horizon_s`` is how far a label looks ahead."""

    horizon_s: float
    fit: list[float]
    gap: list[float]
    calibration: list[float]
    test: list[float]

    @property
    def training(self) -> list[float]:
        """All cut-offs before the test that models may be fitted on."""
        return [*self.fit, *self.gap, *self.calibration]

    def folds(self, max_folds: int) -> list[CvFold]:
        """Cross-validation with an expanding window, purged of one horizon before each validation block.

        The later half of the training cut-offs is divided into validation blocks, the newest last.
        """
        training = self.training
        half = training[len(training) // 2 :]
        size = math.ceil(len(half) / max_folds)
        blocks = [half[max(end - size, 0) : end] for end in range(len(half), 0, -size)][::-1]
        folds = [([t for t in training if t <= block[0] - self.horizon_s], block) for block in blocks]
        return [fold for fold in folds if fold[0]] or [(self.fit, self.calibration)]

    def final(self) -> Cutoffs:
        """The blocks for the model that is served, which may learn from the test cut-offs too."""
        return _blocks([*self.training, *self.test], [], self.horizon_s, len(self.calibration))

    def known_by(self, moment: float) -> Cutoffs:
        """The training cut-offs whose labels are known by a moment, without a test."""
        training = [cutoff for cutoff in self.training if cutoff + self.horizon_s <= moment + 1e-3]
        return _blocks(training, [], self.horizon_s, len(self.calibration))


@dataclass(frozen=True)
class CutoffPlan:
    """The cut-offs of churn, of propensity (with the amount of a purchase), and of spend over the value horizon.

    The horizon of spend may be longer than that of churn. Then its cut-offs, those of its test among them, are earlier:
    only cut-offs are used at which all of the spend is known.
    """

    churn: Cutoffs
    propensity: Cutoffs
    spend: Cutoffs

    def of(self, target: str) -> Cutoffs:
        """The cut-offs of one of TARGETS."""
        if target == "churn":
            return self.churn
        return self.propensity if target in ("propensity", "purchase_amount") else self.spend

    @property
    def every(self) -> list[float]:
        """All cut-offs, each once, ascending."""
        each = (self.churn, self.propensity, self.spend)
        return sorted({cutoff for cutoffs in each for cutoff in [*cutoffs.training, *cutoffs.test]})

    @property
    def newest_known(self) -> float:
        """The newest training cut-off: nothing after it may be used before the test."""
        return self.churn.training[-1]

    def before_tests(self) -> CutoffPlan:
        """The training cut-offs whose labels are known before the earlier test of both offers.

        What is chosen for all targets at once, such as slots, is chosen on these. Each offer has its own test, and a
        label of one offer may lie in the test of the other.
        """
        end = min(self.churn.test[0], self.propensity.test[0])
        return replace(self, **{name: cutoffs.known_by(end) for name, cutoffs in vars(self).items()})

    def described(self) -> dict[str, list[float]]:
        """Blocks by name, for the manifest."""
        names = ("fit", "gap", "calibration", "test")
        churn = {name: getattr(self.churn, name) for name in names}
        propensity = {f"propensity_{name}": getattr(self.propensity, name) for name in names}
        if self.spend == self.churn:
            return churn | propensity
        return churn | propensity | {f"spend_{name}": getattr(self.spend, name) for name in names}


def lay_out(config: TrainingConfig, start: float, end: float) -> CutoffPlan:
    """Place the cut-offs.

    Args:
        config: Horizons and ``[evaluation]``.
        start: Time of the first event, unix seconds.
        end: Time of the last event, unix seconds.

    Raises:
        InputError: If the history is too short.
    """
    plan = config.evaluation
    horizon, anchor = config.churn.horizon_days * DAY_S, _churn_anchor(config, end)
    churn = _lay_out_one(config, start, end, horizon, anchor)
    count = len(churn.training) + len(churn.test)
    if count < plan.least_cutoffs:
        raise InputError(
            f"the source's {(end - start) / DAY_S:.0f} days give {count} cut-offs, {plan.least_cutoffs} are "
            "needed: bring a longer history, or shorten evaluation.step_days, evaluation.warm_up_days or the horizons"
        )
    propensity = _lay_out_one(config, start, end, config.propensity.horizon_days * DAY_S, anchor)
    if not (churn.fit and propensity.fit):
        raise InputError(
            f"evaluation.calibration_cutoffs = {plan.calibration_cutoffs} leaves no cut-off to fit on: make it "
            "smaller, or bring a longer history"
        )
    spend = _lay_out_one(config, start, end, spend_horizon_days(config) * DAY_S, anchor)
    if not spend.fit:
        raise InputError(too_long_value_horizon(config, start, end))
    return CutoffPlan(churn, propensity, spend)


def _churn_anchor(config: TrainingConfig, end: float) -> float:
    """A cut-off of the grid that all training cut-offs stand on: one churn horizon before the first test."""
    horizon = config.churn.horizon_days * DAY_S
    return _tests(config, end, horizon)[0] - horizon


def spend_horizon_days(config: TrainingConfig) -> float:
    """Days after a cut-off until the spend of a customer who stayed is known: the label and all of the spend."""
    return max(config.churn.horizon_days, config.economics.horizon_days)


def max_value_horizon_days(config: TrainingConfig, start: float, end: float) -> int:
    """The longest value horizon, in whole days, that a history allows; 0 if it allows none.

    It must fit three times: the cut-offs to fit on, the calibration, the test and the end of the data are one horizon
    apart from each other.
    """
    anchor = _churn_anchor(config, end)
    longest = int((end - start) / DAY_S // 3)
    return next((d for d in range(longest, 0, -1) if _lay_out_one(config, start, end, d * DAY_S, anchor).fit), 0)


def too_long_value_horizon(config: TrainingConfig, start: float, end: float) -> str:
    """What is wrong with a value horizon that the history does not allow, and how to fix it."""
    return (
        f"economics.horizon_days = {config.economics.horizon_days:g} leaves no cut-off to learn spend from: the "
        f"source's {(end - start) / DAY_S:.0f} days allow at most {max_value_horizon_days(config, start, end)}; "
        "shorten it, or bring a longer history"
    )


def _tests(config: TrainingConfig, end: float, horizon: float) -> list[float]:
    steps = range(config.evaluation.test_cutoffs - 1, -1, -1)
    return [end - horizon - i * config.evaluation.test_step_days * DAY_S for i in steps]


def _lay_out_one(config: TrainingConfig, start: float, end: float, horizon: float, anchor: float) -> Cutoffs:
    """Training cut-offs on the grid through ``anchor``, as late as the test allows."""
    plan = config.evaluation
    test, step = _tests(config, end, horizon), plan.step_days * DAY_S
    newest = anchor + (test[0] - horizon - anchor + 1e-3) // step * step
    first = start + plan.warm_up_days * DAY_S
    max_training = max(plan.most_cutoffs - len(test), 0)
    training = [newest - i * step for i in range(min(max(int((newest - first + 1e-3) // step) + 1, 0), max_training))][
        ::-1
    ]
    return _blocks(training, test, horizon, plan.calibration_cutoffs)


def _blocks(training: Sequence[float], test: list[float], horizon: float, calibrating: int) -> Cutoffs:
    calibration = list(training[-calibrating:])
    fit = [cutoff for cutoff in training if calibration and cutoff <= calibration[0] - horizon + 1e-3]
    return Cutoffs(horizon, fit, list(training[len(fit) : -calibrating]), calibration, test)
