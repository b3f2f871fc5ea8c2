"""Which models answer: the active one; beside it a canary, which answers a share of customers, or a shadow, which none.

::

    batch ──► active ─────────────────────────────────► answers
          ├─► customers drawn ──► canary ─► put together ┘
          └──────────────── afterwards ──► shadow ──► differences

A model set is made once and never changed. A batch is answered by the set that is current when it begins, so a switch
is one assignment between batches, and without a canary it costs a batch nothing that there could be one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import compress
from typing import Final

from service.errors import RequestError
from service.scoring.model import Model
from service.scoring.scorer import Scorer, ScoreRequest, Scores
from service.scoring.shadow import Shadow

DRAWN: Final = b"tidemark canary"
"""Key of the draw. It is the same for every canary: the fewest customers meet what is being tried out."""
DRAW_BYTES: Final = 6

Outcome = Scores | RequestError


@dataclass(frozen=True)
class ServingModel:
    """A model that answers, and its scorer."""

    model: Model
    scorer: Scorer


@dataclass(frozen=True)
class ModelSet:
    """What answers, and what is tried out beside it; ``share``: of the customers, what the canary answers."""

    active: ServingModel
    canary: ServingModel | None = None
    share: float = 0.0
    shadow: Shadow | None = None

    def with_active(self, active: ServingModel) -> ModelSet:
        """With another active model; what the shadow has seen of the old one is not held against the new one."""
        shadow = None if self.shadow is None else self.shadow.afresh()
        return ModelSet(active, self.canary, self.share, shadow)

    @property
    def models(self) -> list[Model]:
        """All models that are in use."""
        return [one.model for one in (self.active, self.canary, self.shadow) if one is not None]


class ModelRouter:
    """Answers batches by a set of models, which may be replaced at any time."""

    def __init__(self, model_set: ModelSet) -> None:
        self.model_set = model_set

    async def score(self, parts: Sequence[ScoreRequest]) -> Sequence[Outcome]:
        """Scores of each part; RequestError as its scorers raise it."""
        model_set = self.model_set
        if model_set.canary is None:
            scores: Sequence[Outcome] = await model_set.active.scorer.score(parts)
        else:
            scores = await _split(model_set.active, model_set.canary, model_set.share, parts)
        if model_set.shadow is not None:
            model_set.shadow.offer(parts, scores)
        return scores


def drawn(customer_id: str) -> float:
    """Where a customer stands in the draw, from 0 to below 1: the same wherever and whenever it is asked for."""
    digest = blake2b(customer_id.encode("utf-8", "surrogateescape"), digest_size=DRAW_BYTES, key=DRAWN).digest()
    return int.from_bytes(digest) / 256**DRAW_BYTES


def in_canary(customer_ids: Sequence[str], share: float) -> list[bool]:
    """Who is answered by the canary. A larger share is the same customers, and others."""
    return [drawn(customer_id) < share for customer_id in customer_ids]


async def _split(
    active: ServingModel, canary: ServingModel, share: float, parts: Sequence[ScoreRequest]
) -> Sequence[Outcome]:
    """Both models' answers, put together part by part."""
    places = [_places(in_canary(part.customer_ids, share)) for part in parts]
    found = await asyncio.gather(
        *(
            _answers(served, [_some(part, at[number]) for part, at in zip(parts, places, strict=True)])
            for number, served in enumerate((active, canary))
        )
    )
    return [_together(list(zip(at, outcomes, strict=True))) for at, *outcomes in zip(places, *found, strict=True)]


def _places(chosen: Sequence[bool]) -> tuple[list[int], list[int]]:
    """Positions of the customers that stay with the active model, and of those that are the canary's."""
    every = range(len(chosen))
    return [at for at in every if not chosen[at]], list(compress(every, chosen))


def _some(part: ScoreRequest, places: Sequence[int]) -> ScoreRequest:
    """The customers of a part at some positions."""
    if len(places) == len(part.customer_ids):
        return part
    refused = {row: part.refused[at] for row, at in enumerate(places) if at in part.refused} if part.refused else {}
    return replace(part, customer_ids=[part.customer_ids[at] for at in places], refused=refused)


async def _answers(served: ServingModel, parts: Sequence[ScoreRequest]) -> list[Outcome | None]:
    """The scores of each part, None for a part without customers."""
    asked = [part for part in parts if part.customer_ids]
    found = iter(await served.scorer.score(asked) if asked else ())
    return [next(found) if part.customer_ids else None for part in parts]


def _together(groups: Sequence[tuple[Sequence[int], Outcome | None]]) -> Outcome:
    """The outcome of a part from those of its groups: an error of one is that of all."""
    placed: list[tuple[Sequence[int], Scores]] = []
    for places, outcome in groups:
        if isinstance(outcome, RequestError):
            return outcome
        if outcome is not None:
            placed.append((places, outcome))
    return placed[0][1] if len(placed) == 1 else Scores.placed(placed)
