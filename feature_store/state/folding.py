"""What live events change: customers as they are stored and their new events in, customers to store out. No I/O.

::

    event ──► counted before?     duplicate
          ──► consent withheld, or what is stored cannot be read     rejected
          ──► beyond a cap        logged with a mark, not folded
          ──► folded into the state, and taken into the record, and logged
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, NamedTuple

import numpy as np

from feature_store.definitions import Interests
from feature_store.state.events import CAPPED, HOUR_S, Event, Problem, Rules, event_item
from feature_store.state.layout import StateLayout
from feature_store.state.profile import Record, UnreadableRecordError, hashed, hashed_type, hour_of

WITHHELD: Final = Problem(
    "customer_id", "CONSENT_WITHHELD", "the customer does not allow scoring: ask for consent first"
)
UNREADABLE: Final = Problem(
    "customer_id", "STATE_UNREADABLE", "the stored data of this customer cannot be read: load its features again"
)


class Verdict(Enum):
    """What became of an event."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    REJECTED = "rejected"


class Outcome(NamedTuple):
    """What became of an event, and why where it was refused or a guard took something away."""

    verdict: Verdict
    problem: Problem | None = None


ACCEPTED: Final = Outcome(Verdict.ACCEPTED)
DUPLICATE: Final = Outcome(Verdict.DUPLICATE)


@dataclass(slots=True, eq=False)
class Known:
    """A customer as stored: packed state and record, None where there is none.

    others: packed states of the layouts beside the first, in their order.
    """

    customer_id: str
    state: bytes | None
    record: bytes | None
    others: Sequence[bytes | None] = ()


@dataclass(slots=True, eq=False)
class Change:
    """What is to be stored of a customer, None where nothing changes, and what is to be logged."""

    state: bytes | None = None
    record: bytes | None = None
    others: list[bytes | None] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)


