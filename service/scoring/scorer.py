"""The main path: customer ids → states → model → scores.

::

    requests ─► ids ─► one MGET ─► unpack ─► one model run ─► rows with named columns ─► a score or an error for each id
                          │           │            │
                          │           │            └ a figure is not finite       STATE_UNREADABLE for this id
                          │           └ absent, torn, too old, without consent    an error for this id
                          └ Redis does not answer ─► states read recently, for requests that allow stale scores
                                                  └ none                          FEATURE_STORE_UNAVAILABLE

Nothing here knows of gRPC, protobuf, Redis or onnxruntime.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Final, NamedTuple, Protocol

import numpy as np

from feature_store.bundles.bundle import OFFERS
from feature_store.errors import StoreUnavailableError
from feature_store.state.layout import Floats, StateBatch
from feature_store.state.profile import MIN_INTEREST_WEIGHT, Interest
from service.errors import RequestError, store_error
from service.scoring.alert_spikes import SpikeGuard
from service.scoring.model import Model
from service.scoring.row_errors import Bools, row_errors, usable_rows
from service.scoring.threshold_text import explain_threshold
from service.scoring.types import NO_INTERESTS, SCORE_ROW, Rows, ScoreRequest, Scores, mute, rows_of
from service.telemetry.batch_stages import BatchObserver
from tidemark.explanation import Explanation

OFF_LOOP_ROWS: Final = 64
"""A model run of more rows, about a quarter of a millisecond, goes to a thread. It releases the GIL."""

NO_ROW: Final = np.zeros((), SCORE_ROW)


class StateSource(Protocol):
    """Where states come from."""

    async def read(self, customer_ids: Sequence[str]) -> StateBatch:
        """The states of customers, in the order of the ids.

        Raises:
            StoreUnavailableError: The feature store does not answer.
        """

    def read_stale(self, customer_ids: Sequence[str], within_s: Sequence[float]) -> StateBatch | None:
        """States that were read at most this many seconds ago, with a bound per customer; None if none are cached."""


class Guards(NamedTuple):
    """The guards against spikes of alerts, one for each offer."""

    churn: SpikeGuard
    propensity: SpikeGuard


class Scorer:
    """Scores the requests of a batch together: one read and one model run for all of them."""

    def __init__(
        self,
        store: StateSource,
        model: Model,
        guards: Guards | None = None,
        observer: BatchObserver | None = None,
        *,
        counts: Counter[str] | None = None,
        on_loop_rows: int = OFF_LOOP_ROWS,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make a scorer.

        Args:
            store: Where states are read.
            model: The model that computes the scores.
            guards: Watch for spikes of alerts; None to watch for none.
            observer: Is notified of each stage of a batch; None if nobody measures.
            counts: Counts scores that were ``stale`` or ``explained``; scorers may share it.
            on_loop_rows: Larger batches run in a thread, so that the event loop goes on meanwhile.
            clock: Unix seconds.
            monotonic: Seconds of a clock that never goes back, for measurements.
        """
        self.counts: Final[Counter[str]] = Counter() if counts is None else counts
        self._store: Final = store
        self._model: Final = model
        self._guards: Final = guards
        self._observer: Final = observer
        self._on_loop_rows: Final = on_loop_rows
        self._clock: Final = clock
        self._monotonic: Final = monotonic
        self._defaults = np.tile(model.economics, (OFF_LOOP_ROWS, 1))
        self._model_thread: Final = ThreadPoolExecutor(1, "model")
        self._explainer_thread: Final = ThreadPoolExecutor(1, "explainer")

    async def score(self, requests: Sequence[ScoreRequest]) -> Sequence[Scores | RequestError]:
        """Score the customers of some requests.

        Returns:
            For each request its scores, or the error of the request as a whole.

        Raises:
            RequestError: UNAVAILABLE: the feature store does not answer, and no request can be answered from states
                that were read recently.
        """
        ids = [customer_id for request in requests for customer_id in request.customer_ids]
        started = self._monotonic()
        try:
            states = await self._store.read(ids)
        except StoreUnavailableError as error:
            self._stage_done("redis", started)
            return await self._score_stale(requests, store_error(error))
        self._stage_done("redis", started)
        return await self._score(requests, states)

    async def _score_stale(self, requests: Sequence[ScoreRequest], error: RequestError) -> list[Scores | RequestError]:
        """Score the requests that allow stale states from states read recently; the others get the error."""
        lenient = [request for request in requests if request.allow_stale_s is not None]
        ids = [customer_id for request in lenient for customer_id in request.customer_ids]
        bounds = [request.allow_stale_s or 0.0 for request in lenient for _ in request.customer_ids]
        states = self._store.read_stale(ids, bounds) if lenient else None
        if states is None:
            raise error
        scores = iter(await self._score(lenient, states))
        return [error if request.allow_stale_s is None else next(scores) for request in requests]

    async def _score(self, requests: Sequence[ScoreRequest], states: StateBatch) -> list[Scores]:
        now, started = self._clock(), self._monotonic()
        economics = self._economics(requests, len(states.found))
        table = await self._run_model(states, now, economics)
        self._stage_done("graph", started)
        rows, usable = rows_of(table), usable_rows(states, table)
        if usable is not None:
            rows[~usable] = NO_ROW
        if self._observer is not None:
            ages = now - states.as_of
            self._observer.features_aged(ages if usable is None else ages[usable])
        interests = self._apply_records(rows, states, usable, now) if states.profiles else {}
        if states.stale:
            self._mark_stale(rows, usable)
        if self._guards is not None:
            _mark_spikes(self._guards, rows, usable, interests)
        scores = self._split(requests, _Batch(states, rows, usable, now, interests))
        if any(request.max_reasons is not None for request in requests):
            started = self._monotonic()
            scores = await self._explained(requests, scores, _Explained(states, economics, now))
            self._stage_done("explain", started)
        return scores

    async def _run_model(self, states: StateBatch, now: float, economics: Floats) -> Floats:
        """Run the model: on the loop if that takes less time than handing it to a thread."""
        if len(economics) <= self._on_loop_rows:
            return self._model.run(states, now, economics)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._model_thread, self._model.run, states, now, economics)

    def _economics(self, requests: Sequence[ScoreRequest], size: int) -> Floats:
        """The economics of every row: the model's defaults, replaced by the figures of the row's request."""
        if not any(request.economics for request in requests):
            if size > len(self._defaults):
                self._defaults = np.tile(self._model.economics, (size, 1))
            return self._defaults[:size]
        economics = np.tile(self._model.economics, (size, 1))
        start = 0
        for request in requests:
            stop = start + len(request.customer_ids)
            for column, figure in request.economics.items():
                economics[start:stop, column] = figure
            start = stop
        return economics

    def _apply_records(self, rows: Rows, states: StateBatch, usable: Bools | None, now: float) -> dict[int, Interest]:
        """Apply consent and interests from customers' records to the rows; returns the top interests by row."""
        rules, interests = self._model.interests, {}
        muted, repeated = [], []
        for row, record in states.profiles.items():
            if usable is not None and not usable[row]:
                continue
            if not record.automated_response:
                muted.append(row)
            top = record.top
            if top is None or top.weight_at(now, rules.half_life_s) < MIN_INTEREST_WEIGHT:
                continue
            interests[row] = top
            if top.views >= rules.repeated_views and record.automated_response:
                repeated.append(row)
        mute(rows, muted)
        rows["propensity"]["repeated_view"][repeated] = True
        return interests

    def _mark_stale(self, rows: Rows, usable: Bools | None) -> None:
        stale = np.ones(len(rows), dtype=np.bool_) if usable is None else usable
        rows["stale"] = stale
        self.counts["stale"] += int(np.count_nonzero(stale))

    def _split(self, requests: Sequence[ScoreRequest], batch: _Batch) -> list[Scores]:
        """The scores of each request."""
        version, scores, start = self._model.version, [], 0
        for request in requests:
            stop = start + len(request.customer_ids)
            errors = request.refused
            if batch.usable is not None or request.max_age_s is not None:
                errors = {**row_errors(request, batch.states, batch.usable, start, batch.now), **errors}
            interests = NO_INTERESTS
            if batch.interests:
                interests = {row - start: top for row, top in batch.interests.items() if start <= row < stop}
            scores.append(Scores(batch.rows[start:stop], errors, version, interests))
            start = stop
        return scores

    async def _explained(
        self, requests: Sequence[ScoreRequest], scores: Sequence[Scores], batch: _Explained
    ) -> list[Scores]:
        """The scores, with explanations where the request asked for them."""
        explained, start = [], 0
        for request, plain in zip(requests, scores, strict=True):
            max_reasons = request.max_reasons
            explained.append(plain if max_reasons is None else await self._explain(plain, batch, start, max_reasons))
            start += len(request.customer_ids)
        return explained

    async def _explain(self, scores: Scores, batch: _Explained, start: int, max_reasons: int) -> Scores:
        """The scores of a request with their explanations; a score that cannot be explained becomes an error.

        An explanation takes about a thousand rows of the model, so they are computed in a thread.

        Args:
            scores: The scores of the request.
            batch: What the scores of the batch were computed from.
            start: The row of the request's first customer in the batch.
            max_reasons: Maximum number of contributions in an explanation.
        """
        positions = np.array([at for at in range(len(scores.rows)) if at not in scores.errors], dtype=np.intp)
        states = batch.states
        slots, age_s = states.slots[start + positions], batch.now - states.as_of[start + positions]
        probabilities = np.stack([scores.rows[offer]["probability"][positions] for offer in OFFERS], axis=1)
        work = partial(self._model.explainer.explain, slots, age_s, probabilities, max_reasons)
        outcomes = await asyncio.get_running_loop().run_in_executor(self._explainer_thread, work)
        by_position = dict(zip(positions.tolist(), outcomes, strict=True))
        errors = {at: error for at, error in by_position.items() if isinstance(error, RequestError)}
        explanations = {
            at: _with_thresholds(why, scores.rows[at], batch.economics[start + at])
            for at, why in by_position.items()
            if not isinstance(why, RequestError)
        }
        self.counts["explained"] += len(explanations)
        return scores._replace(errors={**scores.errors, **errors}, explanations=explanations)

    def _stage_done(self, stage: str, started: float) -> None:
        if self._observer is not None:
            self._observer.stage_done(stage, started)


