"""Cut-offs: the moments at which training and evaluation pretend to stand, laid out back from the end of the data.

::

    start ── warm-up ──┬── fit ──┬── gap ──┬── calibration ──┬─ one horizon ─┬── test ──┬─ one horizon ─ end

A label looks one horizon ahead. The gap is one horizon long, so that the calibrator sees no outcome its model was
fitted on; after that the model is fitted again on everything before the test. No label of the training cut-offs (fit,
gap and calibration) reaches the first test cut-off.
"""

from __future__ import annotations

from dataclasses import dataclass

from feature_store.errors import InputError
from feature_store.state import DAY_S
from training.config import TrainingConfig

TEST_STEP_DAYS = 14.0


@dataclass(frozen=True)
class Cutoffs:
    """Unix seconds, ascending."""

    fit: list[float]
    gap: list[float]
    calibration: list[float]
    test: list[float]

    @property
    def training(self) -> list[float]:
        """Every cut-off that models may learn from."""
        return [*self.fit, *self.gap, *self.calibration]


def lay_out(config: TrainingConfig, start: float, end: float) -> Cutoffs:
    """Cut-offs for events between ``start`` and ``end`` (unix seconds); InputError where there is too little time."""
    plan = config.evaluation
    horizon = max(config.churn.horizon_days, config.economics.horizon_days) * DAY_S
    step = plan.step_days * DAY_S
    test = [end - horizon - i * TEST_STEP_DAYS * DAY_S for i in range(plan.test_cutoffs)][::-1]
    newest, first = test[0] - horizon, start + plan.warm_up_days * DAY_S
    most = max(plan.most_cutoffs - len(test), 0)
    training = [newest - i * step for i in range(min(int((newest - first) // step) + 1, most))][::-1]
    calibration = training[-plan.calibration_cutoffs :]
    fit = [cutoff for cutoff in training if cutoff <= calibration[0] - horizon]
    gap = training[len(fit) : -plan.calibration_cutoffs]
    found = len(training) + len(test)
    if found < plan.least_cutoffs:
        raise InputError(
            f"the source's {(end - start) / DAY_S:.0f} days give {found} cut-offs, {plan.least_cutoffs} are "
            "needed: bring a longer history, or shorten evaluation.step_days, evaluation.warm_up_days or the horizons"
        )
    if not fit:
        raise InputError(
            f"evaluation.calibration_cutoffs = {plan.calibration_cutoffs} leaves no cut-off to fit on: make it "
            "smaller, or bring a longer history"
        )
    return Cutoffs(fit, gap, calibration, test)
