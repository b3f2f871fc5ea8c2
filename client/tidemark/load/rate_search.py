"""The highest rate that holds: twice as much until it does not, then between the two, in a bounded number of steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

GROWTH: Final = 2.0
NEAR: Final = 1.05
"""The search ends where the least rate that does not hold is so close to the highest that does."""
LEAST_RATE: Final = 1.0


@dataclass(frozen=True)
class Found:
    """The highest rate that held, the least above it that twice did not, and the steps it took; None: none such."""

    held: float | None
    broke: float | None
    steps: int


def search(holds: Callable[[float], bool | None], start: float, most: float, steps: int) -> Found:
    """Ask at one rate after another whether it holds; None as an answer ends the search.

    A rate that does not hold is asked for once more, because machines have bad moments: both times count. Never asks
    beyond ``most``, nor more often than ``steps``.
    """
    held: float | None = None
    broke: float | None = None
    asked, again = 0, False
    rate = min(start, most)
    while asked < steps:
        answer = holds(rate)
        if answer is None:
            break
        asked += 1
        if not answer and not again:
            again = True
            continue
        again = False
        held, broke = (rate, broke) if answer else (held, rate)
        following = _following(held, broke, most)
        if following is None:
            break
        rate = following
    return Found(held, broke, asked)


def _following(held: float | None, broke: float | None, most: float) -> float | None:
    """The rate to ask for next; None where there is none."""
    if broke is None:
        return None if held is None or held >= most else min(most, held * GROWTH)
    if held is None:
        return None if broke <= LEAST_RATE else max(LEAST_RATE, broke / GROWTH)
    return None if broke <= held * NEAR else (held * broke) ** 0.5
