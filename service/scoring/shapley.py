"""Why a score is what it is: how far each feature moves it away from the typical customer's.

::

    state as of now, typical state ──► mixed states ──► one graph run ──► weights ──► a contribution per feature
                                       some features of the one, the rest of the other

Contributions are Shapley values in points of probability, of *players*: the slots that say the same over different
spans count as one, because of slots that go together no single one can be told to be the cause, and because no customer
has many purchases in 28 days and none in 56. Up to EXACT_PLAYERS that differ from the typical customer's, all mixtures
are looked at. Beyond, steps of the same drawn orders of players are, each with its reverse, which is exact where no
three features act together.

In both cases contributions are a fixed matrix times the probabilities of the mixtures. What it guarantees: they sum to
the difference; a player with the typical value, or one that the model does not look at, has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from feature_store.bundles.bundle import OFFERS
from feature_store.state.layout import Floats, StateLayout
from service.errors import Reason, RequestError
from service.scoring.explanation_text import Player, players_of, say
from tidemark.explanation import Contribution, Explanation

EXACT_PLAYERS: Final = 10
"""Of which there are 1,024 mixtures: two or three milliseconds of a graph run."""
SAMPLED_ROWS: Final = 1024
"""About as many where there are more players, and never fewer than LEAST_PAIRS of orders."""
LEAST_PAIRS: Final = 2
SEED: Final = 7
LEAST: Final = 1e-7
"""A contribution below is rounding: probabilities are float32."""

Members = npt.NDArray[np.bool_]
Probabilities = Callable[[Floats], Floats]
"""Probabilities ``[n, offers]`` of states ``[n, slots]`` as of now."""


@dataclass(frozen=True, eq=False)
class Mixtures:
    """Which players are the customer's, ``[rows, players]``: from nobody in the first row to everybody in the last.

    weights ``[players, rows]``, times what comes out for the rows, are the contributions.
    """

    members: Members
    weights: Floats


@lru_cache(maxsize=EXACT_PLAYERS)
def exact(players: int) -> Mixtures:
    """All mixtures: Shapley's own formula."""
    members = (np.arange(2**players)[:, np.newaxis] >> np.arange(players) & 1).astype(bool)
    size = members.sum(axis=1)
    share = np.array([1 / (players * math.comb(players - 1, others)) for others in range(players)])
    weights = np.where(members.T, share[np.maximum(size - 1, 0)], -share[np.minimum(size, players - 1)])
    return Mixtures(members, weights)


