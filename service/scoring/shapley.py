"""Why a score is what it is: how far each feature moves it away from the score of the typical customer.

::

    state as of now ──┐
                      ├─► mixed states, one per coalition ─► one model run ─► weights ─► a contribution per player
    typical state ────┘   (the coalition's features of the customer, all others of the typical customer)

Contributions are Shapley values (Shapley, "A Value for n-Person Games", 1953) in points of probability, with the
typical customer as the single baseline (Sundararajan and Najmi, "The Many Shapley Values for Model Explanation", 2020).

A *player* is a group of slots that say the same over different spans, such as purchases in 7, 28 and 56 days. They move
together, so no single one can be named as the cause; and no customer has many purchases in 28 days and none in 56.

With up to EXACT_PLAYERS differing players all coalitions are evaluated, so the values are exact. Beyond that we use
antithetic permutation sampling with a fixed seed (Mitchell et al., "Sampling Permutations for Shapley Value
Estimation", JMLR 2022): each permutation is used together with its reverse, which is exact if no three players
interact.

Either way the contributions are a fixed matrix times the probabilities of the coalitions. This guarantees that they sum
to the difference between the two scores, and that a player with the typical value, or one that the model ignores, has a
contribution of zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from feature_store.bundles.bundle import OFFERS
from feature_store.state.layout import Floats, StateLayout
from service.errors import Reason, RequestError
from service.scoring.explanation_text import Player, contribution_of, players_of
from tidemark.explanation import Contribution, Explanation

EXACT_PLAYERS: Final = 10
"""Ten players form 1,024 coalitions, a model run of two or three milliseconds."""
SAMPLED_ROWS: Final = 1024
"""The approximate number of coalitions that are sampled, unless MIN_PAIRS takes more."""
MIN_PAIRS: Final = 2
"""Permutations that are drawn at least; each is used together with its reverse."""
SEED: Final = 7
MIN_CONTRIBUTION: Final = 1e-7
"""A smaller contribution is a rounding error: probabilities are float32."""

Bools = npt.NDArray[np.bool_]
Probabilities = Callable[[Floats], Floats]
"""Computes the probabilities ``[n, offers]`` of states ``[n, slots]`` as of now."""


@dataclass(frozen=True, eq=False)
class Coalitions:
    """The coalitions that are evaluated, and how contributions follow from their probabilities.

    Attributes:
        members: bool ``[coalitions, players]``: which players have the customer's values. The first coalition is empty,
            the last one has all players.
        weights: float64 ``[players, coalitions]``; times the probabilities of the coalitions, the contributions.
    """

    members: Bools
    weights: Floats


@lru_cache(maxsize=EXACT_PLAYERS)
def exact(players: int) -> Coalitions:
    """All coalitions of this number of players, with the weights of Shapley's formula."""
    members = (np.arange(2**players)[:, np.newaxis] >> np.arange(players) & 1).astype(bool)
    size = members.sum(axis=1)
    share = np.array([1 / (players * math.comb(players - 1, others)) for others in range(players)])
    weights = np.where(members.T, share[np.maximum(size - 1, 0)], -share[np.minimum(size, players - 1)])
    return Coalitions(members, weights)


