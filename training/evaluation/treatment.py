"""The section ``[treatment]`` of a config: reading the randomised offer and evaluating policies on it."""

from __future__ import annotations

from dataclasses import dataclass

import duckdb
import numpy as np
import numpy.typing as npt

from feature_store.errors import InputError
from feature_store.offline.store import OfflineStore
from feature_store.sql import identifier
from feature_store.state.layout import Floats
from training.config import Treatment
from training.evaluation.off_policy import check_chance, experiment
from training.evaluation.scorer import EvaluationScorer
from training.evaluation.uplift import evaluate_treatment
from training.evidence import Finding, Value, hashed_ids


@dataclass(frozen=True)
class _Offers:
    """The customers who took part, in ascending order of the id; each column is ``[n]``.

    Attributes:
        customer_id: The id.
        treated: 1 if the offer was made, otherwise 0.
        chance: The probability with which it was made.
        outcome: The outcome.
        time: Unix seconds of the offer; NaN for a snapshot.
    """

    customer_id: npt.NDArray[np.object_]
    treated: Floats
    chance: Floats
    outcome: Floats
    time: Floats


def evaluate_randomised_offer(scorer: EvaluationScorer, source: OfflineStore) -> tuple[list[Value], list[Finding]]:
    """Evaluate treatment policies on the randomised offer of the config, if there is one.

    Every customer who took part counts, whether active or not: leaving out customers by what they did after the offer
    would undo the randomisation. Features use only what was known at the time of the offer; attributes without times
    are missing, because their values may be later. In a snapshot, features are the row of the customer.

    Returns:
        The values of the policies, and a warning if the stated probabilities are implausible.

    Raises:
        InputError: If the columns cannot be read, or are not those of a randomised trial.
    """
    section = scorer.config.treatment
    if section is None:
        return [], []
    offers = _read_offers(section, source)
    trial = experiment(
        offers.treated, offers.chance, offers.outcome, hashed_ids(offers.customer_id.tolist()), section.cost
    )
    warning = check_chance(trial)
    layout = scorer.table.spec.layout
    if section.time is None:
        snapshot = source.states(layout, source.summary.end)
        states = snapshot.slots[np.searchsorted(snapshot.customer_ids.astype(str), offers.customer_id.astype(str))]
    else:
        states = source.states_at_own_times(layout, offers.customer_id.tolist(), offers.time.tolist())
    features = scorer.models.matrix(states).astype(np.float64)
    return evaluate_treatment(features, trial, seed=scorer.seed), [warning] if warning else []


def _read_offers(section: Treatment, source: OfflineStore) -> _Offers:
    """Read the columns of the offer; InputError if that is not possible, or a time is missing."""
    chance = section.probability if isinstance(section.probability, float) else identifier(section.probability)
    try:
        table = source.connection.execute(
            f"""SELECT customer_id, {identifier(section.column)}::DOUBLE AS treated, {chance}::DOUBLE AS chance,
            {identifier(section.outcome)}::DOUBLE AS outcome, {_time_sql(section, source)} AS time
            FROM attributes WHERE treated IS NOT NULL ORDER BY customer_id"""
        ).fetchnumpy()
    except duckdb.Error as error:
        raise InputError(f"treatment: a column named there cannot be read: {str(error).splitlines()[0]}") from error
    ids = np.asarray(table.pop("customer_id"), dtype=object)
    offers = _Offers(ids, **{name: np.ma.filled(values.astype(float), np.nan) for name, values in table.items()})
    if section.time is not None and (without := int((~np.isfinite(offers.time)).sum())):
        raise InputError(
            f"treatment.time: {without:,} of {len(ids):,} customers who took part have no time in column "
            f"'{section.time}': the time of the draw is needed for those without the offer, too"
        )
    return offers


def _time_sql(section: Treatment, source: OfflineStore) -> str:
    """SQL for the time of the offer in unix seconds."""
    if section.time is None:
        return "NULL::DOUBLE"
    column = identifier(section.time)
    kind = source.attribute_columns.get(section.time, "")
    return f"epoch({column})" if kind.startswith(("TIMESTAMP", "DATE")) else f"{column}::DOUBLE"