class Fold:
    """How live events change customers, under one layout and one set of rules.

    ``others`` are layouts whose states are kept up beside: they take what is taken, and have no say in it.
    """

    def __init__(
        self, layout: StateLayout, interests: Interests, rules: Rules, others: Sequence[StateLayout] = ()
    ) -> None:
        self.layout: Final = layout
        self.others: Final = tuple(others)
        self.interests: Final = interests
        self.rules: Final = rules
        self._kinds: dict[str, int] = {}
        self._clips: Final = layout.clips

    def __call__(self, known: Sequence[Known], events: Sequence[Sequence[Event]], now: float) -> list[Change]:
        """The change of each customer by the events (checked before) that belong to it, in their order."""
        states = self.layout.unpack([customer.state for customer in known])
        changes, records = [Change() for _ in known], {}
        rows: list[int] = []
        folded: list[Event] = []
        for row, (customer, change) in enumerate(zip(known, changes, strict=True)):
            record = _record(customer) if states.valid[row] or not states.found[row] else None
            if record is None or not record.scoring:
                refusal = Outcome(Verdict.REJECTED, UNREADABLE if record is None else WITHHELD)
                change.outcomes = [refusal] * len(events[row])
                continue
            taken = self._take(record, events[row], change, now)
            if taken:
                if any(event.item_id for event in taken):
                    record.tidy(self.interests, now, self.rules.max_lateness_s)
                records[row] = record
                rows += [row] * len(taken)
                folded += taken
        if folded:
            as_of, slots = self.layout.fold(np.where(states.found, states.as_of, -np.inf), states.slots, rows, folded)
            at = list(records)
            for row, state in zip(at, self.layout.pack_many(as_of[at], slots[at]), strict=True):
                changes[row].state, changes[row].record = state, records[row].pack()
            for number, layout in enumerate(self.others):
                before = [customer.others[number] for customer in known]
                for row, other in zip(at, _kept_up(layout, before, rows, folded, at), strict=True):
                    changes[row].others.append(other)
        return changes

    def _take(self, record: Record, events: Sequence[Event], change: Change, now: float) -> list[Event]:
        """Judge the events of a customer, take those that are new into the record, and return those to fold."""
        counted, taken = record.counted, []
        # An hour more than lateness, because the clocks of servers differ.
        counted.forget_before(hour_of(max(now - self.rules.max_lateness_s - HOUR_S, 0.0)))
        ids = counted.ids
        for event in events:
            event_id = hashed(event.event_id) if event.event_id else 0
            if event_id and event_id in ids:
                change.outcomes.append(DUPLICATE)
                continue
            kind, hour = self._kind(event.event_type), hour_of(event.event_time)
            if (cap := self._cap(record, kind, hour)) is not None:
                change.log.append(event_item(event, CAPPED, keep_text=self.rules.keep_text))
                change.outcomes.append(Outcome(Verdict.ACCEPTED, cap))
                continue
            ids.add(event_id)
            counted.add(hour, kind, event_id)
            self._note(record, event)
            taken.append(event)
            change.log.append(event_item(event, "", keep_text=self.rules.keep_text))
            change.outcomes.append(self._clipped(event) if event.event_type in self._clips else ACCEPTED)
        return taken

    def _note(self, record: Record, event: Event) -> None:
        t = event.event_time
        record.first_seen, record.last_seen = min(record.first_seen, t), max(record.last_seen, t)
        if event.channel:
            record.came_from(event.channel)
        if event.item_id:
            if event.event_type == self.interests.view:
                record.view(event.item_id, t, self.interests.half_life_s)
            elif event.event_type == self.interests.purchase:
                record.buy(event.item_id, t)

    def _kind(self, event_type: str) -> int:
        if (kind := self._kinds.get(event_type)) is None:
            if len(self._kinds) > MOST_KINDS:  # types are what callers send: there may be no end of them
                self._kinds.clear()
            kind = self._kinds[event_type] = hashed_type(event_type)
        return kind

    def _cap(self, record: Record, kind: int, hour: int) -> Problem | None:
        """Which cap the next event is beyond."""
        rules, counted = self.rules, record.counted
        if len(counted) < min(rules.cap_type_hour, rules.cap_hour, rules.cap_total):
            return None  # as nearly all customers
        if len(counted) >= rules.cap_total:
            return _capped(f"{rules.cap_total} events of a customer in {rules.max_lateness_s / HOUR_S:g} h")
        kinds = counted.kinds_at(hour)
        if len(kinds) >= rules.cap_hour:
            return _capped(f"{rules.cap_hour} events of a customer in an hour")
        if kinds.count(kind) >= rules.cap_type_hour:
            return _capped(f"{rules.cap_type_hour} events of one type and customer in an hour")
        return None

    def _clipped(self, event: Event) -> Outcome:
        for name, clip in self._clips[event.event_type].items():
            if abs(getattr(event, name) or 0.0) > clip:
                reason = f"{name.removesuffix('_s').upper()}_CLIPPED"
                message = f"the value is beyond the range of the training data: it is counted as {clip:g}"
                return Outcome(Verdict.ACCEPTED, Problem(name, reason, message))
        return ACCEPTED


def _kept_up(
    layout: StateLayout, before: Sequence[bytes | None], rows: Sequence[int], events: Sequence[Event], at: Sequence[int]
) -> list[bytes | None]:
    """States of the customers ``at`` after events; None where what is stored cannot be read: that is left to a load."""
    states = layout.unpack(before)
    as_of, slots = layout.fold(np.where(states.found, states.as_of, -np.inf), states.slots, rows, events)
    readable = states.valid | ~states.found
    packed = layout.pack_many(as_of[at], slots[at])
    return [state if good else None for state, good in zip(packed, readable[at], strict=True)]


MOST_KINDS: Final = 10_000


def _capped(bound: str) -> Problem:
    return Problem(
        "customer_id", "EVENT_CAPPED", f"there are more than {bound}: the event is archived, but not counted"
    )


def _record(customer: Known) -> Record | None:
    """A customer's record, None where it cannot be read."""
    try:
        return Record.stored(customer.record)
    except UnreadableRecordError:
        return None
