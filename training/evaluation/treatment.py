"""The section ``[treatment]`` of a config: reading the randomised offer and evaluating policies on it."""

from __future__ import annotations

import duckdb
import numpy as np

from feature_store.errors import InputError
from feature_store.offline.store import OfflineStore
from feature_store.sql import identifier
from training.evaluation.off_policy import check_chance, experiment
from training.evaluation.scorer import EvaluationScorer
from training.evaluation.uplift import evaluate_treatment
from training.evidence import Finding, Value, hashed_ids


def evaluate_randomised_offer(scorer: EvaluationScorer, source: OfflineStore) -> tuple[list[Value], list[Finding]]:
    """Evaluate treatment policies on the randomised offer of the config, if there is one.

    Features are those of the newest row of each customer; customers without a row are left out.

    Returns:
        The values of the policies, and a warning if the stated probabilities are implausible.

    Raises:
        InputError: If the columns cannot be read, or are not those of a randomised trial.
    """
    section = scorer.config.treatment
    if section is None:
        return [], []
    chance = section.probability if isinstance(section.probability, float) else identifier(section.probability)
    columns = (
        f"{identifier(section.column)}::DOUBLE AS treated, {chance}::DOUBLE AS chance, "
        f"{identifier(section.outcome)}::DOUBLE"
    )
    try:
        table = source.connection.execute(
            f"SELECT customer_id, {columns} AS outcome FROM attributes ORDER BY customer_id"
        ).fetchnumpy()
    except duckdb.Error as error:
        raise InputError(f"treatment: a column named there cannot be read: {str(error).splitlines()[0]}") from error
    ids = np.asarray(table["customer_id"], dtype=object)
    treated, chances, outcome = (np.ma.filled(table[n].astype(float), np.nan) for n in ("treated", "chance", "outcome"))
    rows = scorer.table.rows
    newest = {name: at for at, name in enumerate(rows.customer_id)}
    index = np.array([newest.get(name, -1) for name in ids], dtype=np.intp)
    usable = (index >= 0) & np.isfinite(treated)
    hashes = hashed_ids(ids[usable].tolist())
    trial = experiment(treated[usable], chances[usable], outcome[usable], hashes, section.cost)
    warning = check_chance(trial)
    features = scorer.models.matrix(rows.state[index[usable]]).astype(np.float64)
    return evaluate_treatment(features, trial, seed=scorer.seed), [warning] if warning else []
