"""The main path: customer ids → states → graph → scores.

::

    parts ──► ids ──► one MGET ──► unpack ──► one graph run ──► a score or an error for each id
                         │            │              │
                         │            │              └ a figure is not finite       STATE_UNREADABLE, this id
                         │            └ absent, torn, too old, without consent      an error of this id
                         └ Redis away or slow ─► states read lately, where the caller allows them
                                                 └ none                             FEATURE_STORE_UNAVAILABLE

Nothing here knows of gRPC, protobuf, Redis or onnxruntime.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from feature_store.bundles.bundle import OFFERS
from feature_store.errors import StoreUnavailableError
from feature_store.state.layout import Floats, Missing, StateBatch, finite
from feature_store.state.profile import LEAST_WEIGHT, Interest, Told
from service.errors import Reason, RequestError
from service.scoring.alert_spikes import SpikeGuard
from service.scoring.model import Model
from service.scoring.shapley import Wanted
from service.store_errors import store_error
from service.telemetry.logs import customers

EARLIEST_TIME_S: Final = -62_135_596_800.0
LATEST_TIME_S: Final = 253_402_300_799.0
"""The years 1 to 9999, which a timestamp of the contract can say."""


Usable = npt.NDArray[np.bool_]

OFF_LOOP_ROWS: Final = 64
"""Beyond, which is about a quarter of a millisecond, a graph run leaves the loop to others (it releases the GIL)."""


class StateSource(Protocol):
    """Where states come from."""

    async def read(self, customer_ids: Sequence[str]) -> StateBatch:
        """States in the order of the ids; StoreUnavailableError where the store does not answer."""

    def recent(self, customer_ids: Sequence[str], within_s: Sequence[float]) -> StateBatch | None:
        """States as they were read not longer ago than this, each by its own bound; None where none are kept."""


@dataclass(slots=True, eq=False)  # not frozen: that triples the time to make one, and each call makes one
class ScoreRequest:
    """Customers to score on the same terms: a request, or a slice of a large one. Not to be changed.

    economics: figures that replace a default, by column of the graph's input; max_age_s: None for any age; refused:
    errors of ids found invalid before, by position (such an id is given as the empty string); allow_stale_s: how long
    ago a state may have been read where the store does not answer, None for never; explain: what is to be told of why
    a score is what it is.
    """

    customer_ids: Sequence[str]
    economics: Mapping[int, float] = field(default_factory=dict)
    max_age_s: float | None = None
    refused: Mapping[int, RequestError] = field(default_factory=dict)
    allow_stale_s: float | None = None
    explain: Wanted | None = None

    def slice(self, start: int, stop: int) -> ScoreRequest:
        """Customers ``start`` to ``stop`` of this part."""
        if start == 0 and stop == len(self.customer_ids):
            return self
        refused = {at - start: error for at, error in self.refused.items() if start <= at < stop}
        return replace(self, customer_ids=self.customer_ids[start:stop], refused=refused)


@dataclass(slots=True, eq=False)
class Note:
    """What there is to say about a customer's score beside the figures.

    off: no automated responses allowed; repeated_view: the top interest was looked at often enough; spike: far more
    answers than usually alert about this top interest; stale: from what was read before the store stopped answering.
    """

    off: bool
    repeated_view: bool
    spike: bool
    top: Interest | None
    stale: bool = False


class Spikes(NamedTuple):
    """Whether far more answers alert now than usually, by offer."""

    churn: bool
    propensity: bool


NO_SPIKES: Final = Spikes(churn=False, propensity=False)
NO_NOTES: Final[Mapping[int, Note]] = {}


@dataclass(slots=True, eq=False)
class Scores:
    """Scores of a part, a row for each of its ids, in their order. Not to be changed.

    A row of ``table``, float64 ``[n, 6]``, is the graph's outputs in the order of ``bundle.OUTPUTS`` (probabilities and
    thresholds 0 to 1, spend in the currency of the data), then the time in unix seconds up to which events are known.
    ``errors`` says by position why an id has no score: its row means nothing, but can be encoded. ``notes`` says by
    position what there is to add, ``explanations`` by position and offer why a score is what it is, encoded, where
    that was asked for. ``versions`` names the model of each row where not all are of ``model_version``.
    """

    table: Floats
    errors: Mapping[int, RequestError]
    model_version: str
    notes: Mapping[int, Note] = field(default_factory=lambda: NO_NOTES)
    spikes: Spikes = NO_SPIKES
    versions: Sequence[str] | None = None
    explanations: Mapping[int, Mapping[str, bytes]] | None = None

    @staticmethod
    def joined(slices: Sequence[Scores]) -> Scores:
        """The scores of a part's slices, put together again."""
        if len(slices) == 1:
            return slices[0]
        groups, start = [], 0
        for scores in slices:
            groups.append((range(start, start + len(scores.table)), scores))
            start += len(scores.table)
        return Scores.placed(groups)

    @staticmethod
    def placed(groups: Sequence[tuple[Sequence[int], Scores]]) -> Scores:
        """The scores of a part from groups of its customers, each with the positions that its rows belong to."""
        errors: dict[int, RequestError] = {}
        notes: dict[int, Note] = {}
        explanations: dict[int, Mapping[str, bytes]] = {}
        last = groups[-1][1]
        rows = sum(len(scores.table) for _, scores in groups)
        table, versions = np.empty((rows, last.table.shape[1])), [""] * rows
        for places, scores in groups:
            table[places] = scores.table
            errors.update({places[at]: error for at, error in scores.errors.items()})
            notes.update({places[at]: note for at, note in scores.notes.items()})
            explanations.update({places[at]: why for at, why in (scores.explanations or {}).items()})
            for at, version in zip(places, scores.versions or [scores.model_version] * len(places), strict=True):
                versions[at] = version
        several = None if versions.count(versions[0]) == rows else versions
        return Scores(table, errors, versions[0], notes, last.spikes, several, explanations or None)


