"""The main path: customer ids → states → graph → scores.

::

    parts ──► ids ──► one MGET ──► unpack ──► one graph run ──► a score or an error for each id
                         │            │              │
                         │            │              └ a figure is not finite       STATE_UNREADABLE, this id
                         │            └ absent, torn, too old, without consent      an error of this id
                         └ Redis away or slow                                       FEATURE_STORE_UNAVAILABLE, all ids

Nothing here knows of gRPC, protobuf, Redis or onnxruntime.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from feature_store.errors import StoreUnavailableError
from feature_store.record import LEAST_WEIGHT, Interest, Told
from feature_store.state import Floats, StateBatch, finite
from service.errors import Reason, RequestError
from service.models import Model
from service.spikes import SpikeGuard

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


@dataclass(slots=True, eq=False)  # not frozen: that triples the time to make one, and each call makes one
class Part:
    """Customers to score on the same terms: a request, or a slice of a large one. Not to be changed.

    economics: figures that replace a default, by column of the graph's input; max_age_s: None for any age; refused:
    errors of ids found invalid before, by position (such an id is given as the empty string).
    """

    customer_ids: Sequence[str]
    economics: Mapping[int, float] = field(default_factory=dict)
    max_age_s: float | None = None
    refused: Mapping[int, RequestError] = field(default_factory=dict)

    def slice(self, start: int, stop: int) -> Part:
        """Customers ``start`` to ``stop`` of this part."""
        if start == 0 and stop == len(self.customer_ids):
            return self
        refused = {at - start: error for at, error in self.refused.items() if start <= at < stop}
        return Part(self.customer_ids[start:stop], self.economics, self.max_age_s, refused)


@dataclass(slots=True, eq=False)
class Note:
    """What there is to say about a customer's alerts beside the figures.

    off: no automated responses allowed; repeated_view: the top interest was looked at often enough; spike: far more
    answers than usually alert about this top interest.
    """

    off: bool
    repeated_view: bool
    spike: bool
    top: Interest | None


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
    position what there is to add.
    """

    table: Floats
    errors: Mapping[int, RequestError]
    model_version: str
    notes: Mapping[int, Note] = field(default_factory=lambda: NO_NOTES)
    spikes: Spikes = NO_SPIKES

    @staticmethod
    def joined(slices: Sequence[Scores]) -> Scores:
        """The scores of a part's slices, put together again."""
        if len(slices) == 1:
            return slices[0]
        errors: dict[int, RequestError] = {}
        notes: dict[int, Note] = {}
        start = 0
        for scores in slices:
            errors.update({start + at: error for at, error in scores.errors.items()})
            notes.update({start + at: note for at, note in scores.notes.items()})
            start += len(scores.table)
        table, last = np.concatenate([scores.table for scores in slices]), slices[-1]
        return Scores(table, errors, last.model_version, notes, last.spikes)


class Scorer:
    """Scores parts together: one read and one graph run for all of them."""

    def __init__(
        self,
        store: StateSource,
        model: Model,
        clock: Callable[[], float] = time.time,
        guard: Callable[[], SpikeGuard] = SpikeGuard,
        took: Callable[[str, float], None] = lambda _stage, _began: None,
        aged: Callable[[Floats], None] | None = None,
    ) -> None:
        """``took`` is told of each stage of a batch when it is done, with the time (monotonic) at which it began.

        ``aged`` is told how old (seconds) the features of those customers were who get a score.
        """
        self._took: Final = took
        self._aged: Final = aged
        self._store = store
        self._model = model
        self._clock = clock
        self._churn_guard, self._propensity_guard = guard(), guard()
        self._defaults = np.tile(model.economics, (OFF_LOOP_ROWS, 1))
        self._graph_thread = ThreadPoolExecutor(1, "graph")

    @property
    def spikes(self) -> int:
        """Windows that became a spike so far, in total and by item, of either offer."""
        guards = self._churn_guard, self._propensity_guard
        return sum(guard.spikes + guard.item_spikes for guard in guards)

    async def score(self, parts: Sequence[Part]) -> list[Scores]:
        """Scores of each part; RequestError (UNAVAILABLE) where the store does not answer."""
        ids = [customer_id for part in parts for customer_id in part.customer_ids]
        began = time.monotonic()
        try:
            states = await self._store.read(ids)
        except StoreUnavailableError as error:
            message = "the feature store does not answer: try again shortly"
            raise RequestError(Reason.FEATURE_STORE_UNAVAILABLE, message) from error
        finally:
            self._took("redis", began)
        now, began = self._clock(), time.monotonic()
        table = await self._run(states, now, self._economics(parts, len(ids)))
        self._took("graph", began)
        usable = _usable(states, table)
        if self._aged is not None:
            ages = now - table[:, -1]
            self._aged(ages if usable is None else ages[usable])
        notes = self._notes(states.told, usable, now) if states.told else NO_NOTES
        scored = _Scored(states, table, usable, now, notes, self._spikes(table, usable, notes))
        return self._share_out(parts, scored)

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
        if len(economics) <= OFF_LOOP_ROWS:
            return self._model.run(states, now, economics)
        return await asyncio.get_running_loop().run_in_executor(
            self._graph_thread, self._model.run, states, now, economics
        )

    def _economics(self, parts: Sequence[Part], rows: int) -> Floats:
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

    def _share_out(self, parts: Sequence[Part], scored: _Scored) -> list[Scores]:
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


def _errors(part: Part, scored: _Scored, rows: slice) -> dict[int, RequestError]:
    """Why customers of a part have no score."""
    found = scored.states.found[rows]
    usable = np.ones_like(found) if scored.usable is None else scored.usable[rows]
    errors = {int(at): _unusable(bool(found[at])) for at in np.flatnonzero(~usable)}
    if part.max_age_s is not None:
        too_old = usable & (scored.now - scored.states.as_of[rows] > part.max_age_s)
        errors.update({int(at): _too_old(part.max_age_s) for at in np.flatnonzero(too_old)})
    for row, told in scored.states.told.items():
        if not told.scoring and rows.start <= row < rows.stop:
            errors[row - rows.start] = _withheld()
    return errors


def _unusable(found: bool) -> RequestError:
    if found:
        message = "what is stored for this customer cannot be used: load the features of the serving model again"
        return RequestError(Reason.STATE_UNREADABLE, message, "customer_id")
    message = "nothing is known about this customer: check the id, or load the customer's features first"
    return RequestError(Reason.CUSTOMER_UNKNOWN, message, "customer_id")


def _withheld() -> RequestError:
    message = "the customer does not allow scoring: ask for consent first"
    return RequestError(Reason.CONSENT_WITHHELD, message, "customer_id")


def _too_old(max_age_s: float) -> RequestError:
    message = f"the features are older than {max_age_s:g} s: load newer ones, or allow a larger max_feature_age"
    return RequestError(Reason.FEATURES_TOO_OLD, message, "max_feature_age")
