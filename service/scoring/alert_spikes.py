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

LEAST_HISTORY: Final = 10
"""Closed windows before anything is a spike. The MAD of fewer is often too small where minutes differ."""

LOOKS: Final = 240
"""How often a window is judged at most: each quarter of a second of a minute."""

FEW: Final = 3
"""Closed windows forget items with fewer alerts."""

ITEMS_A_LOOK: Final = 64
"""For how many items a look works out what is usual, which takes about a millisecond; the others have to wait."""

SIGMA_OF_MAD: Final = 1.4826
"""Standard deviation over MAD of a normal distribution."""


@dataclass(slots=True, eq=False)
class _Window:
    """Counts of a window. An item has at least ``items[item]`` alerts, and at most ``lost`` more."""

    answers: int = 0
    alerts: int = 0
    items: dict[str, int] = field(default_factory=dict)
    lost: int = 0

    def keep(self, most: int) -> None:
        """Follow the ``most`` items with the most alerts: all counts lose what the next one has (Misra and Gries).

        So whatever comes and goes, no count is short by more than a share 1/most of all alerts, and an item beyond
        that share is never forgotten. Merely to drop the smallest could forget the same item again and again.
        """
        cut = nlargest(most + 1, self.items.values())[-1]
        self.items = {item: count - cut for item, count in self.items.items() if count > cut}
        self.lost += cut


@dataclass(slots=True, eq=False)
class _Usual:
    """What the windows before say of a share: its median and MAD; and whether this window was a spike already."""

    median: float = 0.0
    mad: float = 0.0
    spiked: bool = False

    @staticmethod
    def of(shares: Sequence[float]) -> _Usual:
        middle = median(shares)
        return _Usual(middle, median([abs(share - middle) for share in shares]))


_NEVER: Final = _Usual()


class SpikeGuard:
    """Says of the answers just given whether they belong to a spike. For one event loop; nothing here is locked.

    One guard follows one offer: who has two makes two, which costs less than looking one up by name each time. Answers
    are reported with :meth:`observe`; :meth:`in_total` and :meth:`of_item` then tell about these answers. What a window
    was said to be holds on until the next one has answers enough to judge, so a spike has no gap at each full minute.

    ``spikes`` counts windows that were a spike in total; ``item_spikes`` counts such items of each window together, for
    a metric with a label for each item has no bound.
    """

    def __init__(
        self,
        *,
        z: float = 6.0,
        window_s: float = 60.0,
        windows: int = 60,
        least: int = 200,
        most_items: int = 1000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """The last ``windows`` of ``window_s`` seconds with at least ``least`` answers (1 or more) are the history.

        A spike begins at ``z``. ``most_items`` bounds the items that a window remembers (the one that runs holds up to
        twice as many). ``clock`` gives seconds that never go back.
        """
        self.spikes = 0
        self.item_spikes = 0
        self._z: Final = z
        self._window_s: Final = window_s
        self._least: Final = least
        self._most_items: Final = most_items
        self._clock: Final = clock
        self._before: Final[deque[_Window]] = deque(maxlen=windows)
        self._one_alert = 0.0
        """What one alert more in each window before would add to a share."""
        self._doubt = 0.0
        """What the median of the windows before adds to the variance of a share, over p(1 - p): 1/m."""
        self._usual = _Usual()
        self._usual_of: dict[str, _Usual] = {}
        self._ends = clock() + window_s
        self._next_look = -inf
        self._window = _Window()
        self._in_total = False
        self._items: set[str] = set()

    def observe(self, answers: int, alerts: int, items: Iterable[str] = ()) -> None:
        """Count a batch: its answers, how many of them alert (not more), and the items that alerting ones are about.

        Items repeat; an alerting answer without one counts in ``alerts`` alone. Costs a fraction of a microsecond,
        and as much for each item.
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
            if len(counts) > 2 * self._most_items:
                window.keep(self._most_items)
                self._usual_of = {item: usual for item, usual in self._usual_of.items() if item in window.items}
        if now >= self._next_look and window.answers >= self._least:
            self._look(now)

    def in_total(self) -> bool:
        """Whether the answers observed last fell into a spike of alerts."""
        return self._in_total

    def of_item(self, item: str) -> bool:
        """Whether the answers observed last fell into a spike of alerts about ``item``."""
        return item in self._items

    def _close(self, now: float) -> None:
        """Begin the window that ``now`` lies in; however many passed without an answer, it is one step."""
        late = now - self._ends
        self._ends += self._window_s * (1 + late // self._window_s)
        self._next_look = -inf
        closed, self._window = self._window, _Window()
        if closed.answers < self._least or late >= self._window_s:  # nobody knows whether a spike went on
            self._in_total = False
            self._items = set()
        if closed.answers >= self._least:
            self._remember(closed)
        self._usual_of = {}

    def _remember(self, closed: _Window) -> None:
        """Make a window part of the history."""
        if len(closed.items) > self._most_items:
            closed.keep(self._most_items)
        closed.items = {item: count for item, count in closed.items.items() if count >= FEW}
        self._before.append(closed)
        size = len(self._before)
        self._one_alert = sum(1 / window.answers for window in self._before) / size
        # The variance of a median is 1/(4·size·f²) with f the mean density of the shares in the middle; of a normal
        # share of n answers that density is √(n/(2π·p(1 - p))).
        self._doubt = pi / 2 * size / sum(sqrt(window.answers) for window in self._before) ** 2
        self._usual = _Usual.of([window.alerts / window.answers for window in self._before])

    def _look(self, now: float) -> None:
        """Judge the window as it is."""
        self._next_look = now + self._window_s / LOOKS
        if len(self._before) < LEAST_HISTORY:
            return
        window = self._window
        self._in_total = window.alerts > self._most_alerts(self._usual)
        if self._in_total and not self._usual.spiked:
            self._usual.spiked = True
            self.spikes += 1
        if window.items or self._items:
            self._look_at_items(window)

    def _look_at_items(self, window: _Window) -> None:
        too_few = self._most_alerts(_NEVER)  # for whatever item
        high = [item for item, count in window.items.items() if count > too_few]
        unknown = [item for item in high if item not in self._usual_of]
        for item in nlargest(ITEMS_A_LOOK, unknown, key=window.items.__getitem__):
            self._usual_of[item] = self._usual_for(item)
        spiking = set()
        for item in high:
            usual = self._usual_of.get(item)
            if usual is None:  # its turn is to come: what was said of it holds on
                if item in self._items:
                    spiking.add(item)
            elif window.items[item] > self._most_alerts(usual):
                spiking.add(item)
                if not usual.spiked:
                    usual.spiked = True
                    self.item_spikes += 1
        self._items = spiking

    def _usual_for(self, item: str) -> _Usual:
        """What is usual for an item, taking as many alerts before as there can have been: forgetting is no rise."""
        return _Usual.of([(window.items.get(item, FEW - 1) + window.lost) / window.answers for window in self._before])

    def _most_alerts(self, usual: _Usual) -> float:
        """How many alerts the window may have without being a spike: where its z-score would be z."""
        answers = self._window.answers
        # A median count may lie below the expectation, but never by a whole alert: so p is not too small.
        p = min(usual.median + self._one_alert, 1.0)
        noise = sqrt(p * (1 - p) * (1 / answers + self._doubt)) + self._z / (3 * answers)
        return answers * (usual.median + self._z * (SIGMA_OF_MAD * usual.mad + noise))
