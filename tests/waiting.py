"""How long tests wait: for events, with one limit that is far beyond what the slowest machine needs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

PATIENCE_S: Final = 300.0
"""The limit of every wait for an event. It ends tests that hang; no promise about speed is made or tested with it."""
FIT_S: Final = 12 * PATIENCE_S
"""The limit for commands, the longest of which fits models."""


async def settle(turns: int = 20) -> None:
    """Let the event loop go on, by turns, however long each takes: after twenty of them nothing moves by itself."""
    for _ in range(turns):
        await asyncio.sleep(0)


def until(
    condition: Callable[[], object],
    *,
    passing: type[Exception] | tuple[type[Exception], ...] = (),
    limit_s: float = PATIENCE_S,
) -> None:
    """Wait until a condition holds.

    Args:
        condition: What is asked again and again, a hundred times a second at most.
        passing: Exceptions of the condition that mean that it does not hold yet.
        limit_s: Seconds after which it fails.

    Raises:
        AssertionError: It did not hold within the limit.
    """
    deadline = time.monotonic() + limit_s
    while True:
        try:
            if condition():
                return
        except passing:
            pass
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(0.01)
