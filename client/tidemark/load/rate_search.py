"""Search for the highest rate that holds: double it until it fails, then bisect, in a bounded number of steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

GROWTH: Final = 2.0
TOLERANCE: Final = 1.05
"""The search ends once the lowest rate that failed is within this factor of the highest that held."""
MIN_RATE: Final = 1.0


@dataclass(frozen=True)
class SearchResult:
    """What a search has found.

    Attributes:
        held: the highest rate that held; None if none did.
        failed: the lowest rate above it that failed twice; None if none did.
        steps: how many steps were made.
    """

    held: float | None
    failed: float | None
    steps: int


def search(holds: Callable[[float], bool | None], start: float, max_rate: float, max_steps: int) -> SearchResult:
    """Search for the highest rate that holds.

    A rate that fails is tried once more, because a machine may be busy for a moment; both count as steps.

    Args:
        holds: tries a rate and returns whether it held; None ends the search.
        start: the first rate.
        max_rate: no rate above this is tried.
        max_steps: at most this many rates are tried.
    """
    held: float | None = None
    failed: float | None = None
    steps, second_try = 0, False
    rate = min(start, max_rate)
    while steps < max_steps:
        answer = holds(rate)
        if answer is None:
            break
        steps += 1
        if not answer and not second_try:
            second_try = True
            continue
        second_try = False
        held, failed = (rate, failed) if answer else (held, rate)
        following = _next_rate(held, failed, max_rate)
        if following is None:
            break
        rate = following
    return SearchResult(held, failed, steps)


def _next_rate(held: float | None, failed: float | None, max_rate: float) -> float | None:
    """The next rate to try; None if the search has ended."""
    if failed is None:
        return None if held is None or held >= max_rate else min(max_rate, held * GROWTH)
    if held is None:
        return None if failed <= MIN_RATE else max(MIN_RATE, failed / GROWTH)
    return None if failed <= held * TOLERANCE else (held * failed) ** 0.5
