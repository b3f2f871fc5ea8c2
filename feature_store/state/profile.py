"""A customer's profile: everything kept about a customer that does not depend on the features of a model.

Consent, aliases, first and last event, channels, interests, and which events have been counted. It is one packed value
per customer, stored as long as there is anything to store. The profile of an alias only names the customer that the
alias belongs to.

::

    "tr" version flags | zeros | position | first, last event, counts | interests, best first | channels | …
    └──────────── scoring reads up to the first interest ─────────────────────┘

All interests decay with the same half-life, so their order changes only when an event comes in.
"""

from __future__ import annotations

import math
import struct
from array import array
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final, NamedTuple

from feature_store.definitions import Interests
from feature_store.state.events import HOUR_S
from feature_store.state.packed import PackedField, struct_format

VERSION: Final = 3
VERSIONS: Final = (2, VERSION)
"""Formats that are read: 3 has a bound for the times of events at its end, and is written only if there is one."""
NO_SCORING: Final = 1
NO_RESPONSE: Final = 2
ALIAS: Final = 4
"""Flags."""

MIN_INTEREST_WEIGHT: Final = 1 / 32
"""An interest that has decayed to this, after five half-lives, is dropped."""
MAX_CHANNELS: Final = 16
OTHER: Final = "(other)"
MAX_COUNT: Final = 0xFFFF_FFFF
MAX_VIEWS: Final = 0xFFFF
MAX_ALIASES: Final = 1000
MAX_TIME_S: Final = 253_402_300_799.0
"""The end of the year 9999: no event is later."""

ID_BITS: Final = 48
ID_MASK: Final = (1 << ID_BITS) - 1
COUNTED_BYTES: Final = 12
"""Size of a counted event. A profile holds one per event within the allowed lateness, so they are packed tightly."""

HEAD_FIELDS: Final = (
    PackedField("magic", "S2", "The letters tr."),
    PackedField("version", "u1", "Version of the format."),
    PackedField("flags", "u1", "Bit 0: scoring is not allowed. Bit 1: automated responses are not. Bit 2: an alias."),
    PackedField("zeros", "V4", "Zeros, in Redis the checksum."),
    PackedField("position", "V8", "Position of the commit that wrote the value."),
    PackedField("first_event", "<f8", "Time of the first event in unix seconds."),
    PackedField("last_event", "<f8", "Time of the last event in unix seconds."),
    PackedField("counted", "<u4", "Number of counted events."),
    PackedField("interests", "u1", "Number of interests."),
    PackedField("channels", "u1", "Number of channels."),
    PackedField("names", "<u2", "Number of aliases, or 1 if the value is an alias: the id that it belongs to."),
)
INTEREST_FIELDS: Final = (
    PackedField("size", "<u2", "Length of the item's id in bytes; the id follows these fields."),
    PackedField("views", "<u2", "Number of views since the last purchase of the item."),
    PackedField("weight", "<f4", "Sum of the decayed views."),
    PackedField("at", "<f8", "Time of the latest view or purchase in unix seconds."),
)
CHANNEL_FIELDS: Final = (
    PackedField("size", "u1", "Length of the channel's name in bytes; the name follows these fields."),
    PackedField("events", "<u4", "Number of events on the channel."),
)
ALIAS_FIELDS: Final = (PackedField("size", "<u2", "Length of the id in bytes; the id follows."),)
BOUND_FIELDS: Final = (
    PackedField("not_before", "<f8", "Events up to this time in unix seconds are not accepted; only in version 3."),
)

_HEAD: Final = struct.Struct(struct_format(HEAD_FIELDS))
_INTEREST: Final = struct.Struct(struct_format(INTEREST_FIELDS))
_CHANNEL: Final = struct.Struct(struct_format(CHANNEL_FIELDS))
_ALIAS: Final = struct.Struct(struct_format(ALIAS_FIELDS))
_BOUND: Final = struct.Struct(struct_format(BOUND_FIELDS))
MAGIC: Final = b"tr"
FLAGS_AT: Final = 3
INTERESTS_AT: Final = 36
"""Offsets in the head of the flags and of the number of interests."""
ZEROS: Final = bytes(4)
"""Follow the flags; they hold the checksum in Redis (``feature_store.state.checksum``)."""


class UnreadableProfileError(Exception):
    """The stored value is not a profile."""


@dataclass(slots=True, eq=True)
class Interest:
    """An item, and how often the customer viewed it since the last purchase of it.

    Attributes:
        views: Number of views; 0 if the item was bought at ``at`` and not viewed since.
        weight: Sum of the views, each decayed to ``at``.
        at: Unix seconds of the latest view, or of the purchase.
    """

    item_id: str
    views: int
    weight: float
    at: float

    def weight_at(self, now: float, half_life_s: float) -> float:
        """The weight as of another time."""
        return self.weight * math.exp2(min((self.at - now) / half_life_s, 0.0))