class Scorer:
    """Scores parts together: one read and one graph run for all of them."""

    def __init__(
        self,
        store: StateSource,
        model: Model,
        clock: Callable[[], float] = time.time,
        guard: Callable[[], SpikeGuard] = SpikeGuard,
        on_loop_rows: int = OFF_LOOP_ROWS,
        *,
        took: Callable[[str, float], None] = lambda _stage, _began: None,
        aged: Callable[[Floats], None] | None = None,
        counts: Counter[str] | None = None,
    ) -> None:
        """``on_loop_rows``: larger batches leave the loop; ``counts``: where to count scores, with those of others.

        ``took`` is told of each stage of a batch when it is done, with the time (monotonic) at which it began.
        ``aged`` is told how old (seconds) the features of those customers were who get a score.
        """
        self._took: Final = took
        self._aged: Final = aged
        self.counts: Final[Counter[str]] = Counter() if counts is None else counts
        """Scores so far that were ``stale``, of states read before the store went away, or ``explained``."""
        self._store = store
        self._model = model
        self._clock = clock
        self._on_loop_rows = on_loop_rows
        self._churn_guard, self._propensity_guard = guard(), guard()
        self._defaults = np.tile(model.economics, (OFF_LOOP_ROWS, 1))
        self._graph_thread = ThreadPoolExecutor(1, "graph")
        self._explaining_thread = ThreadPoolExecutor(1, "explain")

    @property
    def spikes(self) -> int:
        """Windows that became a spike so far, in total and by item, of either offer."""
        guards = self._churn_guard, self._propensity_guard
        return sum(guard.spikes + guard.item_spikes for guard in guards)

    async def score(self, parts: Sequence[ScoreRequest]) -> Sequence[Scores | RequestError]:
        """Scores of each part, or why it has none as a whole.

        RequestError (UNAVAILABLE) where the store does not answer and no part may be stale.
        """
        ids = [customer_id for part in parts for customer_id in part.customer_ids]
        began = time.monotonic()
        try:
            states = await self._store.read(ids)
        except StoreUnavailableError as error:
            self._took("redis", began)
            return await self._without_store(parts, store_error(error))
        self._took("redis", began)
        return await self._score(parts, states)

    async def _without_store(self, parts: Sequence[ScoreRequest], error: RequestError) -> list[Scores | RequestError]:
        """Scores of parts that may be stale, from what was read lately; the error for the others."""
        willing = [part for part in parts if part.allow_stale_s is not None]
        ids = [customer_id for part in willing for customer_id in part.customer_ids]
        bounds = [part.allow_stale_s or 0.0 for part in willing for _ in part.customer_ids]
        states = self._store.recent(ids, bounds) if willing else None
        if states is None:
            raise error
        scores = iter(await self._score(willing, states))
        return [error if part.allow_stale_s is None else next(scores) for part in parts]

    async def _score(self, parts: Sequence[ScoreRequest], states: StateBatch) -> list[Scores]:
        now, began = self._clock(), time.monotonic()
        table = await self._run(states, now, self._economics(parts, len(states.found)))
        self._took("graph", began)
        usable = _usable(states, table)
        if self._aged is not None:
            ages = now - table[:, -1]
            self._aged(ages if usable is None else ages[usable])
        notes = self._notes(states.told, usable, now) if states.told else NO_NOTES
        if states.stale:
            notes = self._stale(notes, states.found if usable is None else usable)
        scored = _Scored(states, table, usable, now, notes, self._spikes(table, usable, notes))
        shares = self._share_out(parts, scored)
        if any(part.explain for part in parts):
            began = time.monotonic()
            await self._explain(parts, shares, scored)
            self._took("explain", began)
        return shares

    async def _explain(self, parts: Sequence[ScoreRequest], shares: Sequence[Scores], scored: _Scored) -> None:
        """Add explanations to the scores of parts that want them, off the loop: each is a thousand rows of the graph.

        A score that cannot be explained is an error.
        """
        loop, states, start = asyncio.get_running_loop(), scored.states, 0
        for part, share in zip(parts, shares, strict=True):
            if part.explain is not None:
                own = np.array([at for at in range(len(part.customer_ids)) if at not in share.errors], dtype=np.intp)
                slots, age_s = states.slots[start + own], scored.now - states.as_of[start + own]
                work = partial(self._model.explainer.tell, slots, age_s, share.table[own, : len(OFFERS)], part.explain)
                found = dict(zip(own.tolist(), await loop.run_in_executor(self._explaining_thread, work), strict=True))
                share.explanations = {at: why for at, why in found.items() if not isinstance(why, RequestError)}
                self.counts["explained"] += len(share.explanations)
                share.errors = {**share.errors, **{at: e for at, e in found.items() if isinstance(e, RequestError)}}
            start += len(part.customer_ids)

    def _notes(self, told: Mapping[int, Told], usable: Usable | None, now: float) -> dict[int, Note]:
        """What there is to add for the customers who get a score and whose records say something."""
        rules, notes = self._model.interests, {}
        for row, said in told.items():
            if usable is not None and not usable[row]:
                continue
            top = said.top
            if top is not None and top.weight_at(now, rules.half_life_s) < LEAST_WEIGHT:
                top = None
            repeated = top is not None and top.views >= rules.repeated_views and said.automated_response
            notes[row] = Note(not said.automated_response, repeated, spike=False, top=top)
        return notes

    def _stale(self, notes: Mapping[int, Note], usable: Usable) -> dict[int, Note]:
        """The notes, with one for every score, that says that it is stale."""
        rows = np.flatnonzero(usable).tolist()
        self.counts["stale"] += len(rows)
        marked = {row: notes.get(row) or Note(off=False, repeated_view=False, spike=False, top=None) for row in rows}
        for note in marked.values():
            note.stale = True
        return marked

    def _spikes(self, table: Floats, usable: Usable | None, notes: Mapping[int, Note]) -> Spikes:
        """Show the guards how many alert, and hear whether that is far more than usually."""
        answers, (churn, propensity) = len(table), (table[:, :2] >= table[:, 3:5]).T
        if usable is not None:
            answers, churn, propensity = int(np.count_nonzero(usable)), churn & usable, propensity & usable
        if off := [row for row, note in notes.items() if note.off]:
            churn[off] = propensity[off] = False
        about = [
            note.top.item_id for row, note in notes.items() if note.top and (note.repeated_view or propensity[row])
        ]
        self._churn_guard.observe(answers, int(np.count_nonzero(churn)))
        self._propensity_guard.observe(answers, int(np.count_nonzero(propensity)), about)
        for note in notes.values():
            note.spike = note.top is not None and self._propensity_guard.of_item(note.top.item_id)
        return Spikes(self._churn_guard.in_total(), self._propensity_guard.in_total())

    async def _run(self, states: StateBatch, now: float, economics: Floats) -> Floats:
        """The graph, off the loop where it takes longer than handing it over, so that the loop goes on meanwhile."""
        if len(economics) <= self._on_loop_rows:
            return self._model.run(states, now, economics)
        return await asyncio.get_running_loop().run_in_executor(
            self._graph_thread, self._model.run, states, now, economics
        )

    def _economics(self, parts: Sequence[ScoreRequest], rows: int) -> Floats:
        """Economics of every row: the model's defaults, and over them what a part brings of its own."""
        if not any(part.economics for part in parts):
            if rows > len(self._defaults):
                self._defaults = np.tile(self._model.economics, (rows, 1))
            return self._defaults[:rows]
        economics = np.tile(self._model.economics, (rows, 1))
        start = 0
        for part in parts:
            stop = start + len(part.customer_ids)
            for column, figure in part.economics.items():
                economics[start:stop, column] = figure
            start = stop
        return economics

    def _share_out(self, parts: Sequence[ScoreRequest], scored: _Scored) -> list[Scores]:
        version, notes, shares, start = self._model.version, scored.notes, [], 0
        for part in parts:
            stop = start + len(part.customer_ids)
            errors = part.refused
            if scored.usable is not None or part.max_age_s is not None:
                errors = {**_errors(part, scored, slice(start, stop)), **part.refused}
            mine = {row - start: note for row, note in notes.items() if start <= row < stop} if notes else notes
            shares.append(Scores(scored.table[start:stop], errors, version, mine, scored.spikes))
            start = stop
        return shares


