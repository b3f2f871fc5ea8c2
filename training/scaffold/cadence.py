"""Horizons and cut-offs that fit how often customers come back, and how much history there is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import duckdb

from feature_store.errors import InputError
from training.config import TrainingConfig
from training.data.cutoffs import lay_out

HORIZONS_DAYS: Final = (182.0, 112.0, 84.0, 56.0, 28.0, 14.0, 7.0, 3.0, 1.0)
"""Whole weeks, because each then holds the same days of the week."""

PATIENCE: Final = 2.0
"""Who has been away for twice the usual time between purchases is late, and not just between two of them."""

STEPS_DAYS: Final = (14.0, 7.0, 3.0, 1.0)

HALF_LIVES: Final = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)
"""Half-lives around the churn horizon: what is new, what is usual, and what was long ago."""

LEAST_REPEATERS: Final = 0.2
"""Where fewer customers buy a second time, not buying again says little about who has left."""


@dataclass(frozen=True)
class Rhythm:
    """A type of event: customers, those with it on two days and more, and the median of their median gaps in days."""

    event: str
    customers: int
    repeaters: int
    gap_days: float | None

    @property
    def is_habit(self) -> bool:
        """Whether enough customers do it again."""
        return self.gap_days is not None and self.repeaters >= LEAST_REPEATERS * self.customers


@dataclass(frozen=True)
class Plan:
    """Days of a config. short: why the history is too short, empty where it is not."""

    churn: float
    active: float
    propensity: float
    step: float
    warm_up: float
    half_lives: tuple[float, ...]
    short: str = ""

    def sections(self) -> dict[str, dict[str, float]]:
        """The plan as sections of a config."""
        return {
            "churn": {"horizon_days": self.churn, "active_days": self.active},
            "propensity": {"horizon_days": self.propensity},
            "economics": {"horizon_days": self.churn},
            "evaluation": {"step_days": self.step, "warm_up_days": self.warm_up},
        }


def measure(connection: duckdb.DuckDBPyConnection, event: str) -> Rhythm:
    """How often customers of the view ``events`` come back with an event of a type."""
    customers, repeaters, gap = connection.execute(
        """WITH days AS (SELECT DISTINCT customer_id, floor(t / 86400) AS day FROM events WHERE event_type = $event),
            gaps AS (SELECT customer_id, day - lag(day) OVER (PARTITION BY customer_id ORDER BY day) AS gap FROM days),
            usual AS (SELECT median(gap) AS gap FROM gaps GROUP BY customer_id)
            SELECT count(*), count(gap), median(gap) FROM usual""",
        {"event": event},
    ).fetchall()[0]
    return Rhythm(event, customers, repeaters, gap)


def plan(config: dict[str, Any], rhythm: Rhythm, start: float, end: float) -> Plan:
    """The longest horizons up to the rhythm's that leave enough cut-offs between ``start`` and ``end``.

    ``config`` is a whole config but for the days.
    """
    problem = ""
    for tried in _plans(rhythm.gap_days or HORIZONS_DAYS[4] / PATIENCE, (end - start) / 86_400):
        merged = {name: {**config.get(name, {}), **section} for name, section in tried.sections().items()}
        try:
            lay_out(TrainingConfig.model_validate({**config, **merged}), start, end)
        except InputError as error:
            problem = str(error)
        else:
            return tried
    return replace(tried, short=problem)


def _plans(gap: float, history: float) -> Iterator[Plan]:
    """Plans to try, the best first."""
    ideal = min((days for days in HORIZONS_DAYS if days >= PATIENCE * gap), default=HORIZONS_DAYS[0])
    for horizon in (days for days in HORIZONS_DAYS if days <= ideal):
        soon = max((days for days in HORIZONS_DAYS if days <= min(gap, horizon)), default=HORIZONS_DAYS[-1])
        lives = {round(factor * horizon * 2) / 2 for factor in HALF_LIVES}
        half_lives = tuple(sorted(days for days in lives if 0 < days <= max(history / 2, 1.0))) or (1.0,)
        for step in (days for days in STEPS_DAYS if days <= horizon):
            for warm_up in (2 * horizon, horizon):
                yield Plan(horizon, 2 * horizon, soon, step, warm_up, half_lives)