@dataclass(slots=True)
class CountedEvents:
    """Recent events, which may be sent again: the hour since 1970 and a tag of each (hashes of type and id)."""

    hours: array[int] = field(default_factory=lambda: array("I"))
    tags: array[int] = field(default_factory=lambda: array("Q"))

    def __len__(self) -> int:
        return len(self.tags)

    @property
    def ids(self) -> set[int]:
        """Hashes of the ids, of the events that have one."""
        return {tag & ID_MASK for tag in self.tags} - {0}

    def types_in(self, hour: int) -> list[int]:
        """Hashes of the types of the events in an hour."""
        return [tag >> ID_BITS for tag, event_hour in zip(self.tags, self.hours, strict=True) if event_hour == hour]

    def add(self, hour: int, type_hash: int, id_hash: int) -> None:
        """Add an event; ``id_hash`` is 0 if it has no id."""
        self.hours.append(hour)
        self.tags.append(type_hash << ID_BITS | id_hash)

    def drop_before(self, hour: int) -> float:
        """Drop events that are too old to be accepted again.

        Returns:
            Unix seconds up to which ids were forgotten by this; -inf if none were.
        """
        forgotten = -math.inf
        if self.hours and min(self.hours) < hour:
            hours = [at for at, tag in zip(self.hours, self.tags, strict=True) if at < hour and tag & ID_MASK]
            if hours:
                forgotten = math.nextafter((max(hours) + 1) * HOUR_S, 0.0)
            keep = [at for at, event_hour in enumerate(self.hours) if event_hour >= hour]
            self.hours = array("I", [self.hours[at] for at in keep])
            self.tags = array("Q", [self.tags[at] for at in keep])
        return forgotten

    def merged(self, other: CountedEvents) -> CountedEvents:
        """The events of both; one whose id both have is in it once."""
        ids, union = self.ids, CountedEvents(self.hours[:], self.tags[:])
        for hour, tag in zip(other.hours, other.tags, strict=True):
            if tag & ID_MASK not in ids:
                union.hours.append(hour)
                union.tags.append(tag)
        return union