@lru_cache(maxsize=32)
def sampled(players: int, rows: int = SAMPLED_ROWS) -> Mixtures:
    """Steps of orders drawn once and for all, each with its reverse: about so many rows."""
    drawn = np.random.default_rng(SEED)
    pairs = max(LEAST_PAIRS, rows // (2 * (players - 1)))
    orders = [order for _ in range(pairs) for one in [drawn.permutation(players)] for order in (one, one[::-1])]
    last = len(orders) * (players - 1) + 1
    members, weights = np.zeros((last + 1, players), dtype=bool), np.zeros((players, last + 1))
    members[last] = True
    for at, order in enumerate(orders):
        steps = 1 + at * (players - 1) + np.arange(players - 1)
        for step, row in enumerate(steps):
            members[row, order[: step + 1]] = True
        np.add.at(weights, (order, [*steps, last]), 1 / len(orders))
        np.add.at(weights, (order, [0, *steps]), -1 / len(orders))
    return Mixtures(members, weights)


def mixtures(players: int) -> Mixtures:
    """All of them where that is affordable."""
    return exact(players) if players <= EXACT_PLAYERS else sampled(players)


@dataclass(frozen=True, eq=False)
class Attribution:
    """What moved a customer's scores.

    baseline ``[offers]``; players: indexes of those that differ from the typical customer's (one where none does);
    contributions ``[offers, players]``; differ ``[slots]``; alone ``[offers, slots]``: what a slot does by itself, 0
    where its player has no other; exact: all mixtures were looked at.
    """

    baseline: Floats
    players: Sequence[int]
    contributions: Floats
    differ: Members
    alone: Floats
    exact: bool


class Wanted(NamedTuple):
    """How a caller wants to be told why: at most so many contributions one by one, and in which form."""

    most: int
    tell: Callable[[Explanation], bytes]


class Explainer:
    """Explains the scores of one model against its typical customer."""

    def __init__(self, layout: StateLayout, baseline: Floats, probabilities: Probabilities) -> None:
        self._layout: Final = layout
        self._baseline: Final = baseline
        self._probabilities: Final = probabilities
        self.players: Final[Sequence[Player]] = players_of(layout.features)
        self._crowded: Final = np.zeros(len(layout.features), dtype=bool)
        for player in self.players:
            self._crowded[list(player.slots)] = len(player.slots) > 1

    def tell(
        self, slots: Floats, age_s: Floats, answered: Floats, wanted: Wanted
    ) -> list[Mapping[str, bytes] | RequestError]:
        """The same as :meth:`explain`, in the form that is wanted."""
        return [
            why if isinstance(why, RequestError) else {offer: wanted.tell(one) for offer, one in why.items()}
            for why in self.explain(slots, age_s, answered, wanted.most)
        ]

    def explain(
        self, slots: Floats, age_s: Floats, answered: Floats, most: int
    ) -> list[Mapping[str, Explanation] | RequestError]:
        """Why states ``[n, slots]`` of ``age_s`` seconds ago score as ``answered`` (``[n, offers]``), by offer.

        At most ``most`` contributions are told one by one. An offer that nothing was learnt about has no explanation.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # a state from another age may be beyond all numbers
            now = self._layout.advance(slots, age_s)
            return [self._explained(one, said, most) for one, said in zip(now, answered, strict=True)]

    def _explained(self, now: Floats, answered: Floats, most: int) -> Mapping[str, Explanation] | RequestError:
        found = self.attribute(now, answered)
        if not (np.isfinite(found.contributions).all() and np.isfinite(found.baseline).all()):
            message = "the score of this customer cannot be explained: load the features of the serving model again"
            return RequestError(Reason.STATE_UNREADABLE, message, "customer_id")
        return {
            offer: self._told(offer, at, found, now, float(answered[at]), most)
            for at, offer in enumerate(OFFERS)
            if answered[at] or found.baseline[at]
        }

    def attribute(self, now: Floats, answered: Floats) -> Attribution:
        """Contributions for a state ``[slots]`` as of now, for which ``answered`` (``[offers]``) was said."""
        differ = ~((now == self._baseline) | (np.isnan(now) & np.isnan(self._baseline)))
        players = [at for at, player in enumerate(self.players) if differ[list(player.slots)].any()] or [0]
        mixed = mixtures(len(players))
        of = np.zeros(len(now), dtype=np.intp)  # slots of the other players are the same in both states
        for at, player in enumerate(players):
            of[list(self.players[player].slots)] = at
        asked = np.flatnonzero(differ & self._crowded)
        single = np.eye(len(now), dtype=bool)[asked]
        rows = np.concatenate([mixed.members[:, of], single, ~single])
        scores = self._probabilities(np.where(rows, now, self._baseline)).T
        scores[:, (last := len(mixed.members) - 1)] = answered  # to the bit what the caller is told
        baseline, whole = scores[:, 0], scores[:, : last + 1]
        alone = np.zeros((len(scores), len(now)))
        into, out_of = np.split(scores[:, last + 1 :], 2, axis=1)
        alone[:, asked] = into - baseline[:, np.newaxis] + answered[:, np.newaxis] - out_of
        return Attribution(baseline, players, whole @ mixed.weights.T, differ, alone, len(players) <= EXACT_PLAYERS)

    def _told(self, offer: str, at: int, found: Attribution, now: Floats, answered: float, most: int) -> Explanation:
        """In words, the largest contributions first."""
        amounts = found.contributions[at]
        ranked = [int(i) for i in np.argsort(-np.abs(amounts), kind="stable")[:most] if abs(amounts[i]) > LEAST]
        told = [
            self._contribution(offer, found.players[i], float(amounts[i]), (found.differ, found.alone[at]), now)
            for i in ranked
        ]
        baseline = float(found.baseline[at])
        other = answered - baseline - math.fsum(one.contribution for one in told)
        return Explanation(baseline, told, other, found.exact)

    def _contribution(
        self, offer: str, at: int, amount: float, slots: tuple[Members, Floats], now: Floats
    ) -> Contribution:
        """About the slot that by itself does most of it."""
        player, (differ, alone), sign = self.players[at], slots, math.copysign(1.0, amount)
        first = max(player.slots, key=lambda slot: (bool(differ[slot]), float(alone[slot]) * sign))
        ordered = [first, *(slot for slot in player.slots if slot != first)]
        features = self._layout.features
        return say(offer, player, amount, [(features[i], float(now[i]), float(self._baseline[i])) for i in ordered])
