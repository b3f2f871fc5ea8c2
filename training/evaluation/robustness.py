"""Robustness: quality of the models on damaged data, with missing values, lost events or duplicated events."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import numpy as np
from sklearn.metrics import roc_auc_score

from feature_store.offline.store import OfflineStore
from feature_store.sql import fill_table
from feature_store.state.layout import Floats
from training.data.dataset import Rows
from training.evaluation.scorer import EvaluationScorer
from training.evidence import Damage

DAMAGES: Final = (0.0, 0.1, 0.2, 0.3)
LOST, DUPLICATED, MISSING = "lost events", "duplicated events", "missing values"


def robustness(scorer: EvaluationScorer, source: OfflineStore, done: Callable[[], None]) -> Iterator[Damage]:
    """AUC on the test rows for each kind and share of damage; ``done`` is called after each."""
    tests = {offer: scorer.table.rows.take(scorer.table.splits[offer].test) for offer in scorer.offers}
    for share in DAMAGES:
        for offer, rows in tests.items():
            yield _damage(scorer, offer, MISSING, share, rows, _with_gaps(scorer, rows.state, share))
        done()
    if scorer.table.plan is None:
        return
    with events_of(source, tests.values()):
        for kind in (LOST, DUPLICATED):
            for share in DAMAGES:
                states = _states(scorer, source, tests, kind, share)
                for offer, rows in tests.items():
                    yield _damage(scorer, offer, kind, share, rows, states[offer])
                done()


def _damage(scorer: EvaluationScorer, offer: str, kind: str, share: float, rows: Rows, state: Floats) -> Damage:
    auc = roc_auc_score(rows.label(offer), scorer.run(state)[f"{offer}_probability"])
    return Damage(offer=offer, kind=kind, share=share, auc=float(auc))


def _with_gaps(scorer: EvaluationScorer, state: Floats, share: float) -> Floats:
    gaps = np.random.default_rng(scorer.config.evaluation.seed).random(state.shape) < share
    return np.where(gaps, np.nan, state)


@contextmanager
def events_of(source: OfflineStore, tests: Iterable[Rows]) -> Iterator[None]:
    """A table ``drawn`` of the test customers' events, each with a reproducible random number from 0 to 1."""
    names = sorted({name for rows in tests for name in rows.customer_id})
    fill_table(source.connection, "tested", {"customer_id": "VARCHAR"}, [(name,) for name in names])
    digits = "substr(md5(concat_ws('|', customer_id, t, event_type, amount)), 1, 8)"
    source.connection.execute(
        f"CREATE TABLE drawn AS SELECT *, ('0x' || {digits})::UBIGINT / 4294967296.0 AS drawn "
        "FROM events SEMI JOIN tested USING (customer_id)"
    )
    try:
        yield
    finally:
        source.connection.execute("DROP TABLE drawn; DROP TABLE tested")


def _states(
    scorer: EvaluationScorer, source: OfflineStore, tests: Mapping[str, Rows], kind: str, share: float
) -> dict[str, Floats]:
    """States of each offer's rows computed from damaged events; a customer without events has the empty state."""
    if share == 0:
        return {offer: rows.state for offer, rows in tests.items()}
    query = f"FROM drawn WHERE drawn >= {share}"
    if kind == DUPLICATED:
        query = f"FROM drawn UNION ALL FROM drawn WHERE drawn < {share}"
    source.connection.execute(f"CREATE OR REPLACE VIEW damaged AS {query}")
    layout = scorer.table.spec.layout
    damaged = {offer: np.tile(layout.identity, (len(rows), 1)) for offer, rows in tests.items()}
    cutoffs = np.unique(np.concatenate([rows.cutoff for rows in tests.values()])).tolist()
    only = "customer_id IN (FROM tested)"
    for cutoff, states in zip(
        cutoffs, source.states_at(layout, cutoffs, customers=only, events="damaged"), strict=True
    ):
        place = {name: at for at, name in enumerate(states.customer_ids)}
        for offer, rows in tests.items():
            index = np.flatnonzero(rows.cutoff == cutoff)
            of = np.array([place.get(name, -1) for name in rows.customer_id[index]], dtype=np.intp)
            damaged[offer][index[of >= 0]] = states.slots[of[of >= 0]]
    source.connection.execute("DROP VIEW damaged")
    return damaged
