"""What live events change: takes customers as they are stored and new events, returns what is to be stored. No I/O.

::

    event ──► counted before?                             duplicate
          ──► consent withheld, or stored data unreadable rejected
          ──► over a cap                                  logged with a mark, not folded
          ──► otherwise                                   folded into the states, added to the profile, and logged
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, NamedTuple

import numpy as np

from feature_store.definitions import Interests
from feature_store.state.event_types import similar_type
from feature_store.state.events import HOUR_S, Event, EventReason, Problem, Rules
from feature_store.state.layout import StateLayout, as_of_packed, needs_profile
from feature_store.state.log_entries import CAPPED, encode_event
from feature_store.state.profile import (
    Profile,
    UnreadableProfileError,
    hash_event_id,
    hash_event_type,
    hour_of,
)
from feature_store.state.tombstone import Tombstone

WITHHELD: Final = Problem(
    "customer_id", EventReason.CONSENT_WITHHELD, "the customer does not allow scoring: ask for consent first"
)
UNREADABLE: Final = Problem(
    "customer_id",
    EventReason.STATE_UNREADABLE,
    "the stored data of this customer cannot be read: load its features again",
)
LOST: Final = Problem(
    "customer_id",
    EventReason.STATE_UNREADABLE,
    "the profile of this customer was lost, so nobody knows what it allows: store its consent first",
)
FORGOTTEN: Final = Problem(
    "event_time",
    EventReason.EVENT_TOO_LATE,
    "the event is older than what is remembered of its customer, who may have been erased since: do not send it again",
)
NO_CLIPS: Final[Mapping[str, float]] = {}
MAX_CACHED_TYPES: Final = 10_000
"""Callers choose the event types, so there may be any number of them."""


class Verdict(Enum):
    """What happened to an event."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    REJECTED = "rejected"


class Outcome(NamedTuple):
    """What happened to an event.

    Attributes:
        problem: Why it was rejected, or what a guard did to it or noticed.
        is_read: Whether anything reads events of its type.
    """

    verdict: Verdict
    problem: Problem | None = None
    is_read: bool = True


ACCEPTED: Final = Outcome(Verdict.ACCEPTED)
UNREAD: Final = Outcome(Verdict.ACCEPTED, is_read=False)
DUPLICATE: Final = Outcome(Verdict.DUPLICATE)


@dataclass(slots=True, eq=False)
class StoredCustomer:
    """A customer as stored.

    Attributes:
        states: Packed state per active layout, in the order of the layouts; None if there is none.
        profile: Packed profile; None if there is none.
        tombstone: What is kept of it, packed, if it was erased and has no profile; None if there is none, or if it was
            not looked up.
    """

    customer_id: str
    states: Sequence[bytes | None]
    profile: bytes | None
    tombstone: bytes | None = None

    @property
    def has_lost_profile(self) -> bool:
        """Whether a state says that there is a profile, and there is none: Redis evicted it, or somebody deleted it."""
        return self.profile is None and any(map(needs_profile, self.states))

    @property
    def as_of(self) -> float:
        """The latest reference time of the states in unix seconds; -inf if there is none."""
        return max((as_of_packed(state) for state in self.states if state is not None), default=-math.inf)

    def unpacked_profile(self) -> Profile:
        """The profile, an empty one if there is none; UnreadableProfileError, also if it was lost."""
        if self.has_lost_profile:
            raise UnreadableProfileError
        profile = Profile.from_stored(self.profile)
        if self.profile is None and (tombstone := Tombstone.from_stored(self.tombstone)) is not None:
            profile.not_before = tombstone.erased_at
        return profile


@dataclass(slots=True, eq=False)
class CustomerChange:
    """What is to be stored for a customer, and what is to be logged.

    Attributes:
        states: Packed state per active layout, None to leave it as it is; empty if no event was folded.
        profile: Packed profile; None to leave it as it is.
        log: Log items.
        outcomes: Of each event, in order.
    """

    states: list[bytes | None] = field(default_factory=list)
    profile: bytes | None = None
    log: list[str] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)


