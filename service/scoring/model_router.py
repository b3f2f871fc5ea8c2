"""Routes a batch to the models that are in use: the active one, and beside it a canary or a shadow.

::

    batch ──► active ────────────────────────► answers
          ├─► customers drawn ──► canary ─► merged ┘
          └─────── afterwards ──► shadow ──► differences

The canary answers a share of the customers; the shadow answers none. A set of models is made once and never changed. A
batch is answered by the set that is current when it starts, so a switch is one assignment between batches, and without
a canary or a shadow the router costs a batch two comparisons.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import compress
from typing import Final

from service.errors import RequestError
from service.scoring.model import Model
from service.scoring.scorer import Scorer
from service.scoring.shadow import Shadow
from service.scoring.types import ScoreRequest, Scores

DRAW_KEY: Final = b"tidemark canary"
"""The key of the draw is the same for every canary, so that few customers ever meet a model that is being tried."""
DRAW_BYTES: Final = 6

Outcome = Scores | RequestError


@dataclass(frozen=True)
class ServingModel:
    """A model that answers, and its scorer."""

    model: Model
    scorer: Scorer


@dataclass(frozen=True)
class ModelSet:
    """The models that are in use.

    Attributes:
        active: Answers all customers that the canary does not answer.
        canary: Answers a share of the customers.
        share: The canary's share, from 0 to 1.
        shadow: Scores what the others have answered.
    """

    active: ServingModel
    canary: ServingModel | None = None
    share: float = 0.0
    shadow: Shadow | None = None

    def with_active(self, active: ServingModel) -> ModelSet:
        """The same set with another active model; the counts of the shadow start anew, since they compare it."""
        shadow = None if self.shadow is None else self.shadow.restarted()
        return ModelSet(active, self.canary, self.share, shadow)

    @property
    def models(self) -> list[Model]:
        """All models of the set."""
        return [holder.model for holder in (self.active, self.canary, self.shadow) if holder is not None]


class ModelRouter:
    """Answers batches by a set of models, which may be replaced at any time."""

    def __init__(self, model_set: ModelSet) -> None:
        self.model_set = model_set

    async def score(self, requests: Sequence[ScoreRequest]) -> Sequence[Outcome]:
        """Score the customers of some requests; returns and raises the same as ``Scorer.score``."""
        models = self.model_set
        if models.canary is None:
            outcomes: Sequence[Outcome] = await models.active.scorer.score(requests)
        else:
            outcomes = await _split(models.active, models.canary, models.share, requests)
        if models.shadow is not None:
            models.shadow.compare_later(requests, outcomes)
        return outcomes


def drawn(customer_id: str) -> float:
    """The customer's number in the draw, from 0 to below 1: a hash, so it is the same everywhere and at any time."""
    digest = blake2b(customer_id.encode("utf-8", "surrogateescape"), digest_size=DRAW_BYTES, key=DRAW_KEY).digest()
    return int.from_bytes(digest) / 256**DRAW_BYTES


def in_canary(customer_ids: Sequence[str], share: float) -> list[bool]:
    """Whether the canary answers each customer. A larger share contains the customers of a smaller one."""
    return [drawn(customer_id) < share for customer_id in customer_ids]


async def _split(
    active: ServingModel, canary: ServingModel, share: float, requests: Sequence[ScoreRequest]
) -> list[Outcome]:
    """The merged answers of both models, request by request."""
    positions = [_positions(in_canary(request.customer_ids, share)) for request in requests]
    answers = await asyncio.gather(
        *(
            _score_some(
                serving, [_subset(request, at[number]) for request, at in zip(requests, positions, strict=True)]
            )
            for number, serving in enumerate((active, canary))
        )
    )
    return [_merged(list(zip(at, outcomes, strict=True))) for at, *outcomes in zip(positions, *answers, strict=True)]


def _positions(chosen: Sequence[bool]) -> tuple[list[int], list[int]]:
    """The positions of the customers that the active model answers, and of those that the canary answers."""
    every = range(len(chosen))
    return [at for at in every if not chosen[at]], list(compress(every, chosen))


def _subset(request: ScoreRequest, positions: Sequence[int]) -> ScoreRequest:
    """The request for the customers at these positions only."""
    if len(positions) == len(request.customer_ids):
        return request
    refused = {row: request.refused[at] for row, at in enumerate(positions) if at in request.refused}
    return request._replace(customer_ids=[request.customer_ids[at] for at in positions], refused=refused)


async def _score_some(serving: ServingModel, requests: Sequence[ScoreRequest]) -> list[Outcome | None]:
    """The outcome of each request; None for a request without customers."""
    filled = [request for request in requests if request.customer_ids]
    outcomes = iter(await serving.scorer.score(filled) if filled else ())
    return [next(outcomes) if request.customer_ids else None for request in requests]


def _merged(groups: Sequence[tuple[Sequence[int], Outcome | None]]) -> Outcome:
    """The outcome of a request from those of its groups of customers: if one group failed, the request fails."""
    placed: list[tuple[Sequence[int], Scores]] = []
    for positions, outcome in groups:
        if isinstance(outcome, RequestError):
            return outcome
        if outcome is not None:
            placed.append((positions, outcome))
    return placed[0][1] if len(placed) == 1 else Scores.placed(placed)
