"""Counters and histograms of a process: plain numbers that are cheap to add to and are read at a scrape.

The lock and the object per label of a metrics library would cost a tenth of the CPU of a call. Here one event loop adds
to lists, and ``app.metric_catalog`` decides which of them are exposed under which name.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from feature_store.state.layout import Floats
from service.errors import Code, Reason, RequestError

CODES: Final[Mapping[int, str]] = {code.value: code.name for code in Code}
UNKNOWN: Final = "unknown"
"""The label of calls to an unknown method: their path comes from the caller and may contain anything."""
STAGES: Final = ("queue", "redis", "graph", "explain", "encode")
SECONDS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
STAGE_SECONDS: Final = (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
ROWS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
AGE_SECONDS: Final = (1.0, 10.0, 60.0, 600.0, 3600.0, 6 * 3600.0, *(day * 86_400.0 for day in (1, 2, 7, 30, 90, 365)))
AGES_AT_ONCE: Final = 256
"""Batches whose feature ages are counted together: to count each batch by itself costs ten times as much."""

Kind = Literal["counter", "gauge", "histogram"]
Snapshot = list[dict[str, Any]]
"""All metric families with their values, ready for JSON."""


class Histogram:
    """Counts values by bucket.

    Attributes:
        bounds: The upper bounds of the buckets.
        counts: The number of values in each bucket, which is above the bound before it and at most at its own; the last
            bucket has no bound.
        sum: The sum of all values.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds: Final = tuple(bounds)
        self.counts: Final = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def observe_all(self, values: Floats) -> None:
        """Count many values, float64 ``[n]``."""
        buckets = np.searchsorted(self.bounds, values, side="left")
        for bucket, count in enumerate(np.bincount(buckets, minlength=len(self.counts)).tolist()):
            self.counts[bucket] += count
        self.sum += float(values.sum())


Value = float | Histogram
Reading = float | Histogram | Mapping[str, Value] | Mapping[tuple[str, ...], Value]
"""The value of a metric family, or its values by the values of its labels."""


class Family(NamedTuple):
    """A metric family: its kind and name, its HELP text, the names of its labels, and a function that reads it."""

    kind: Kind
    name: str
    help_text: str
    labels: tuple[str, ...]
    read: Callable[[], Reading]


class _Calls:
    """The calls of a method: counts by status code, and durations."""

    __slots__ = ("codes", "seconds")

    def __init__(self) -> None:
        self.codes: Final = [0] * (max(CODES) + 1)
        self.seconds: Final = Histogram(SECONDS)


class Metrics:
    """The counters of a process. One event loop adds to them and reads them, so nothing is locked.

    Attributes:
        errors: Failed calls, by reason.
        rows: Customers by outcome: scored, or the reason why not.
        batch_rows: Customers per batch.
        stages: Seconds of each stage of a batch.
        lag: Seconds by which the event loop was late.
    """

    def __init__(self, methods: Iterable[str], uncounted: Iterable[str] = ()) -> None:
        """Make the counters.

        Args:
            methods: Paths of methods that are counted by name.
            uncounted: Paths of methods that are not counted.
        """
        self._unknown: Final = _Calls()
        self._calls: Final = {UNKNOWN: self._unknown, **{path.lstrip("/"): _Calls() for path in methods}}
        self._by_path: Final[dict[bytes | str, _Calls]] = {f"/{name}": calls for name, calls in self._calls.items()}
        self._uncounted: Final = _Calls()
        self._by_path.update(dict.fromkeys(uncounted, self._uncounted))
        self._by_path.update({path.encode(): calls for path, calls in self._by_path.items() if isinstance(path, str)})
        self.errors: Final[Counter[str]] = Counter()
        self.rows: Final[Counter[str]] = Counter()
        self.batch_rows: Final = Histogram(ROWS)
        self.stages: Final = {stage: Histogram(STAGE_SECONDS) for stage in STAGES}
        self.lag: Final = Histogram(STAGE_SECONDS)
        self._ages: Final = Histogram(AGE_SECONDS)
        self._new_ages: list[Floats] = []
        self._families: Final[dict[str, Family]] = {}

    # --- counting -----------------------------------------------------------------------------------------------

    def ended(self, path: bytes | str, code: int, seconds: float, error: Exception | None = None) -> None:
        """Count a call that has ended.

        Args:
            path: The path as the caller wrote it.
            code: The status code.
            seconds: The duration of the call.
            error: Why the call failed, if it did for a reason that is counted.
        """
        calls = self._by_path.get(path, self._unknown)
        calls.codes[code] += 1
        calls.seconds.observe(seconds)
        if error is not None and calls is not self._uncounted:
            self.errors[error.reason if isinstance(error, RequestError) else Reason.INTERNAL] += 1

    def shed(self, path: str) -> None:
        """Count a call that was shed before it was read; it has no duration."""
        self._by_path[path].codes[Code.RESOURCE_EXHAUSTED] += 1
        self.errors[Reason.OVERLOADED] += 1

    def features_aged(self, ages: Floats) -> None:
        """Count the ages of the features in a batch, float64 ``[n]`` seconds."""
        self._new_ages.append(ages)
        if len(self._new_ages) >= AGES_AT_ONCE:
            self._fold_ages()

    def _fold_ages(self) -> None:
        new, self._new_ages = self._new_ages, []
        if new:
            self._ages.observe_all(np.concatenate(new))

    # --- exposing -----------------------------------------------------------------------------------------------

    def counter(self, name: str, help_text: str, read: Callable[[], Reading], *labels: str) -> None:
        """Expose values that only grow."""
        self._add(Family("counter", name, help_text, labels, read))

    def gauge(self, name: str, help_text: str, read: Callable[[], Reading], *labels: str) -> None:
        """Expose values that go up and down."""
        self._add(Family("gauge", name, help_text, labels, read))

    def histogram(self, name: str, help_text: str, read: Callable[[], Reading], *labels: str) -> None:
        """Expose a histogram, or histograms by label."""
        self._add(Family("histogram", name, help_text, labels, read))

    def _add(self, family: Family) -> None:
        if family.name in self._families:
            raise ValueError(f"there is a metric {family.name} already")
        self._families[family.name] = family

    @property
    def families(self) -> Sequence[Family]:
        """All metric families, in the order in which they were added."""
        return tuple(self._families.values())

    def calls(self) -> dict[tuple[str, ...], Value]:
        """Calls by method and code."""
        return {
            (name, CODES[code]): count
            for name, calls in self._calls.items()
            for code, count in enumerate(calls.codes)
            if count
        }

    def call_seconds(self) -> dict[str, Value]:
        """Durations of calls, by method, of the methods that were called."""
        return {name: calls.seconds for name, calls in self._calls.items() if any(calls.seconds.counts)}

    def feature_ages(self) -> Histogram:
        """The ages of the features of scored customers."""
        self._fold_ages()
        return self._ages

    def snapshot(self) -> Snapshot:
        """The current values of all metric families."""
        return [
            {
                "kind": family.kind,
                "name": family.name,
                "help": family.help_text,
                "labels": family.labels,
                "samples": [(labels, _plain(value)) for labels, value in _samples(family.read())],
            }
            for family in self._families.values()
        ]


def _samples(reading: Reading) -> list[tuple[tuple[str, ...], Value]]:
    if not isinstance(reading, Mapping):
        return [((), reading)]
    return [((labels,) if isinstance(labels, str) else labels, value) for labels, value in reading.items()]


def _plain(value: Value) -> Any:
    if isinstance(value, Histogram):
        return {"bounds": value.bounds, "counts": list(value.counts), "sum": value.sum}
    return value