@dataclass(slots=True)
class Profile:
    """A customer's profile. Times in unix seconds, infinite if there was no event; interests best first.

    Attributes:
        not_before: Events up to this time are not accepted: the customer was erased then, or the ids of events up to
            this time are forgotten, so that nobody can tell whether one was counted. -inf if there is no bound.
    """

    scoring: bool = True
    automated_response: bool = True
    alias_of: str | None = None
    first_seen: float = math.inf
    last_seen: float = -math.inf
    interests: list[Interest] = field(default_factory=list)
    channels: dict[str, int] = field(default_factory=dict)
    aliases: list[str] = field(default_factory=list)
    counted: CountedEvents = field(default_factory=CountedEvents)
    not_before: float = -math.inf

    def add_view(self, item_id: str, at: float, half_life_s: float) -> None:
        """Count a view of an item."""
        for interest in self.interests:
            if interest.item_id == item_id:
                # A view that happened before the purchase of the item, and arrives late, is not counted.
                _combine(interest, Interest(item_id, 1, 1.0, at), half_life_s)
                return
        self.interests.append(Interest(item_id, 1, 1.0, at))

    def add_channel(self, channel: str) -> None:
        """Count an event of a channel; once there are too many channels, new ones are counted together."""
        if channel not in self.channels and len(self.channels) >= MAX_CHANNELS:
            channel = OTHER
        self.channels[channel] = min(self.channels.get(channel, 0) + 1, MAX_COUNT)

    def add_purchase(self, item_id: str, at: float) -> None:
        """Note that an item was bought: earlier views no longer count, and late ones are recognised by their time."""
        for interest in self.interests:
            if interest.item_id == item_id:
                if interest.at <= at:
                    interest.views, interest.weight, interest.at = 0, 0.0, at
                elif interest.views:
                    interest.views, interest.weight = 1, 1.0  # at least the latest view came after the purchase
                return
        self.interests.append(Interest(item_id, 0, 0.0, at))

    def prune_interests(self, rules: Interests, now: float, max_lateness_s: float) -> None:
        """Sort the interests and drop those that have faded or exceed the number to keep."""
        half_life_s = rules.half_life_s
        kept = [
            interest
            for interest in self.interests
            if (
                interest.weight_at(now, half_life_s) >= MIN_INTEREST_WEIGHT
                if interest.views
                else interest.at >= now - max_lateness_s
            )
        ]
        if len(kept) > 1:
            kept.sort(key=lambda interest: _rank(interest, half_life_s))
        self.interests = kept[: rules.keep]

    def merged(self, other: Profile, rules: Interests, now: float, max_lateness_s: float) -> Profile:
        """The profile of one customer who is both; what either of them forbids is forbidden.

        An event that was recorded under both ids before the merge is in both states, and the merged state counts it
        twice, as does a load: sums cannot be told apart afterwards. From then on it is recognised as a duplicate.
        """
        union = Profile(
            scoring=self.scoring and other.scoring,
            automated_response=self.automated_response and other.automated_response,
            first_seen=min(self.first_seen, other.first_seen),
            last_seen=max(self.last_seen, other.last_seen),
            interests=_merged_interests(self.interests, other.interests, rules.half_life_s),
            channels=_merged_channels(self.channels, other.channels),
            aliases=[*self.aliases, *(name for name in other.aliases if name not in self.aliases)],
            counted=self.counted.merged(other.counted),
            not_before=max(self.not_before, other.not_before),
        )
        union.prune_interests(rules, now, max_lateness_s)
        return union

    def pack(self) -> bytes:
        """The packed value, with position 0."""
        flags = (not self.scoring) * NO_SCORING | (not self.automated_response) * NO_RESPONSE
        aliases = self.aliases
        if self.alias_of is not None:
            flags |= ALIAS
            aliases = [self.alias_of]
        counts = len(self.interests), len(self.channels), len(aliases)
        seen = self.first_seen, self.last_seen, len(self.counted)
        bounded = self.not_before > -math.inf
        parts = [_HEAD.pack(MAGIC, VERSION if bounded else VERSIONS[0], flags, ZEROS, bytes(8), *seen, *counts)]
        for interest in self.interests:
            name = interest.item_id.encode()
            parts += (_INTEREST.pack(len(name), interest.views, interest.weight, interest.at), name)
        for channel, count in self.channels.items():
            name = channel.encode()
            parts += (_CHANNEL.pack(len(name), count), name)
        for alias in aliases:
            name = alias.encode()
            parts += (_ALIAS.pack(len(name)), name)
        parts += (self.counted.hours.tobytes(), self.counted.tags.tobytes())
        if bounded:
            parts.append(_BOUND.pack(self.not_before))
        return b"".join(parts)

    @staticmethod
    def from_stored(value: bytes | None) -> Profile:
        """The profile of a stored value, an empty one for None; UnreadableProfileError."""
        return Profile() if value is None else Profile.unpack(value)

    @staticmethod
    def unpack(value: bytes) -> Profile:
        """The profile of a stored value.

        Raises:
            UnreadableProfileError: It is not a profile.
        """
        try:
            magic, version, flags, zeros, _, *counts = _HEAD.unpack_from(value)
            first, last, counted, interest_count, channel_count, alias_count = counts
            if (magic, zeros) != (MAGIC, ZEROS) or version not in VERSIONS:
                raise UnreadableProfileError
            alias_fields = flags, interest_count, channel_count, alias_count, counted, first, last
            if flags & ALIAS and alias_fields != (ALIAS, 0, 0, 1, 0, math.inf, -math.inf):  # a bit flipped
                raise UnreadableProfileError
            at, interests, channels, names = _HEAD.size, [], {}, []
            for _ in range(interest_count):
                interest, at = _read_interest(value, at)
                interests.append(interest)
            for _ in range(channel_count):
                size, count = _CHANNEL.unpack_from(value, at)
                at += _CHANNEL.size + size
                channels[value[at - size : at].decode()] = count
            for _ in range(alias_count):
                (size,) = _ALIAS.unpack_from(value, at)
                at += _ALIAS.size + size
                names.append(value[at - size : at].decode())
        except (struct.error, UnicodeDecodeError) as error:
            raise UnreadableProfileError from error
        end = at + COUNTED_BYTES * counted
        not_before = -math.inf
        bound = _BOUND.size if version == VERSION else 0
        if bound and len(value) == end + bound:
            (not_before,) = _BOUND.unpack_from(value, end)
        if (
            len(value) != end + bound
            or math.isnan(not_before)
            or not (_is_possible_time(first) and _is_possible_time(last))
        ):
            raise UnreadableProfileError
        alias_of = names.pop() if flags & ALIAS else None
        tags_at = at + 4 * counted
        counted_events = CountedEvents(array("I", value[at:tags_at]), array("Q", value[tags_at:end]))
        consent = not flags & NO_SCORING, not flags & NO_RESPONSE
        return Profile(*consent, alias_of, first, last, interests, channels, names, counted_events, not_before)


class ProfileSummary(NamedTuple):
    """The parts of a profile that scoring needs: whether scores and alerts are allowed, and the top interest."""

    scoring: bool
    automated_response: bool
    top: Interest | None


