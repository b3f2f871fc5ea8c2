"""Horizons and cut-offs proposed from the purchase cadence of the customers and the length of the history."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import duckdb
import numpy as np

from feature_store.errors import InputError
from feature_store.state.layout import Floats
from training.config import TrainingConfig
from training.data.cutoffs import lay_out

HORIZONS_DAYS: Final = (182.0, 112.0, 84.0, 56.0, 28.0, 14.0, 7.0, 3.0, 1.0)
"""Mostly whole weeks, so that every horizon has each day of the week equally often."""

PATIENCE: Final = 2.0
"""Churn horizon as a multiple of the usual time between purchases: after twice that time a customer is overdue."""

STEPS_DAYS: Final = (14.0, 7.0, 3.0, 1.0)

HALF_LIVES: Final = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)
"""Half-lives as multiples of the churn horizon, for recent, usual and old behaviour."""

HALF: Final = 0.5
ROUNDING: Final = 1e-9
"""Tolerance of a sum of weights, so that a median does not depend on the order of the rows."""

MIN_REPEATERS: Final = 0.2
"""Minimum share of customers with a repeat purchase; below it, not buying again says little about churn."""


@dataclass(frozen=True)
class Cadence:
    """How often customers repeat an event (the distribution of inter-purchase times, by its median).

    Attributes:
        event: The event type.
        customers: Customers with at least one such event.
        repeaters: Those with events on at least two days.
        gap_days: Median gap between days with an event, in days; None without repeaters.
    """

    event: str
    customers: int
    repeaters: int
    gap_days: float | None

    @property
    def is_habit(self) -> bool:
        """Whether enough customers repeat the event."""
        return self.gap_days is not None and self.repeaters >= MIN_REPEATERS * self.customers


@dataclass(frozen=True)
class HorizonProposal:
    """Proposed horizons, all in days; ``short`` says why the history is too short, empty if it is long enough."""

    churn: float
    active: float
    propensity: float
    step: float
    warm_up: float
    half_lives: tuple[float, ...]
    short: str = ""

    def sections(self) -> dict[str, dict[str, float]]:
        """The proposal as sections of a config."""
        return {
            "churn": {"horizon_days": self.churn, "active_days": self.active},
            "propensity": {"horizon_days": self.propensity},
            "economics": {"horizon_days": self.churn},
            "evaluation": {"step_days": self.step, "warm_up_days": self.warm_up},
        }


def measure(connection: duckdb.DuckDBPyConnection, event: str) -> Cadence:
    """Measure the cadence of an event type in the view ``events``.

    A customer with a single event is not left out: the gap is known to be longer than the time until the data ends.
    The distribution of gaps is estimated with such open (censored) gaps by the method of Wang and Chang (1999,
    "Nonparametric estimation of a recurrent survival function", JASA 94): Kaplan and Meier's product-limit estimate, in
    which the n complete gaps of a customer have a weight of 1/n each, and the open gap counts for customers without a
    complete one. More open gaps would be too many: a customer with short gaps has more complete ones for one open gap.
    """
    customers, repeaters = connection.execute(
        """SELECT count(*), count(*) FILTER (days > 1) FROM (SELECT count(DISTINCT floor(t / 86400)) AS days FROM events
            WHERE event_type = $event GROUP BY customer_id)""",
        {"event": event},
    ).fetchall()[0]
    gaps = connection.execute(
        """WITH days AS (SELECT DISTINCT customer_id, floor(t / 86400) AS day FROM events WHERE event_type = $event),
            gaps AS (SELECT customer_id, day, day - lag(day) OVER (PARTITION BY customer_id ORDER BY day) AS gap
                FROM days),
            customers AS (SELECT customer_id, count(gap) AS complete, max(day) AS last FROM gaps GROUP BY customer_id)
            SELECT gap, sum(1 / complete) AS ended, 0.0 AS open FROM gaps JOIN customers USING (customer_id)
            WHERE gap IS NOT NULL GROUP BY gap
            UNION ALL
            SELECT (SELECT floor(max(t) / 86400) FROM events) - last AS gap, 0.0, count(*)::DOUBLE FROM customers
            WHERE complete = 0 GROUP BY gap""",
        {"event": event},
    ).fetchnumpy()
    return Cadence(event, customers, repeaters, _median(gaps["gap"], gaps["ended"], gaps["open"]))


def _median(gap: Floats, ended: Floats, still_open: Floats) -> float | None:
    """The median of a product-limit estimate.

    Args:
        gap: Lengths ``[n]``.
        ended: Weight of the gaps that ended after this length ``[n]``.
        still_open: Weight of those that are only known to be longer ``[n]``.

    Returns:
        The length after which half of the gaps have ended. If fewer than half of them end within the history, half of
        those that do: customers who never come back have no cadence. None if none has ended.
    """
    lengths, place = np.unique(gap, return_inverse=True)
    ends, opens = np.bincount(place, ended, len(lengths)), np.bincount(place, still_open, len(lengths))
    if not ends.any():
        return None
    at_risk = np.cumsum((ends + opens)[::-1])[::-1]
    share_ended = 1 - np.cumprod(1 - ends / at_risk)
    middle = HALF if share_ended[-1] >= HALF else share_ended[-1] * HALF
    return float(lengths[np.argmax(share_ended >= middle - ROUNDING)])


def propose_horizons(config: dict[str, Any], cadence: Cadence, start: float, end: float) -> HorizonProposal:
    """Propose the longest horizons that fit the cadence and leave enough cut-offs.

    Args:
        config: A complete config except for the horizons.
        cadence: Of the event that defines churn.
        start: First second of the history, unix time.
        end: Last second of the history.

    Returns:
        The proposal; its ``short`` is set if even the shortest horizons do not fit.
    """
    problem = ""
    for proposal in _proposals(cadence.gap_days or HORIZONS_DAYS[4] / PATIENCE, (end - start) / 86_400):
        merged = {name: {**config.get(name, {}), **section} for name, section in proposal.sections().items()}
        try:
            lay_out(TrainingConfig.model_validate({**config, **merged}), start, end)
        except InputError as error:
            problem = str(error)
        else:
            return proposal
    return replace(proposal, short=problem)


def _proposals(gap: float, history: float) -> Iterator[HorizonProposal]:
    """Proposals to try, the best first."""
    ideal = min((days for days in HORIZONS_DAYS if days >= PATIENCE * gap), default=HORIZONS_DAYS[0])
    for horizon in (days for days in HORIZONS_DAYS if days <= ideal):
        soon = max((days for days in HORIZONS_DAYS if days <= min(gap, horizon)), default=HORIZONS_DAYS[-1])
        lives = {round(factor * horizon * 2) / 2 for factor in HALF_LIVES}
        half_lives = tuple(sorted(days for days in lives if 0 < days <= max(history / 2, 1.0))) or (1.0,)
        for step in (days for days in STEPS_DAYS if days <= horizon):
            for warm_up in (2 * horizon, horizon):
                yield HorizonProposal(horizon, 2 * horizon, soon, step, warm_up, half_lives)