@dataclass(slots=True, eq=False)
class _Scored:
    """A batch that has been through the graph; ``usable`` is None where all rows are, ``notes`` goes by row."""

    states: StateBatch
    table: Floats
    usable: Usable | None
    now: float
    notes: Mapping[int, Note]
    spikes: Spikes


def _usable(states: StateBatch, table: Floats) -> Usable | None:
    """Which rows have scores; the others are blanked. None where all have: the usual case, found out cheaply."""
    as_of, withheld = table[:, -1], [row for row, said in states.told.items() if not said.scoring]
    in_time = all(EARLIEST_TIME_S <= t <= LATEST_TIME_S for t in as_of.tolist())
    if states.all_valid and not withheld and finite(table) and in_time:
        return None
    usable = states.valid & np.isfinite(table).all(axis=1) & (as_of >= EARLIEST_TIME_S) & (as_of <= LATEST_TIME_S)
    usable[withheld] = False
    table[~usable] = 0.0
    return usable


def _errors(part: ScoreRequest, scored: _Scored, rows: slice) -> dict[int, RequestError]:
    """Why customers of a part have no score."""
    found = scored.states.found[rows]
    usable = np.ones_like(found) if scored.usable is None else scored.usable[rows]
    missing = _missing(scored.states.missing)  # shared by all of them: a batch may be unknown customers only
    errors = {at: _unusable(part.customer_ids[at]) if found[at] else missing for at in np.flatnonzero(~usable).tolist()}
    if part.max_age_s is not None:
        too_old = usable & (scored.now - scored.states.as_of[rows] > part.max_age_s)
        errors.update({int(at): _too_old(part.max_age_s) for at in np.flatnonzero(too_old)})
    for row, told in scored.states.told.items():
        if not told.scoring and rows.start <= row < rows.stop:
            errors[row - rows.start] = _withheld()
    return errors


