"""The shadow: a model that scores what another model has answered, and never answers itself.

It works after the answers have gone out, off the event loop, and only as fast as it can: if it falls behind, calls are
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

from feature_store.bundles.bundle import OFFERS
from service.errors import RequestError
from service.scoring.model import Model
from service.scoring.scorer import Scorer
from service.scoring.types import ScoreRequest, Scores

logger: Final = logging.getLogger("tidemark")

MAX_WAITING_ROWS: Final = 2048
"""Customers that may wait for the shadow; beyond it calls are dropped."""
BATCH_ROWS: Final = 256
"""Customers that are scored together; the last call of a batch may exceed it."""


@dataclass
class Differences:
    """How the answers of the shadow about an offer differ from those of the model that answers.

    Attributes:
        total: Sum of the absolute differences of the probabilities.
        largest: The largest of these differences.
        alerts: Answers that alert with one model and not with the other.
    """

    total: float = 0.0
    largest: float = 0.0
    alerts: int = 0


class Shadow:
    """A shadow model, and how its answers differ.

    Attributes:
        model: The shadow.
        compared: Customers that both models have scored.
        unscored: Customers with a score that the shadow could not score.
        dropped: Customers that the shadow did not score, because it was behind or Redis did not answer.
        differences: By offer.
    """

    def __init__(self, model: Model, scorer: Scorer) -> None:
        self.model: Final = model
        self.compared = self.unscored = self.dropped = 0
        self.differences: Final = {offer: Differences() for offer in OFFERS}
        self._scorer: Final = scorer
        self._waiting: deque[tuple[ScoreRequest, Scores]] = deque()
        self._waiting_rows = 0
        self._task: asyncio.Task[None] | None = None

    def mean(self, offer: str) -> float:
        """The mean absolute difference of an offer's probabilities; 0 before any were compared."""
        return self.differences[offer].total / self.compared if self.compared else 0.0

    def compare_later(self, requests: Sequence[ScoreRequest], outcomes: Sequence[Scores | RequestError]) -> None:
        """Score these requests later and compare the scores, unless too many customers wait already."""
        for request, outcome in zip(requests, outcomes, strict=True):
            if isinstance(outcome, RequestError):
                continue
            rows = len(request.customer_ids)
            if self._waiting_rows + rows > MAX_WAITING_ROWS:
                self.dropped += rows
                continue
            self._waiting.append((request, outcome))
            self._waiting_rows += rows
        if self._task is None and self._waiting:
            self._task = asyncio.get_running_loop().create_task(self._work())

    def restarted(self) -> Shadow:
        """The same model without its counts; this shadow is closed."""
        self.close()
        return Shadow(self.model, self._scorer)

    def close(self) -> None:
        """Stop comparing."""
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
        batch, rows = [], 0
        while self._waiting and rows < BATCH_ROWS:
            batch.append(self._waiting.popleft())
            rows += len(batch[-1][0].customer_ids)
        self._waiting_rows -= rows
        return batch

    async def _compare(self, batch: Sequence[tuple[ScoreRequest, Scores]]) -> None:
        try:
            outcomes = await self._scorer.score([request for request, _ in batch])
        except Exception as error:  # of any kind: a shadow must not disturb the model that answers
            logger.debug("the shadow could not score: %s", type(error).__name__)
            self.dropped += sum(len(request.customer_ids) for request, _ in batch)
            return
        for (request, answered), outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Scores):
                self._count(answered, outcome)
            else:
                self.dropped += len(request.customer_ids)

    def _count(self, answered: Scores, shadowed: Scores) -> None:
        scored = np.ones(len(answered.rows), dtype=np.bool_)
        scored[list(answered.errors)] = False
        both = scored.copy()
        both[list(shadowed.errors)] = False
        compared = int(np.count_nonzero(both))
        self.compared += compared
        self.unscored += int(np.count_nonzero(scored)) - compared
        for offer in OFFERS:
            answer, shadow, seen = answered.rows[offer][both], shadowed.rows[offer][both], self.differences[offer]
            difference = np.abs(answer["probability"] - shadow["probability"])
            seen.total += float(difference.sum())
            seen.largest = max(seen.largest, float(difference.max(initial=0.0)))
            seen.alerts += int(np.count_nonzero(answer["alert"] != shadow["alert"]))
