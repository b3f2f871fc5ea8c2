"""What rows add up to: HDR histograms, counts by outcome, and how it went over time."""

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
from tidemark.load.sending.sender import Rows

MOST_US: Final = int(2 * MAX_DEADLINE_MS * 1e3)
DIGITS: Final = 3
SLICE_DIGITS: Final = 2
MOST_SLICES: Final = 300
PERCENTILES: Final = (50.0, 75.0, 90.0, 99.0, 99.9, 99.99, 100.0)
CURVE_TICKS: Final = 4
"""Points of the curve in each halving of what is left to 100 %."""
LATE_SHARE: Final = 0.01
"""With more late calls than this the figures say as much about the generator as about the server."""
HELD: Final = 0.99


@dataclass(frozen=True)
class Slice:
    """What became of the calls that should have begun in a slice of the time; latencies in ms, None without any."""

    start_s: float
    calls: dict[Kind, int]
    p50_ms: float | None
    p99_ms: float | None
    max_ms: float | None


@dataclass(frozen=True)
class Result:
    """A step. ``percentiles`` and ``curve`` (percent, ms) are of calls that were answered or ran out of time.

    ``offered``: calls that were begun within the duration; ``unsent``: calls that should have been; ``late``: calls
    that the generator began too late; ``within``: calls answered within the p99 that is aimed at; ``customers``: what
    single customers of batches got in place of a score; ``seconds``: what of the duration went by.
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
        """How many ended so."""
        return sum(number for outcome, number in self.outcomes.items() if outcome.kind is kind)

    @property
    def offered(self) -> int:
        """All calls that were begun."""
        return sum(self.outcomes.values())

    @property
    def late_share(self) -> float:
        """Share of calls that were begun late or not at all, by the generator's fault."""
        return (self.late + self.unsent) / max(1, self.offered + self.unsent)

    @property
    def valid(self) -> bool:
        """Whether the generator kept its times, so that the figures are the server's."""
        return self.offered > 0 and self.late_share <= LATE_SHARE

    @property
    def holds(self) -> bool:
        """Whether 99 % of all calls, those that were refused or failed too, were answered within the p99 aimed at."""
        return self.valid and self.within is not None and self.within >= HELD * self.offered


class Tally:
    """Adds up one step."""

    def __init__(self, plan: Plan, rate: float) -> None:
        self._plan, self._rate = plan, rate
        self._each: Final = max(1.0, math.ceil(plan.duration_s / MOST_SLICES))
        number = math.ceil(plan.duration_s / self._each)
        self.latency: Final = histogram(DIGITS)
        self._lag: Final = histogram(DIGITS)
        self._slices: Final = [histogram(SLICE_DIGITS) for _ in range(number)]
        self._kinds: Final[list[Counter[Kind]]] = [Counter() for _ in range(number)]
        self.outcomes: Final[Counter[Outcome]] = Counter()
        self._customers: Final[Counter[Outcome]] = Counter()
        self._models: Final[Counter[str]] = Counter()
        self._late = self._within = self._unsent = 0
        self._cpu_s = 0.0

    def add(self, found: Rows) -> None:
        """Take in rows; those of the warm-up are left out."""
        rows = np.frombuffer(found.rows).reshape(-1, 4)
        rows = rows[rows[:, 0] >= 0]
        at, latency, lag, index = rows.T
        kinds = np.array([list(Kind).index(outcome.kind) for outcome in found.outcomes])[index.astype(int)]
        took_time = (kinds == list(Kind).index(Kind.ANSWERED)) | (kinds == list(Kind).index(Kind.EXPIRED))
        where = np.minimum(at // self._each, len(self._slices) - 1).astype(int)
        record(self.latency, latency[took_time])
        record(self._lag, lag)
        for number in np.unique(where):
            here = where == number
            record(self._slices[number], latency[here & took_time])
            self._kinds[number].update({Kind(list(Kind)[kind]): n for kind, n in _counts(kinds[here])})
        self.outcomes.update({found.outcomes[which]: n for which, n in _counts(index.astype(int))})
        self._late += int((lag > self._plan.max_lag_ms / 1e3).sum())
        if self._plan.p99_ms is not None:
            answered = kinds == list(Kind).index(Kind.ANSWERED)
            self._within += int((latency[answered] <= self._plan.p99_ms / 1e3).sum())
        self._customers.update(found.customers)
        self._models.update(found.models)
        if found.last is not None:
            self._unsent += found.last[0]
            self._cpu_s += found.last[1]

    def result(self, seconds: float, *, stopped: bool = False) -> Result:
        """What it comes to, after so many seconds of the duration."""
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
            slices=[self._slice(at) for at in range(len(self._slices)) if at * self._each < seconds],
            histogram=self.latency.encode().decode(),
            stopped=stopped,
        )

    def _slice(self, at: int) -> Slice:
        found = self._slices[at]
        low, high = (percentiles(found).get(percent) for percent in (50.0, 99.0))
        top = found.get_max_value() / 1e3 if found.total_count else None
        return Slice(at * self._each, {kind: self._kinds[at][kind] for kind in Kind}, low, high, top)


def histogram(digits: int) -> Any:
    """An empty one, of microseconds."""
    return HdrHistogram(1, MOST_US, digits)


def record(into: Any, seconds: NDArray[np.float64]) -> None:
    """Count times."""
    for value, number in _counts(np.clip(np.rint(seconds * 1e6), 1, MOST_US).astype(np.int64)):
        into.record_value(value, number)


def percentiles(of: Any, wanted: Sequence[float] = PERCENTILES) -> dict[float, float]:
    """Percentiles in ms; empty where nothing was counted."""
    found: Mapping[float, int] = of.get_percentile_to_value_dict(list(wanted)) if of.total_count else {}
    return {percent: value / 1e3 for percent, value in found.items()}


def curve(of: Any) -> list[tuple[float, float]]:
    """Percent and ms, finer and finer towards 100 %, as far as there are calls."""
    if not of.total_count:
        return []
    points = (
        (item.percentile_level_iterated_to, item.value_iterated_to / 1e3)
        for item in of.get_percentile_iterator(CURVE_TICKS)
    )
    least = 100 / of.total_count
    return [(percent, value) for percent, value in points if 100 - percent >= least or percent == 100]  # noqa: PLR2004


def _counts(values: NDArray[np.int64]) -> list[tuple[int, int]]:
    found, numbers = np.unique(values, return_counts=True)
    return list(zip(found.tolist(), numbers.tolist(), strict=True))
