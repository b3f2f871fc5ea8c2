"""The shadow: a model that scores what another one has answered, and never answers. What differs is kept.

It works after the answers have gone out, off the loop, and on what it can keep up with: where it is behind, batches are
dropped and counted. So it can neither delay an answer nor fail one.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from feature_store.bundles.bundle import OFFERS
from service.errors import RequestError
from service.scoring.model import Model
from service.scoring.scorer import Scorer, ScoreRequest, Scores

logger: Final = logging.getLogger("tidemark")

MOST_WAITING: Final = 2048
"""Customers: more are dropped."""
AT_ONCE: Final = 256
"""Customers of a run, more or less."""


@dataclass
class Differences:
    """How the shadow's answers about an offer differ: absolute differences of probabilities, and alerts."""

    total: float = 0.0
    largest: float = 0.0
    alerts: int = 0


class Shadow:
    """A shadow and what it has seen.

    compared: customers whom both have scored; unscored: who have a score, and none by the shadow; dropped: whom it did
    not look at, because it was behind or Redis was away; differences: by offer.
    """

    def __init__(self, model: Model, scorer: Scorer) -> None:
        self.model: Final = model
        self._scorer: Final = scorer
        self.compared = self.unscored = self.dropped = 0
        self.differences: Final = {offer: Differences() for offer in OFFERS}
        self._waiting: deque[tuple[ScoreRequest, Scores]] = deque()
        self._rows = 0
        self._task: asyncio.Task[None] | None = None

    def mean(self, offer: str) -> float:
        """Mean absolute difference of an offer's probabilities, 0 before there are any."""
        return self.differences[offer].total / self.compared if self.compared else 0.0

    def offer(self, parts: Sequence[ScoreRequest], outcomes: Sequence[Scores | RequestError]) -> None:
        """Look at this later, unless too much waits."""
        for part, outcome in zip(parts, outcomes, strict=True):
            if isinstance(outcome, RequestError):
                continue
            rows = len(part.customer_ids)
            if self._rows + rows > MOST_WAITING:
                self.dropped += rows
                continue
            self._waiting.append((part, outcome))
            self._rows += rows
        if self._task is None and self._waiting:
            self._task = asyncio.get_running_loop().create_task(self._work())

    def afresh(self) -> Shadow:
        """The same model as if it had seen nothing; this one sees nothing more."""
        self.close()
        return Shadow(self.model, self._scorer)

    def close(self) -> None:
        """Look at nothing any more."""
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()

    async def _work(self) -> None:
        try:
            while self._waiting:
                await self._compare(self._take())
        finally:
            self._task = None

    def _take(self) -> list[tuple[ScoreRequest, Scores]]:
        taken, rows = [self._waiting.popleft()], 0
        while self._waiting and (rows := rows + len(taken[-1][0].customer_ids)) < AT_ONCE:
            taken.append(self._waiting.popleft())
        self._rows -= sum(len(part.customer_ids) for part, _ in taken)
        return taken

    async def _compare(self, taken: Sequence[tuple[ScoreRequest, Scores]]) -> None:
        try:
            found = await self._scorer.score([part for part, _ in taken])
        except Exception as error:  # whatever it is: a shadow harms nobody
            logger.debug("the shadow could not score: %s", type(error).__name__)
            self.dropped += sum(len(part.customer_ids) for part, _ in taken)
            return
        for (part, answered), outcome in zip(taken, found, strict=True):
            if isinstance(outcome, Scores):
                self._note(answered, outcome)
            else:
                self.dropped += len(part.customer_ids)

    def _note(self, answered: Scores, found: Scores) -> None:
        answers = np.ones(len(answered.table), dtype=np.bool_)
        answers[list(answered.errors)] = False
        both = answers.copy()
        both[list(found.errors)] = False
        compared = int(np.count_nonzero(both))
        self.compared += compared
        self.unscored += int(np.count_nonzero(answers)) - compared
        one, two = answered.table[both], found.table[both]
        for column, offer in enumerate(OFFERS):
            seen, apart = self.differences[offer], np.abs(one[:, column] - two[:, column])
            seen.total += float(apart.sum())
            seen.largest = max(seen.largest, float(apart.max(initial=0.0)))
            seen.alerts += int(np.count_nonzero(_alerts(one, column) != _alerts(two, column)))


def _alerts(table: npt.NDArray[np.float64], column: int) -> npt.NDArray[np.bool_]:
    """Which customers reach the threshold of their own."""
    reached: npt.NDArray[np.bool_] = table[:, column] >= table[:, column + 3]
    return reached
