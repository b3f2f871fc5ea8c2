"""Cut-offs: the moments at which training and evaluation pretend to stand, laid out back from the end of the data.

::

    start ── warm-up ──┬── fit ──┬── gap ──┬── calibration ──┬─ one horizon ─┬── test ──┬─ one horizon ─ end

A label looks one horizon ahead. The gap is one horizon long, so that the calibrator sees no outcome its model was
fitted on; after that the model is fitted again on everything before the test. No label of the training cut-offs (fit,
gap and calibration) reaches the first test cut-off. Propensity has a horizon of its own, and with it cut-offs of its
own, later ones; its training cut-offs stand on the same grid, so that a customer's state serves both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from feature_store.errors import InputError
from feature_store.state.layout import DAY_S
from training.config import TrainingConfig

TEST_STEP_DAYS = 14.0
TARGETS: Final = ("churn", "propensity", "spend")
"""What is predicted; the first two are offers."""

Fold = tuple[list[float], list[float]]


@dataclass(frozen=True)
class Cutoffs:
    """Unix seconds, ascending; ``horizon_s`` is how far a label looks ahead."""

    horizon_s: float
    fit: list[float]
    gap: list[float]
    calibration: list[float]
    test: list[float]

    @property
    def training(self) -> list[float]:
        """Every cut-off that models may learn from before the test."""
        return [*self.fit, *self.gap, *self.calibration]

    def folds(self, most: int) -> list[Fold]:
        """Expanding windows: cut-offs to learn from, and a later block to judge by, purged of one horizon between them.

        The blocks share the later half of the training cut-offs; the newest is the last.
        """
        known = self.training
        half = known[len(known) // 2 :]
        size = math.ceil(len(half) / most)
        blocks = [half[max(end - size, 0) : end] for end in range(len(half), 0, -size)][::-1]
        found = [([t for t in known if t <= block[0] - self.horizon_s], block) for block in blocks]
        return [fold for fold in found if fold[0]] or [(self.fit, self.calibration)]

    def final(self) -> Cutoffs:
        """The same with the test cut-offs to learn from as well: for the model that is served."""
        return _blocks([*self.training, *self.test], [], self.horizon_s, len(self.calibration))


@dataclass(frozen=True)
class Plan:
    """Cut-offs of churn and spend, and those of propensity."""

    churn: Cutoffs
    propensity: Cutoffs

    def of(self, target: str) -> Cutoffs:
        """The cut-offs of one of TARGETS."""
        return self.propensity if target == "propensity" else self.churn

    @property
    def every(self) -> list[float]:
        """All cut-offs, each once, ascending."""
        both = (self.churn, self.propensity)
        return sorted({cutoff for found in both for cutoff in [*found.training, *found.test]})

    @property
    def newest_known(self) -> float:
        """Up to here anything may be learnt before the test: the newest training cut-off."""
        return self.churn.training[-1]

    def described(self) -> dict[str, list[float]]:
        """Blocks by name, for the manifest."""
        names = ("fit", "gap", "calibration", "test")
        found = {name: getattr(self.churn, name) for name in names}
        return found | {f"propensity_{name}": getattr(self.propensity, name) for name in names}


def lay_out(config: TrainingConfig, start: float, end: float) -> Plan:
    """Cut-offs for events between ``start`` and ``end`` (unix seconds); InputError where there is too little time."""
    plan = config.evaluation
    horizon = max(config.churn.horizon_days, config.economics.horizon_days) * DAY_S
    anchor = _tests(config, end, horizon)[0] - horizon
    churn = _lay_out_one(config, start, end, horizon, anchor)
    found = len(churn.training) + len(churn.test)
    if found < plan.least_cutoffs:
        raise InputError(
            f"the source's {(end - start) / DAY_S:.0f} days give {found} cut-offs, {plan.least_cutoffs} are "
            "needed: bring a longer history, or shorten evaluation.step_days, evaluation.warm_up_days or the horizons"
        )
    propensity = _lay_out_one(config, start, end, config.propensity.horizon_days * DAY_S, anchor)
    if not (churn.fit and propensity.fit):
        raise InputError(
            f"evaluation.calibration_cutoffs = {plan.calibration_cutoffs} leaves no cut-off to fit on: make it "
            "smaller, or bring a longer history"
        )
    return Plan(churn, propensity)


def _tests(config: TrainingConfig, end: float, horizon: float) -> list[float]:
    steps = range(config.evaluation.test_cutoffs - 1, -1, -1)
    return [end - horizon - i * TEST_STEP_DAYS * DAY_S for i in steps]


def _lay_out_one(config: TrainingConfig, start: float, end: float, horizon: float, anchor: float) -> Cutoffs:
    """Training cut-offs on the grid through ``anchor``, as late as the test allows."""
    plan = config.evaluation
    test, step = _tests(config, end, horizon), plan.step_days * DAY_S
    newest = anchor + (test[0] - horizon - anchor + 1e-3) // step * step
    first = start + plan.warm_up_days * DAY_S
    most = max(plan.most_cutoffs - len(test), 0)
    training = [newest - i * step for i in range(min(max(int((newest - first + 1e-3) // step) + 1, 0), most))][::-1]
    return _blocks(training, test, horizon, plan.calibration_cutoffs)


def _blocks(training: Sequence[float], test: list[float], horizon: float, calibrating: int) -> Cutoffs:
    calibration = list(training[-calibrating:])
    fit = [cutoff for cutoff in training if calibration and cutoff <= calibration[0] - horizon + 1e-3]
    return Cutoffs(horizon, fit, list(training[len(fit) : -calibrating]), calibration, test)
