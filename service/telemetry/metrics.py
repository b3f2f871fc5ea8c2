"""What the server counts of itself: plain numbers, cheap to add to, which are read when somebody asks.

A lock and an object per label, as metrics libraries have them, would cost a call a tenth of what it costs altogether.
Here one event loop adds to lists, and ``readings`` says which of them are exposed under which name.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import grpc
import numpy as np

from feature_store.state.layout import Floats
from service.errors import Code, Reason, RequestError

CODES: Final[Mapping[int, str]] = {code.value[0]: code.name for code in grpc.StatusCode}
UNKNOWN: Final = "unknown"
"""The method of calls for which there is none: a path is whatever a caller makes up, and may hold anything."""
STAGES: Final = ("queue", "redis", "graph", "explain", "encode")
SECONDS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
STAGE_SECONDS: Final = (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
ROWS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
AGE_SECONDS: Final = (1.0, 10.0, 60.0, 600.0, 3600.0, 6 * 3600.0, *(day * 86_400.0 for day in (1, 2, 7, 30, 90, 365)))
AGES_AT_ONCE: Final = 256
"""Batches whose feature ages are put into buckets together: for one alone that costs ten times as much."""

Kind = Literal["counter", "gauge", "histogram"]
Snapshot = list[dict[str, Any]]
"""All families with their values, as JSON has it."""


class Histogram:
    """Counts of values by bucket: of those up to each bound, and beyond the bound before it; and the sum of all."""

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
        at = np.searchsorted(self.bounds, values, side="left")
        for bucket, count in enumerate(np.bincount(at, minlength=len(self.counts)).tolist()):
            self.counts[bucket] += count
        self.sum += float(values.sum())


Value = float | Histogram
Reading = float | Histogram | Mapping[str, Value] | Mapping[tuple[str, ...], Value]
"""What a family holds: one value, or values by the values of its labels."""


class Family(NamedTuple):
    """A metric: its name, what it means, the names of its labels, and where its values are read."""

    kind: Kind
    name: str
    meaning: str
    labels: tuple[str, ...]
    read: Callable[[], Reading]


class _Calls:
    """Calls of a method: how many by code, and how long they took."""

    __slots__ = ("codes", "seconds")

    def __init__(self) -> None:
        self.codes: Final = [0] * (max(CODES) + 1)
        self.seconds: Final = Histogram(SECONDS)


class Metrics:
    """The counters of a process, for one event loop, which is also asked for them: nothing here is locked."""

    def __init__(self, methods: Iterable[str], uncounted: Iterable[str] = ()) -> None:
        """``methods``: paths that are counted by name; ``uncounted``: those that are not counted at all."""
        self._unknown: Final = _Calls()
        self._calls: Final = {UNKNOWN: self._unknown, **{path.lstrip("/"): _Calls() for path in methods}}
        self._by_path: Final[dict[bytes | str, _Calls]] = {f"/{name}": calls for name, calls in self._calls.items()}
        self._uncounted: Final = _Calls()
        self._by_path.update(dict.fromkeys(uncounted, self._uncounted))
        self._by_path.update({path.encode(): calls for path, calls in self._by_path.items() if isinstance(path, str)})
        self.errors: Final[Counter[str]] = Counter()
        """Calls that failed, by reason."""
        self.rows: Final[Counter[str]] = Counter()
        """Customers by outcome: scored, or the reason why not."""
        self.batch_rows: Final = Histogram(ROWS)
        self.stages: Final = {stage: Histogram(STAGE_SECONDS) for stage in STAGES}
        self.lag: Final = Histogram(STAGE_SECONDS)
        self._ages: Final = Histogram(AGE_SECONDS)
        self._new_ages: list[Floats] = []
        self._families: Final[dict[str, Family]] = {}

    # --- adding, on the way of each call or batch ---------------------------------------------------------------

    def ended(self, path: bytes | str, code: int, seconds: float, error: Exception | None = None) -> None:
        """Count a call: its path as the caller wrote it, status code, seconds, and the error that has a reason."""
        calls = self._by_path.get(path, self._unknown)
        calls.codes[code] += 1
        calls.seconds.observe(seconds)
        if error is not None and calls is not self._uncounted:
            self.errors[error.reason if isinstance(error, RequestError) else Reason.INTERNAL] += 1

    def shed(self, path: str) -> None:
        """Count a call that was shed before it was read: it took no time that could be told."""
        self._by_path[path].codes[Code.RESOURCE_EXHAUSTED] += 1
        self.errors[Reason.OVERLOADED] += 1

    def features_aged(self, ages: Floats) -> None:
        """Count the ages of the features of a batch, float64 ``[n]`` seconds."""
        self._new_ages.append(ages)
        if len(self._new_ages) >= AGES_AT_ONCE:
            self._fold_ages()

    def _fold_ages(self) -> None:
        new, self._new_ages = self._new_ages, []
        if new:
            self._ages.observe_all(np.concatenate(new))

    # --- reading, at a scrape -----------------------------------------------------------------------------------

    def counter(self, name: str, meaning: str, read: Callable[[], Reading], *labels: str) -> None:
        """Expose what only grows."""
        self._add(Family("counter", name, meaning, labels, read))

    def gauge(self, name: str, meaning: str, read: Callable[[], Reading], *labels: str) -> None:
        """Expose what goes up and down."""
        self._add(Family("gauge", name, meaning, labels, read))

    def histogram(self, name: str, meaning: str, read: Callable[[], Reading], *labels: str) -> None:
        """Expose one histogram, or histograms by label."""
        self._add(Family("histogram", name, meaning, labels, read))

    def _add(self, family: Family) -> None:
        if family.name in self._families:
            raise ValueError(f"there is a metric {family.name} already")
        self._families[family.name] = family

    def calls(self) -> dict[tuple[str, ...], Value]:
        """Calls by method and code."""
        found = ((name, code, count) for name, calls in self._calls.items() for code, count in enumerate(calls.codes))
        return {(name, CODES[code]): count for name, code, count in found if count}

    def call_seconds(self) -> dict[str, Value]:
        """How long calls took, by method, of those that were called."""
        return {name: calls.seconds for name, calls in self._calls.items() if any(calls.seconds.counts)}

    def feature_ages(self) -> Histogram:
        """How old the features of scored customers were."""
        self._fold_ages()
        return self._ages

    def snapshot(self) -> Snapshot:
        """Everything that is exposed, as of now."""
        return [
            {
                "kind": family.kind,
                "name": family.name,
                "meaning": family.meaning,
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