def _unusable(customer_id: str) -> RequestError:
    customers.tell("what is stored cannot be used", customer_id)
    message = "what is stored for this customer cannot be used: load the features of the serving model again"
    return RequestError(Reason.STATE_UNREADABLE, message, "customer_id")


def _missing(why: Missing) -> RequestError:
    if why is Missing.NOT_LOADED:
        message = "the feature store holds no features of the serving model, of any customer: load them first"
        return RequestError(Reason.FEATURES_NOT_LOADED, message)
    if why is Missing.STORE_AWAY:
        message = "the feature store does not answer, and has not been read for this customer within allow_stale"
        return RequestError(Reason.FEATURE_STORE_UNAVAILABLE, f"{message}: try again shortly", "allow_stale")
    message = "nothing is known about this customer: check the id, or load the customer's features first"
    return RequestError(Reason.CUSTOMER_UNKNOWN, message, "customer_id")


def _withheld() -> RequestError:
    message = "the customer does not allow scoring: ask for consent first"
    return RequestError(Reason.CONSENT_WITHHELD, message, "customer_id")


def _too_old(max_age_s: float) -> RequestError:
    message = f"the features are older than {max_age_s:g} s: load newer ones, or allow a larger max_feature_age"
    return RequestError(Reason.FEATURES_TOO_OLD, message, "max_feature_age")
