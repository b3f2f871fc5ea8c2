"""The results of a step: HDR histograms, counts by outcome, and the course over time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from hdrh.histogram import HdrHistogram
from numpy.typing import NDArray

from tidemark.load.outcomes import Kind, Outcome
from tidemark.load.plan import MAX_DEADLINE_MS, Plan
from tidemark.load.sending.sender import Records

MAX_US: Final = int(2 * MAX_DEADLINE_MS * 1e3)
DIGITS: Final = 3
"""Significant digits of the histograms."""
SLICE_DIGITS: Final = 2
MAX_SLICES: Final = 300
KINDS: Final = list(Kind)
PERCENTILES: Final = (50.0, 75.0, 90.0, 99.0, 99.9, 99.99, 100.0)
CURVE_TICKS: Final = 4
"""Points of the curve each time the distance to 100 % halves."""
MAX_LATE_SHARE: Final = 0.01
"""With more late calls the figures say as much about the load generator as about the server."""
HELD_SHARE: Final = 0.99
"""A rate holds if at least this share of all calls is answered within the goal."""


@dataclass(frozen=True)
class Slice:
    """The calls that were due in a slice of the time: counts, and latencies in ms (None without any)."""

    start_s: float
    calls: dict[Kind, int]
    p50_ms: float | None
    p99_ms: float | None
    max_ms: float | None


@dataclass(frozen=True)
class Result:
    """The result of a step.

    Attributes:
        rate: calls a second that were planned.
        seconds: how much of the duration passed.
        outcomes: calls by outcome.
        customers: customers of batches that got no score, by outcome.
        models: customers scored by each model version.
        percentiles: percent -> ms, of the calls that were answered or expired.
        curve: (percent, ms) of the same calls.
        mean_ms: mean latency of the same calls.
        lag: percent -> ms by which calls started late.
        late: calls that the load generator started too late.
        unsent: calls that it never started.
        within: calls answered within the goal; None without a goal.
        cpu_cores: cores that the load generator took.
        slices: the course over time.
        histogram: latencies in HdrHistogram's encoding (V2, base64, µs).
        stopped: whether the step was ended early.
    """

    rate: float
    seconds: float
    outcomes: dict[Outcome, int]
    customers: dict[Outcome, int]
    models: dict[str, int]
    percentiles: dict[float, float]
    curve: list[tuple[float, float]]
    mean_ms: float | None
    lag: dict[float, float]
    late: int
    unsent: int
    within: int | None
    cpu_cores: float
    slices: list[Slice]
    histogram: str
    stopped: bool = False

    def calls(self, kind: Kind) -> int:
        """The number of calls of a kind."""
        return sum(number for outcome, number in self.outcomes.items() if outcome.kind is kind)

    @property
    def offered(self) -> int:
        """All calls that were started."""
        return sum(self.outcomes.values())

    @property
    def late_share(self) -> float:
        """Share of calls that the load generator started late or not at all."""
        return (self.late + self.unsent) / max(1, self.offered + self.unsent)

    @property
    def valid(self) -> bool:
        """Whether the load generator kept up, so that the figures describe the server."""
        return self.offered > 0 and self.late_share <= MAX_LATE_SHARE

    @property
    def holds(self) -> bool:
        """Whether 99 % of all calls, including refused and failed ones, were answered within the goal."""
        return self.valid and self.within is not None and self.within >= HELD_SHARE * self.offered


class Tally:
    """Adds up the records of one step."""

    def __init__(self, plan: Plan, rate: float) -> None:
        self._plan, self._rate = plan, rate
        self._slice_s: Final = max(1.0, math.ceil(plan.duration_s / MAX_SLICES))
        slices = math.ceil(plan.duration_s / self._slice_s)
        self.latency: Final = histogram(DIGITS)
        self._lag: Final = histogram(DIGITS)
        self._slices: Final = [histogram(SLICE_DIGITS) for _ in range(slices)]
        self._kinds: Final[list[Counter[Kind]]] = [Counter() for _ in range(slices)]
        self.outcomes: Final[Counter[Outcome]] = Counter()
        self._customers: Final[Counter[Outcome]] = Counter()
        self._models: Final[Counter[str]] = Counter()
        self._late = self._within = self._unsent = 0
        self._cpu_s = 0.0

    def add(self, records: Records) -> None:
        """Add records; calls of the warm-up are left out."""
        rows = np.frombuffer(records.rows).reshape(-1, 4)
        rows = rows[rows[:, 0] >= 0]
        start, latency, lag, index = rows.T
        kinds = np.array([KINDS.index(outcome.kind) for outcome in records.outcomes])[index.astype(int)]
        answered = kinds == KINDS.index(Kind.ANSWERED)
        timed = answered | (kinds == KINDS.index(Kind.EXPIRED))
        slices = np.minimum(start // self._slice_s, len(self._slices) - 1).astype(int)
        record(self.latency, latency[timed])
        record(self._lag, lag)
        for number in np.unique(slices):
            inside = slices == number
            record(self._slices[number], latency[inside & timed])
            self._kinds[number].update({KINDS[kind]: n for kind, n in _counts(kinds[inside])})
        self.outcomes.update({records.outcomes[which]: n for which, n in _counts(index.astype(int))})
        self._late += int((lag > self._plan.max_lag_ms / 1e3).sum())
        if self._plan.p99_ms is not None:
            self._within += int((latency[answered] <= self._plan.p99_ms / 1e3).sum())
        self._customers.update(records.customers)
        self._models.update(records.models)
        if records.last is not None:
            self._unsent += records.last[0]
            self._cpu_s += records.last[1]

    def result(self, seconds: float, *, stopped: bool = False) -> Result:
        """The result, if ``seconds`` of the duration have passed."""
        return Result(
            rate=self._rate,
            seconds=seconds,
            outcomes=dict(self.outcomes.most_common()),
            customers=dict((+self._customers).most_common()),
            models=dict((+self._models).most_common()),
            percentiles=percentiles(self.latency),
            curve=curve(self.latency),
            mean_ms=self.latency.get_mean_value() / 1e3 if self.latency.total_count else None,
            lag=percentiles(self._lag),
            late=self._late,
            unsent=self._unsent,
            within=None if self._plan.p99_ms is None else self._within,
            cpu_cores=self._cpu_s / (seconds + self._plan.warm_up_s),
            slices=[self._slice(number) for number in range(len(self._slices)) if number * self._slice_s < seconds],
            histogram=self.latency.encode().decode(),
            stopped=stopped,
        )

    def _slice(self, number: int) -> Slice:
        latency = self._slices[number]
        p50, p99 = (percentiles(latency).get(percent) for percent in (50.0, 99.0))
        highest = latency.get_max_value() / 1e3 if latency.total_count else None
        return Slice(number * self._slice_s, {kind: self._kinds[number][kind] for kind in Kind}, p50, p99, highest)


def histogram(digits: int) -> Any:
    """An empty histogram of microseconds with ``digits`` significant digits."""
    return HdrHistogram(1, MAX_US, digits)


def record(into: Any, seconds: NDArray[np.float64]) -> None:
    """Add times to a histogram."""
    for value, number in _counts(np.clip(np.rint(seconds * 1e6), 1, MAX_US).astype(np.int64)):
        into.record_value(value, number)


def percentiles(of: Any, percents: Sequence[float] = PERCENTILES) -> dict[float, float]:
    """Percentiles of a histogram in ms; empty if nothing was counted."""
    values: Mapping[float, int] = of.get_percentile_to_value_dict(list(percents)) if of.total_count else {}
    return {percent: value / 1e3 for percent, value in values.items()}


def curve(of: Any) -> list[tuple[float, float]]:
    """Points (percent, ms) of a histogram, ever closer towards 100 %, as far as there are calls."""
    if not of.total_count:
        return []
    points = (
        (item.percentile_level_iterated_to, item.value_iterated_to / 1e3)
        for item in of.get_percentile_iterator(CURVE_TICKS)
    )
    one_call = 100 / of.total_count
    return [(percent, value) for percent, value in points if 100 - percent >= one_call or percent == 100]  # noqa: PLR2004


def _counts(values: NDArray[np.int64]) -> list[tuple[int, int]]:
    distinct, counts = np.unique(values, return_counts=True)
    return list(zip(distinct.tolist(), counts.tolist(), strict=True))