class EventFolder:
    """Folds live events into the states of all active layouts, and into profiles.

    The first layout is the primary one: it decides whether a customer's state is readable and which values are clipped.
    The others receive the events that are accepted.
    """

    def __init__(self, layouts: Sequence[StateLayout], interests: Interests, rules: Rules) -> None:
        self.layouts: Final = tuple(layouts)
        self.interests: Final = interests
        self.rules: Final = rules
        self._type_hashes: dict[str, int] = {}
        self._read_types: Final = {feature.event for layout in self.layouts for feature in layout.features} - {None}
        self._outcomes_of_others: dict[str, Outcome] = {}
        self._clips: Final = self.layouts[0].clips

    def fold(
        self, customers: Sequence[StoredCustomer], events: Sequence[Sequence[Event]], now: float
    ) -> list[CustomerChange]:
        """The change of each customer.

        Args:
            customers: As they are stored, each once.
            events: By customer, valid ones (``events.problem``) in the order in which they came in.
            now: Unix seconds.
        """
        before = [
            layout.unpack([customer.states[number] for customer in customers])
            for number, layout in enumerate(self.layouts)
        ]
        readable = before[0].valid | ~before[0].found
        changes, profiles = [CustomerChange() for _ in customers], {}
        rows: list[int] = []
        changed: list[int] = []
        folded: list[Event] = []
        for row, (customer, change) in enumerate(zip(customers, changes, strict=True)):
            profile = _readable_profile(customer) if readable[row] else None
            if profile is None or not profile.scoring:
                refusal = Outcome(Verdict.REJECTED, _refusal(customer, profile))
                change.outcomes = [refusal] * len(events[row])
                continue
            accepted = self._accept(profile, events[row], change, now)
            if change.log:  # even if nothing is folded: the position of the profile leads to the newest log entry
                profiles[row] = profile
            if accepted:
                changed.append(row)
                if any(event.item_id for event in accepted):
                    profile.prune_interests(self.interests, now, self.rules.max_lateness_s)
                rows += [row] * len(accepted)
                folded += accepted
        for row, profile in profiles.items():
            changes[row].profile = profile.pack()
        if folded:
            for layout, states in zip(self.layouts, before, strict=True):
                as_of = np.where(states.found, states.as_of, -np.inf)
                as_of, slots = layout.fold(as_of, states.slots, rows, folded)
                packed = layout.pack_many(as_of[changed], slots[changed], has_profile=True)
                usable = (states.valid | ~states.found)[changed]  # an unreadable state is left to the next load
                for row, state, is_usable in zip(changed, packed, usable, strict=True):
                    changes[row].states.append(state if is_usable else None)
        return changes

    def _accept(self, profile: Profile, events: Sequence[Event], change: CustomerChange, now: float) -> list[Event]:
        """Decide about a customer's events, add the new ones to the profile, and return those to fold."""
        counted, accepted = profile.counted, []
        # One hour longer than the lateness, because the clocks of servers differ.
        forgotten = counted.drop_before(hour_of(max(now - self.rules.max_lateness_s - HOUR_S, 0.0)))
        profile.not_before = max(profile.not_before, forgotten)
        ids = counted.ids
        for event in events:
            id_hash = hash_event_id(event.event_id) if event.event_id else 0
            if id_hash and id_hash in ids:
                change.outcomes.append(DUPLICATE)
                continue
            if event.event_time <= profile.not_before:
                change.outcomes.append(Outcome(Verdict.REJECTED, FORGOTTEN))
                continue
            type_hash, hour = self._type_hash(event.event_type), hour_of(event.event_time)
            if (cap := self._exceeded_cap(profile, type_hash, hour)) is not None:
                change.log.append(encode_event(event, CAPPED, keep_text=self.rules.keep_text))
                change.outcomes.append(Outcome(Verdict.ACCEPTED, cap))
                continue
            ids.add(id_hash)
            counted.add(hour, type_hash, id_hash)
            self._update_profile(profile, event)
            accepted.append(event)
            change.log.append(encode_event(event, "", keep_text=self.rules.keep_text))
            change.outcomes.append(self._outcome(event))
        return accepted

    def _update_profile(self, profile: Profile, event: Event) -> None:
        t = event.event_time
        profile.first_seen, profile.last_seen = min(profile.first_seen, t), max(profile.last_seen, t)
        if event.channel:
            profile.add_channel(event.channel)
        if event.item_id:
            if event.event_type == self.interests.view:
                profile.add_view(event.item_id, t, self.interests.half_life_s)
            elif event.event_type == self.interests.purchase:
                profile.add_purchase(event.item_id, t)

    def _type_hash(self, event_type: str) -> int:
        if (type_hash := self._type_hashes.get(event_type)) is None:
            if len(self._type_hashes) > MAX_CACHED_TYPES:
                self._type_hashes.clear()
            type_hash = self._type_hashes[event_type] = hash_event_type(event_type)
        return type_hash

    def _exceeded_cap(self, profile: Profile, type_hash: int, hour: int) -> Problem | None:
        """The cap that the next event would exceed; None if there is none."""
        rules, counted = self.rules, profile.counted
        if len(counted) < min(rules.cap_type_hour, rules.cap_hour, rules.cap_total):
            return None  # the case of nearly all customers
        if len(counted) >= rules.cap_total:
            return _capped(f"{rules.cap_total} events of a customer in {rules.max_lateness_s / HOUR_S:g} h")
        types = counted.types_in(hour)
        if len(types) >= rules.cap_hour:
            return _capped(f"{rules.cap_hour} events of a customer in an hour")
        if types.count(type_hash) >= rules.cap_type_hour:
            return _capped(f"{rules.cap_type_hour} events of one type and customer in an hour")
        return None

    def _outcome(self, event: Event) -> Outcome:
        """The outcome of an accepted event that is within the caps."""
        if event.event_type not in self._read_types:
            return self._outcome_of_other(event.event_type)
        for name, clip in self._clips.get(event.event_type, NO_CLIPS).items():
            if abs(getattr(event, name) or 0.0) > clip:
                reason = EventReason[f"{name.removesuffix('_s').upper()}_CLIPPED"]
                message = f"the value is beyond the range of the training data: it is counted as {clip:g}"
                return Outcome(Verdict.ACCEPTED, Problem(name, reason, message))
        return ACCEPTED

    def _outcome_of_other(self, event_type: str) -> Outcome:
        """The outcome of events whose type no feature reads."""
        if (outcome := self._outcomes_of_others.get(event_type)) is None:
            if len(self._outcomes_of_others) > MAX_CACHED_TYPES:
                self._outcomes_of_others.clear()
            outcome = self._outcomes_of_others[event_type] = self._judged(event_type)
        return outcome

    def _judged(self, event_type: str) -> Outcome:
        similar = similar_type(event_type, (name for name in self._read_types if name is not None))
        if similar is not None:
            message = f"no feature reads this type of event, but they read '{similar}': send that if it is the same"
            return Outcome(
                Verdict.ACCEPTED, Problem("event_type", EventReason.EVENT_TYPE_SIMILAR, message), is_read=False
            )
        is_of_interest = self.interests.keep and event_type in (self.interests.view, self.interests.purchase)
        return ACCEPTED if is_of_interest else UNREAD


def _capped(limit: str) -> Problem:
    return Problem(
        "customer_id", EventReason.EVENT_CAPPED, f"there are more than {limit}: the event is archived, but not counted"
    )


def _refusal(customer: StoredCustomer, profile: Profile | None) -> Problem:
    """Why all events of a customer are rejected, whose profile is None if its stored data cannot be read."""
    if profile is not None:
        return WITHHELD
    return LOST if customer.has_lost_profile else UNREADABLE


def _readable_profile(customer: StoredCustomer) -> Profile | None:
    """A customer's profile; None if it cannot be read."""
    try:
        return customer.unpacked_profile()
    except UnreadableProfileError:
        return None