class _Batch(NamedTuple):
    """A batch after the model run; ``usable`` is None if all rows have a score, ``interests`` goes by row."""

    states: StateBatch
    rows: Rows
    usable: Bools | None
    now: float
    interests: Mapping[int, Interest]


class _Explained(NamedTuple):
    """What the scores of a batch were computed from: states, a row of economics per customer, and the time."""

    states: StateBatch
    economics: Floats
    now: float


def _with_thresholds(why: Mapping[str, Explanation], row: Rows, economics: Floats) -> dict[str, Explanation]:
    """The explanations of a score (``row``, of SCORE_ROW) by offer, with what the thresholds are made of."""
    return {
        offer: replace(
            explanation,
            threshold=explain_threshold(
                offer, economics, float(row[offer]["value_if_won"]), float(row[offer]["threshold"])
            ),
        )
        for offer, explanation in why.items()
    }


def _mark_spikes(guards: Guards, rows: Rows, usable: Bools | None, interests: Mapping[int, Interest]) -> None:
    """Report the answers of a batch to the guards, and mark the answers that belong to a spike of alerts."""
    churn, propensity = rows["churn"], rows["propensity"]
    answers = len(rows) if usable is None else int(np.count_nonzero(usable))
    items = [
        top.item_id for row, top in interests.items() if propensity["repeated_view"][row] or propensity["alert"][row]
    ]
    guards.churn.observe(answers, int(np.count_nonzero(churn["alert"])))
    guards.propensity.observe(answers, int(np.count_nonzero(propensity["alert"])), items)
    churn["spike"] = guards.churn.in_total()
    propensity["spike"] = guards.propensity.in_total()
    propensity["spike"][[row for row, top in interests.items() if guards.propensity.of_item(top.item_id)]] = True