def read_summary(value: bytes) -> ProfileSummary | str | None:
    """The parts of a stored profile that scoring needs, without unpacking the rest.

    Returns:
        The id of the customer if the profile is an alias's; None if everything is allowed and there is no interest.

    Raises:
        UnreadableProfileError: The value is not a profile.
    """
    if len(value) < _HEAD.size or value[:2] != MAGIC or value[2] not in VERSIONS or value[4:8] != ZEROS:
        raise UnreadableProfileError
    flags = value[FLAGS_AT]
    if flags & ALIAS:
        return alias_of(value)
    top = None
    if value[INTERESTS_AT]:
        try:
            best, _ = _read_interest(value, _HEAD.size)
        except (struct.error, UnicodeDecodeError) as error:
            raise UnreadableProfileError from error
        if best.views:
            top = best
    if top is None and not flags:
        return None
    return ProfileSummary(not flags & NO_SCORING, not flags & NO_RESPONSE, top)


def alias_of(value: bytes | None) -> str | None:
    """The id of the customer that a stored alias belongs to; None if the value is not an alias's profile."""
    if value is None or len(value) < _HEAD.size or not value.startswith(MAGIC) or not value[FLAGS_AT] & ALIAS:
        return None
    return Profile.unpack(value).alias_of


def hash_event_id(event_id: str) -> int:
    """An event id in 48 bits, never 0: among a thousand events of a customer, a new one collides with p = 4e-12."""
    return int.from_bytes(blake2b(event_id.encode(), digest_size=ID_BITS // 8).digest()) or 1


def hash_event_type(event_type: str) -> int:
    """An event type in 16 bits."""
    return int.from_bytes(blake2b(event_type.encode(), digest_size=2).digest())


def hour_of(event_time: float) -> int:
    """Hours since 1970."""
    return min(int(event_time // HOUR_S), 0xFFFF_FFFF)


def _read_interest(value: bytes, at: int) -> tuple[Interest, int]:
    """The interest at an offset, and the offset after it; also raises struct.error and UnicodeDecodeError."""
    size, views, weight, time = _INTEREST.unpack_from(value, at)
    start = at + _INTEREST.size
    if start + size > len(value) or not 0 <= time <= MAX_TIME_S:
        raise UnreadableProfileError
    if not (0 < weight <= 2 * views if views else weight == 0):  # a view weighs at most 1, plus rounding
        raise UnreadableProfileError
    return Interest(value[start : start + size].decode(), views, weight, time), start + size


def _is_possible_time(t: float) -> bool:
    """Whether an event can have this time; infinite means that there was none."""
    return 0 <= t <= MAX_TIME_S or math.isinf(t)


def _rank(interest: Interest, half_life_s: float) -> tuple[float, float, str]:
    """Sort key: largest weight (at any common time) first, bought items last."""
    if not interest.views:
        return math.inf, -interest.at, interest.item_id
    return -(math.log2(interest.weight) + interest.at / half_life_s), -interest.at, interest.item_id


def _combine(target: Interest, other: Interest, half_life_s: float) -> None:
    """Add what another interest says about the same item to ``target``."""
    at = max(target.at, other.at)
    if target.views and other.views:
        target.weight = target.weight_at(at, half_life_s) + other.weight_at(at, half_life_s)
        target.views, target.at = min(target.views + other.views, MAX_VIEWS), at
        target.weight = min(target.weight, target.views)
        return
    newest = other if (other.at, not other.views) > (target.at, not target.views) else target
    target.views, target.weight, target.at = newest.views, newest.weight, newest.at


def _merged_channels(first: dict[str, int], second: dict[str, int]) -> dict[str, int]:
    """The sum of both; if there are too many channels, those with the lowest counts are counted together."""
    counts = {name: first.get(name, 0) + second.get(name, 0) for name in [*first, *second]}
    named = [name for name in counts if name != OTHER]
    if len(named) > MAX_CHANNELS:
        named.sort(key=lambda name: (-counts[name], name))
        rest = counts.get(OTHER, 0) + sum(counts[name] for name in named[MAX_CHANNELS:])
        counts = {name: counts[name] for name in named[:MAX_CHANNELS]} | {OTHER: rest}
    return {name: min(count, MAX_COUNT) for name, count in counts.items()}


def _merged_interests(first: list[Interest], second: list[Interest], half_life_s: float) -> list[Interest]:
    by_item = {i.item_id: Interest(i.item_id, i.views, i.weight, i.at) for i in first}
    for other in second:
        if (same := by_item.get(other.item_id)) is None:
            by_item[other.item_id] = other
        else:
            _combine(same, other, half_life_s)
    return list(by_item.values())
