"""Explains the threshold of a customer in money: what a win is worth, what a contact gains and costs, and a sentence.

For example: "Never, because a win is worth 3.10 and the offer costs 3.00: even if the customer were certain to leave, a
contact would lose 0.08." The formula of the threshold is that of ``training.graph.thresholds``.
"""

from __future__ import annotations

import math
from typing import Final

from feature_store.bundles.bundle import ECONOMICS, OFFER_FIGURES, VALUE_IF_WON
from feature_store.state.layout import Floats
from tidemark.explanation import ThresholdExplanation

INTENDED: Final = {"churn": "leave", "propensity": "buy"}
"""What the customers do for whom an offer is intended."""

_MARGIN: Final = ECONOMICS.index("margin")


def explain_threshold(offer: str, economics: Floats, value_if_won: float, threshold: float) -> ThresholdExplanation:
    """What a threshold is made of.

    Args:
        offer: The offer.
        economics: The row of the graph's input for this customer, in the order of ECONOMICS; NaN for figures that the
            graph takes from the customer's data.
        value_if_won: The value that the graph computed or was given.
        threshold: The threshold that it computed.
    """
    contact_cost, offer_cost, success_rate, redemption_rate, budget_price = (
        float(economics[ECONOMICS.index(f"{offer}.{name}")]) for name in OFFER_FIGURES
    )
    margin = float(economics[_MARGIN])
    by_model = math.isnan(economics[ECONOMICS.index(f"{offer}.{VALUE_IF_WON}")])
    explanation = ThresholdExplanation(
        value_if_won=value_if_won,
        margin=margin if by_model else None,
        spend_if_won=value_if_won / margin if by_model and margin > 0 else None,
        contact_cost=_known(contact_cost),
        offer_cost=_known(offer_cost),
        success_rate=success_rate,
        redemption_rate=redemption_rate,
        budget_price=budget_price,
        gain_if_intended=_known(success_rate * (value_if_won - offer_cost) - contact_cost),
        cost_if_other=_known(redemption_rate * offer_cost + contact_cost),
        sentence="",
    )
    return explanation._replace(sentence=_sentence(offer, explanation, threshold))


def _known(figure: float) -> float | None:
    return None if math.isnan(figure) else figure


def _sentence(offer: str, why: ThresholdExplanation, threshold: float) -> str:
    text = _never(offer, why) if threshold >= 1 else _from(offer, why, threshold)
    if why.margin is None:
        return f"{text} The value of a win is the request's."
    if why.spend_if_won is None:
        return text
    return f"{text} The value of a win is {why.margin:.0%} of a spend of {_money(why.spend_if_won)}."


def _never(offer: str, why: ThresholdExplanation) -> str:
    if why.offer_cost is None or why.gain_if_intended is None:
        return f"Never, because a win is worth {_money(why.value_if_won)} and this customer's costs are too high."
    worth = f"Never, because a win is worth {_money(why.value_if_won)} and the offer costs {_money(why.offer_cost)}"
    if why.value_if_won <= why.offer_cost:
        return f"{worth}."
    gain = why.gain_if_intended
    most = f"gain {_money(gain)}" if gain > 0 else f"lose {_money(-gain)}"
    price = f", and it has to gain {_money(why.budget_price)}" if why.budget_price > 0 else ""
    return f"{worth}: even if the customer were certain to {INTENDED[offer]}, a contact would {most}{price}."


def _from(offer: str, why: ThresholdExplanation, threshold: float) -> str:
    if why.gain_if_intended is None or why.cost_if_other is None:
        return (
            f"From a probability of {threshold:.1%} on, a contact pays: a win is worth {_money(why.value_if_won)}, and "
            "the costs are this customer's."
        )
    price = f" and has to gain {_money(why.budget_price)} because the budget is limited" if why.budget_price > 0 else ""
    return (
        f"From a probability of {threshold:.1%} on, a contact pays: a win is worth {_money(why.value_if_won)}, so a "
        f"contact gains {_money(why.gain_if_intended)} on average if the customer would {INTENDED[offer]}, costs "
        f"{_money(why.cost_if_other)} if not{price}."
    )


def _money(amount: float) -> str:
    return f"{amount:,.2f}"
