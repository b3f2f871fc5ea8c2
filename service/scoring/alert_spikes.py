"""A guard against decision illusions: a rise that passes must not start a campaign.

The share of answers that alert is counted in windows of a minute. The window that runs is compared, while it runs, with
those closed before it, by a robust z-score::

                  share - median of the shares before
    z  =  ──────────────────────────────────────────────────      noise = √(p(1 - p)·(1/n + 1/m)) + z/3n
          1.4826 · median absolute deviation (MAD) + noise

Median and MAD believe the majority of the windows: a rise is a spike until it fills half of the history, and usual from
then on; windows of an hour, a week of them, do for days what minutes do for an hour. The noise is what chance alone
does to a share of n answers, so that neither a history without any change (MAD = 0) nor a small window makes chance
look like a spike; m is how many answers the median of the history is worth. By Bernstein's inequality a share of n
independent answers is further than z times its noise above its expectation p with a probability of at most exp(-z²/2),
whatever n and p are: 1.5e-8 for z = 6. A normal distribution promises as much, but wrongly so where alerts are rare.

Of items the same holds for the share of answers that alert and are about the item. Nothing here knows where answers
come from or go.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from heapq import nlargest
from math import inf, pi, sqrt
from statistics import median
from typing import Final

MIN_HISTORY: Final = 10
"""Closed windows that are needed before anything is a spike. The MAD of fewer is often too small if minutes differ."""

MAX_JUDGEMENTS: Final = 240
"""How often a window is judged at most: every quarter of a second of a minute."""

MIN_ITEM_ALERTS: Final = 3
"""Closed windows forget items with fewer alerts."""

MAX_NEW_ITEMS: Final = 64
"""Items whose usual share is computed in one judgement, which takes about a millisecond; the others have to wait."""

SIGMA_OF_MAD: Final = 1.4826
"""Standard deviation over MAD of a normal distribution."""


@dataclass(slots=True, eq=False)
class _Window:
    """The counts of a window. An item has at least ``items[item]`` alerts, and at most ``lost`` more."""

    answers: int = 0
    alerts: int = 0
    items: dict[str, int] = field(default_factory=dict)
    lost: int = 0

    def keep(self, count: int) -> None:
        """Keep the ``count`` items with the most alerts: all counts lose the count of the next item (Misra and Gries).

        So no count is ever short by more than a share 1/count of all alerts, and an item beyond that share is never
        forgotten. Merely dropping the smallest counts could forget the same item again and again.
        """
        cut = nlargest(count + 1, self.items.values())[-1]
        self.items = {item: alerts - cut for item, alerts in self.items.items() if alerts > cut}
        self.lost += cut


@dataclass(slots=True, eq=False)
class _Usual:
    """The median and MAD of a share in the windows before, and whether the current window was a spike already."""

    median: float = 0.0
    mad: float = 0.0
    spiked: bool = False

    @staticmethod
    def of(shares: Sequence[float]) -> _Usual:
        middle = median(shares)
        return _Usual(middle, median([abs(share - middle) for share in shares]))


_NEVER: Final = _Usual()


class SpikeGuard:
    """Decides whether the latest answers about one offer belong to a spike. For one event loop: nothing is locked.

    Answers are reported with :meth:`observe`; :meth:`in_total` and :meth:`of_item` then apply to these answers. The
    verdict about a window holds until the next window has enough answers to be judged, so a spike has no gap at each
    full minute.

    Attributes:
        spikes: The number of windows that were a spike in total.
        item_spikes: The number of items that were a spike, over all windows; a counter per item would have no bound.
    """

    def __init__(
        self,
        *,
        z: float = 6.0,
        window_s: float = 60.0,
        windows: int = 60,
        min_answers: int = 200,
        max_items: int = 1000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make a guard without a history.

        Args:
            z: The z-score at which a spike begins.
            window_s: The length of a window in seconds.
            windows: The number of windows in the history.
            min_answers: The minimum number of answers in a window of the history, 1 or more.
            max_items: The maximum number of items of a closed window; the current one holds up to twice as many.
            clock: Seconds of a clock that never goes back.
        """
        self.spikes = 0
        self.item_spikes = 0
        self._z: Final = z
        self._window_s: Final = window_s
        self._min_answers: Final = min_answers
        self._max_items: Final = max_items
        self._clock: Final = clock
        self._before: Final[deque[_Window]] = deque(maxlen=windows)
        self._one_alert = 0.0
        """The mean share that one more alert would add in the windows before."""
        self._median_variance = 0.0
        """The contribution of the median of the windows before to the variance of a share, over p(1 - p): 1/m."""
        self._usual = _Usual()
        self._usual_of: dict[str, _Usual] = {}
        self._ends = clock() + window_s
        self._next_judgement = -inf
        self._window = _Window()
        self._in_total = False
        self._items: set[str] = set()

    def observe(self, answers: int, alerts: int, items: Iterable[str] = ()) -> None:
        """Count the answers of a batch. Takes a fraction of a microsecond, and as much for each item.

        Args:
            answers: The number of answers.
            alerts: The number of answers that alert.
            items: The items that alerting answers are about, with repetitions; not every alert has an item.
        """
        now = self._clock()
        if now >= self._ends:
            self._close(now)
        window = self._window
        window.answers += answers
        window.alerts += alerts
        if items:
            counts = window.items
            for item in items:
                counts[item] = counts.get(item, 0) + 1
            if len(counts) > 2 * self._max_items:
                window.keep(self._max_items)
                self._usual_of = {item: usual for item, usual in self._usual_of.items() if item in window.items}
        if now >= self._next_judgement and window.answers >= self._min_answers:
            self._judge(now)

    def in_total(self) -> bool:
        """Whether the latest answers belong to a spike of alerts."""
        return self._in_total

    def of_item(self, item: str) -> bool:
        """Whether the latest answers belong to a spike of alerts about ``item``."""
        return item in self._items

    def _close(self, now: float) -> None:
        """Start the window that contains ``now``, in one step even if many windows passed without an answer."""
        late = now - self._ends
        self._ends += self._window_s * (1 + late // self._window_s)
        self._next_judgement = -inf
        closed, self._window = self._window, _Window()
        if closed.answers < self._min_answers or late >= self._window_s:  # it is unknown whether a spike went on
            self._in_total = False
            self._items = set()
        if closed.answers >= self._min_answers:
            self._remember(closed)
        self._usual_of = {}

    def _remember(self, closed: _Window) -> None:
        """Add a closed window to the history."""
        if len(closed.items) > self._max_items:
            closed.keep(self._max_items)
        closed.items = {item: count for item, count in closed.items.items() if count >= MIN_ITEM_ALERTS}
        self._before.append(closed)
        size = len(self._before)
        self._one_alert = sum(1 / window.answers for window in self._before) / size
        # The variance of a median is 1/(4·size·f²) with f the mean density of the shares in the middle; of a normal
        # share of n answers that density is √(n/(2π·p(1 - p))).
        self._median_variance = pi / 2 * size / sum(sqrt(window.answers) for window in self._before) ** 2
        self._usual = _Usual.of([window.alerts / window.answers for window in self._before])

    def _judge(self, now: float) -> None:
        """Judge the current window by its counts so far."""
        self._next_judgement = now + self._window_s / MAX_JUDGEMENTS
        if len(self._before) < MIN_HISTORY:
            return
        window = self._window
        self._in_total = window.alerts > self._max_alerts(self._usual)
        if self._in_total and not self._usual.spiked:
            self._usual.spiked = True
            self.spikes += 1
        if window.items or self._items:
            self._judge_items(window)

    def _judge_items(self, window: _Window) -> None:
        too_few = self._max_alerts(_NEVER)  # not a spike for any item
        high = [item for item, count in window.items.items() if count > too_few]
        unknown = [item for item in high if item not in self._usual_of]
        for item in nlargest(MAX_NEW_ITEMS, unknown, key=window.items.__getitem__):
            self._usual_of[item] = self._usual_for(item)
        spiking = set()
        for item in high:
            usual = self._usual_of.get(item)
            if usual is None:  # not judged yet: the verdict before holds
                if item in self._items:
                    spiking.add(item)
            elif window.items[item] > self._max_alerts(usual):
                spiking.add(item)
                if not usual.spiked:
                    usual.spiked = True
                    self.item_spikes += 1
        self._items = spiking

    def _usual_for(self, item: str) -> _Usual:
        """The usual share of an item, with as many alerts as there can have been: a forgotten count is no rise."""
        forgotten = MIN_ITEM_ALERTS - 1
        return _Usual.of(
            [(window.items.get(item, forgotten) + window.lost) / window.answers for window in self._before]
        )

    def _max_alerts(self, usual: _Usual) -> float:
        """The number of alerts at which the z-score of the window is z; more are a spike."""
        answers = self._window.answers
        # A median count may lie below the expectation, but never by a whole alert: so p is not too small.
        p = min(usual.median + self._one_alert, 1.0)
        noise = sqrt(p * (1 - p) * (1 / answers + self._median_variance)) + self._z / (3 * answers)
        return answers * (usual.median + self._z * (SIGMA_OF_MAD * usual.mad + noise))