@lru_cache(maxsize=32)
def sampled(players: int, rows: int = SAMPLED_ROWS) -> Coalitions:
    """The coalitions along sampled permutations and their reverses: about ``rows`` of them, always the same ones."""
    generator = np.random.default_rng(SEED)
    orders = []
    for _ in range(max(MIN_PAIRS, rows // (2 * (players - 1)))):
        order = generator.permutation(players)
        orders += [order, order[::-1]]
    last = len(orders) * (players - 1) + 1
    members, weights = np.zeros((last + 1, players), dtype=bool), np.zeros((players, last + 1))
    members[last] = True
    for at, order in enumerate(orders):
        steps = 1 + at * (players - 1) + np.arange(players - 1)
        for step, row in enumerate(steps):
            members[row, order[: step + 1]] = True
        np.add.at(weights, (order, [*steps, last]), 1 / len(orders))
        np.add.at(weights, (order, [0, *steps]), -1 / len(orders))
    return Coalitions(members, weights)


def coalitions(players: int) -> Coalitions:
    """All coalitions of this number of players if there are few, else sampled ones."""
    return exact(players) if players <= EXACT_PLAYERS else sampled(players)


@dataclass(frozen=True, eq=False)
class Attribution:
    """What moved the scores of a customer.

    Attributes:
        baseline: The probabilities of the typical customer, ``[offers]``.
        players: Indexes of the players that differ from the typical customer's; one of them if none differs.
        contributions: float64 ``[offers, players]``.
        differ: bool ``[slots]``: whether a slot differs from the typical customer's.
        alone: float64 ``[offers, slots]``: the effect of a slot by itself; 0 if its player has no other slot.
        exact: Whether all coalitions were evaluated.
    """

    baseline: Floats
    players: Sequence[int]
    contributions: Floats
    differ: Bools
    alone: Floats
    exact: bool


class Explainer:
    """Explains the scores of one model against its typical customer."""

    def __init__(self, layout: StateLayout, baseline: Floats, probabilities: Probabilities) -> None:
        """Make an explainer.

        Args:
            layout: The slots of a state.
            baseline: The state of the typical customer, ``[slots]``.
            probabilities: The model.
        """
        self._layout: Final = layout
        self._baseline: Final = baseline
        self._probabilities: Final = probabilities
        self.players: Final[Sequence[Player]] = players_of(layout.features)
        self._shares_player: Final = np.zeros(len(layout.features), dtype=bool)
        for player in self.players:
            self._shares_player[list(player.slots)] = len(player.slots) > 1

    def explain(
        self, slots: Floats, age_s: Floats, probabilities: Floats, max_reasons: int
    ) -> list[Mapping[str, Explanation] | RequestError]:
        """Explain the scores of some customers.

        Args:
            slots: The customers' states as they are stored, ``[n, slots]``.
            age_s: Seconds since the time of each state, ``[n]``.
            probabilities: The probabilities that the callers receive, ``[n, offers]``.
            max_reasons: Maximum number of contributions in an explanation.

        Returns:
            For each customer the explanations by offer, without offers for which nothing was learnt, or why the
            customer's scores cannot be explained.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # a state in the far past or future may overflow
            now = self._layout.advance(slots, age_s)
            return [self._explain_one(*row, max_reasons) for row in zip(now, probabilities, strict=True)]

    def _explain_one(
        self, now: Floats, probabilities: Floats, max_reasons: int
    ) -> Mapping[str, Explanation] | RequestError:
        attribution = self.attribute(now, probabilities)
        if not (np.isfinite(attribution.contributions).all() and np.isfinite(attribution.baseline).all()):
            message = "the score of this customer cannot be explained: load the features of the serving model again"
            return RequestError(Reason.STATE_UNREADABLE, message, "customer_id")
        return {
            offer: self._in_words(offer, at, attribution, now, float(probabilities[at]), max_reasons)
            for at, offer in enumerate(OFFERS)
            if probabilities[at] or attribution.baseline[at]
        }

    def attribute(self, now: Floats, probabilities: Floats) -> Attribution:
        """Attribute the probabilities ``[offers]`` of a state as of now, ``[slots]``, to its players."""
        differ = ~((now == self._baseline) | (np.isnan(now) & np.isnan(self._baseline)))
        players = [at for at, player in enumerate(self.players) if differ[list(player.slots)].any()] or [0]
        mixed = coalitions(len(players))
        player_of = np.zeros(len(now), dtype=np.intp)  # slots of the other players are the same in both states
        for at, player in enumerate(players):
            player_of[list(self.players[player].slots)] = at
        tested = np.flatnonzero(differ & self._shares_player)
        single = np.eye(len(now), dtype=bool)[tested]
        rows = np.concatenate([mixed.members[:, player_of], single, ~single])
        scores = self._probabilities(np.where(rows, now, self._baseline)).T
        last = len(mixed.members) - 1
        scores[:, last] = probabilities  # to the bit what the caller receives
        baseline, of_coalitions = scores[:, 0], scores[:, : last + 1]
        alone = np.zeros((len(scores), len(now)))
        added, removed = np.split(scores[:, last + 1 :], 2, axis=1)
        alone[:, tested] = added - baseline[:, np.newaxis] + probabilities[:, np.newaxis] - removed
        contributions = of_coalitions @ mixed.weights.T
        return Attribution(baseline, players, contributions, differ, alone, len(players) <= EXACT_PLAYERS)

    def _in_words(
        self, offer: str, at: int, attribution: Attribution, now: Floats, probability: float, max_reasons: int
    ) -> Explanation:
        """The explanation of one offer, the largest contributions first."""
        amounts = attribution.contributions[at]
        largest = np.argsort(-np.abs(amounts), kind="stable")[:max_reasons].tolist()
        contributions = [
            self._contribution(offer, attribution, at, i, now) for i in largest if abs(amounts[i]) > MIN_CONTRIBUTION
        ]
        baseline = float(attribution.baseline[at])
        other = probability - baseline - math.fsum(each.contribution for each in contributions)
        return Explanation(baseline, contributions, other, attribution.exact)

    def _contribution(self, offer: str, attribution: Attribution, at: int, i: int, now: Floats) -> Contribution:
        """The contribution of a player, described by the slot that has the largest effect by itself."""
        player, amount = self.players[attribution.players[i]], float(attribution.contributions[at, i])
        differ, alone, sign = attribution.differ, attribution.alone[at], math.copysign(1.0, amount)
        first = max(player.slots, key=lambda slot: (bool(differ[slot]), float(alone[slot]) * sign))
        ordered = [first, *(slot for slot in player.slots if slot != first)]
        features = self._layout.features
        slots = [(features[slot], float(now[slot]), float(self._baseline[slot])) for slot in ordered]
        return contribution_of(offer, player, amount, slots)
