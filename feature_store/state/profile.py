"""A customer's record: all that is kept beside the state and does not depend on which features there are.

Consent, aliases, first and last seen, channels, interests, and which events have been counted. One packed value per
customer, as long as there is anything to say; an alias has one that only names the customer it belongs to.

::

    "tr" version flags | zeros | position | first, last seen, counts | interests, best first | channels | …
    └──────────── a score reads up to the first interest ─────────────────────┘

Interests decay with one half-life for all, so their order does not change while nothing happens.
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

VERSION: Final = 2
NO_SCORING: Final = 1
NO_RESPONSE: Final = 2
ALIAS: Final = 4
LEAST_WEIGHT: Final = 1 / 32
"""A look that has decayed to this, after five half-lives, is forgotten."""

MOST_CHANNELS: Final = 16
OTHER: Final = "(other)"
MOST_COUNT: Final = 0xFFFF_FFFF
MOST_VIEWS: Final = 0xFFFF
ID_BITS: Final = 48
ID: Final = (1 << ID_BITS) - 1
ENTRY_BYTES: Final = 12
"""Of a counted event: there are as many as events within the lateness, so they are packed tightly."""
LATEST_TIME_S: Final = 253_402_300_799.0
"""The end of the year 9999: no event is later."""

MOST_ALIASES: Final = 1000

_HEAD: Final = struct.Struct("<2sBB4s8sddIBBH")
_INTEREST: Final = struct.Struct("<HHfd")
_CHANNEL: Final = struct.Struct("<BI")
_ALIAS: Final = struct.Struct("<H")
MAGIC: Final = b"tr"
FLAGS: Final = 3
INTERESTS: Final = 36
"""Where they stand in the head."""
ZEROS: Final = bytes(4)
"""After the flags: stored they are mixed with a check over all of it (``feature_store.state.checksum``)."""


class UnreadableRecordError(Exception):
    """What is stored as a record is none."""


@dataclass(slots=True, eq=True)
class Interest:
    """An item and its views since it was bought last.

    weight: views, each decayed to ``at``, the unix time of the latest. No views: the item was bought at ``at``.
    """

    item_id: str
    views: int
    weight: float
    at: float

    def weight_at(self, now: float, half_life_s: float) -> float:
        """The weight as of another time."""
        return self.weight * math.exp2(min((self.at - now) / half_life_s, 0.0))


@dataclass(slots=True)
class Counted:
    """Events that have been counted and may come again: hour since 1970, and a tag of type and id (as hashes)."""

    hours: array[int] = field(default_factory=lambda: array("I"))
    tags: array[int] = field(default_factory=lambda: array("Q"))

    def __len__(self) -> int:
        return len(self.tags)

    @property
    def ids(self) -> set[int]:
        """Ids of the events that have one."""
        return {tag & ID for tag in self.tags} - {0}

    def kinds_at(self, hour: int) -> list[int]:
        """Types of the events of an hour."""
        return [tag >> ID_BITS for tag, then in zip(self.tags, self.hours, strict=True) if then == hour]

    def add(self, hour: int, kind: int, event_id: int) -> None:
        """Count one more; id 0 is an event that has none."""
        self.hours.append(hour)
        self.tags.append(kind << ID_BITS | event_id)

    def forget_before(self, hour: int) -> None:
        """Forget what is too old to come again."""
        if self.hours and min(self.hours) < hour:
            keep = [at for at, then in enumerate(self.hours) if then >= hour]
            self.hours = array("I", [self.hours[at] for at in keep])
            self.tags = array("Q", [self.tags[at] for at in keep])

    def merged(self, other: Counted) -> Counted:
        """What either has counted; an event with an id that both have stands once."""
        mine, found = self.ids, Counted(self.hours[:], self.tags[:])
        for hour, tag in zip(other.hours, other.tags, strict=True):
            if tag & ID not in mine:
                found.hours.append(hour)
                found.tags.append(tag)
        return found


@dataclass(slots=True)
class Record:
    """A customer's record. Times in unix seconds, infinite where nothing was seen; interests best first."""

    scoring: bool = True
    automated_response: bool = True
    alias_of: str | None = None
    first_seen: float = math.inf
    last_seen: float = -math.inf
    interests: list[Interest] = field(default_factory=list)
    channels: dict[str, int] = field(default_factory=dict)
    aliases: list[str] = field(default_factory=list)
    counted: Counted = field(default_factory=Counted)

    def view(self, item_id: str, at: float, half_life_s: float) -> None:
        """The customer looked at an item."""
        for interest in self.interests:
            if interest.item_id == item_id:
                _add(interest, Interest(item_id, 1, 1.0, at), half_life_s)  # a late look at what was bought is none
                return
        self.interests.append(Interest(item_id, 1, 1.0, at))

    def came_from(self, channel: str) -> None:
        """An event came from there; from too many places, the rest counts as one."""
        if channel not in self.channels and len(self.channels) >= MOST_CHANNELS:
            channel = OTHER
        self.channels[channel] = min(self.channels.get(channel, 0) + 1, MOST_COUNT)

    def buy(self, item_id: str, at: float) -> None:
        """The customer bought an item: looks from before are done with, and late ones will be told by the time."""
        for interest in self.interests:
            if interest.item_id == item_id:
                if interest.at <= at:
                    interest.views, interest.weight, interest.at = 0, 0.0, at
                elif interest.views:
                    interest.views, interest.weight = 1, 1.0  # at least the latest look came after
                return
        self.interests.append(Interest(item_id, 0, 0.0, at))

    def tidy(self, rules: Interests, now: float, max_lateness_s: float) -> None:
        """Put interests in order and forget those that have faded, or are too many."""
        half_life_s = rules.half_life_s
        kept = [
            interest
            for interest in self.interests
            if (
                interest.weight_at(now, half_life_s) >= LEAST_WEIGHT
                if interest.views
                else interest.at >= now - max_lateness_s
            )
        ]
        if len(kept) > 1:
            kept.sort(key=lambda interest: _rank(interest, half_life_s))
        self.interests = kept[: rules.keep]

    def merged(self, other: Record, rules: Interests, now: float, max_lateness_s: float) -> Record:
        """The record of one customer who is both; consent is that of the stricter one."""
        found = Record(
            scoring=self.scoring and other.scoring,
            automated_response=self.automated_response and other.automated_response,
            first_seen=min(self.first_seen, other.first_seen),
            last_seen=max(self.last_seen, other.last_seen),
            interests=_merged_interests(self.interests, other.interests, rules.half_life_s),
            channels=_merged_channels(self.channels, other.channels),
            aliases=[*self.aliases, *(name for name in other.aliases if name not in self.aliases)],
            counted=self.counted.merged(other.counted),
        )
        found.tidy(rules, now, max_lateness_s)
        return found

    def pack(self) -> bytes:
        """The packed value, with position 0."""
        flags = (not self.scoring) * NO_SCORING | (not self.automated_response) * NO_RESPONSE
        aliases = self.aliases
        if self.alias_of is not None:
            flags |= ALIAS
            aliases = [self.alias_of]
        counts = len(self.interests), len(self.channels), len(aliases)
        seen = self.first_seen, self.last_seen, len(self.counted)
        parts = [_HEAD.pack(MAGIC, VERSION, flags, ZEROS, bytes(8), *seen, *counts)]
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
        return b"".join(parts)

    @staticmethod
    def stored(value: bytes | None) -> Record:
        """The record of a customer, a new one where none is stored; UnreadableRecordError where it is none."""
        return Record() if value is None else Record.unpack(value)

    @staticmethod
    def unpack(value: bytes) -> Record:
        """The record of a stored value; UnreadableRecordError where it is none."""
        try:
            magic, version, flags, zeros, _, *rest = _HEAD.unpack_from(value)
            first, last, counted, interests, channels, aliases = rest
            if (magic, version, zeros) != (MAGIC, VERSION, ZEROS):
                raise UnreadableRecordError
            said = flags, interests, channels, aliases, counted, first, last
            if flags & ALIAS and said != (ALIAS, 0, 0, 1, 0, math.inf, -math.inf):  # a bit flipped
                raise UnreadableRecordError
            at, found, came_from, names = _HEAD.size, [], {}, []
            for _ in range(interests):
                interest, at = _interest(value, at)
                found.append(interest)
            for _ in range(channels):
                size, count = _CHANNEL.unpack_from(value, at)
                at += _CHANNEL.size + size
                came_from[value[at - size : at].decode()] = count
            for _ in range(aliases):
                (size,) = _ALIAS.unpack_from(value, at)
                at += _ALIAS.size + size
                names.append(value[at - size : at].decode())
        except (struct.error, UnicodeDecodeError) as error:
            raise UnreadableRecordError from error
        if len(value) != at + ENTRY_BYTES * counted or not (_seen(first) and _seen(last)):
            raise UnreadableRecordError
        root = names.pop() if flags & ALIAS else None
        tags = at + 4 * counted
        again = Counted(array("I", value[at:tags]), array("Q", value[tags:]))
        allowed = not flags & NO_SCORING, not flags & NO_RESPONSE
        return Record(*allowed, root, first, last, found, came_from, names, again)


class Told(NamedTuple):
    """What a record says to a score: whether it is allowed, whether alerts are, and the top interest."""

    scoring: bool
    automated_response: bool
    top: Interest | None


def told(value: bytes) -> Told | str | None:
    """What a stored record says to a score; the customer's id if it is an alias; None if there is nothing to say.

    Reads no more than that needs; UnreadableRecordError where it is no record.
    """
    if len(value) < _HEAD.size or value[:2] != MAGIC or value[2] != VERSION or value[4:8] != ZEROS:
        raise UnreadableRecordError
    flags, interests = value[FLAGS], value[INTERESTS]
    if flags & ALIAS:
        return alias_of(value)
    top = None
    if interests:
        try:
            best, _ = _interest(value, _HEAD.size)
        except (struct.error, UnicodeDecodeError) as error:
            raise UnreadableRecordError from error
        if best.views:
            top = best
    if top is None and not flags:
        return None
    return Told(not flags & NO_SCORING, not flags & NO_RESPONSE, top)


def alias_of(value: bytes | None) -> str | None:
    """The id of the customer that a stored record names, None where it is no alias's."""
    if value is None or len(value) < _HEAD.size or not value.startswith(MAGIC) or not value[FLAGS] & ALIAS:
        return None
    return Record.unpack(value).alias_of


def hashed(event_id: str) -> int:
    """An event id in 48 bits, never 0: of a customer's thousand, the next one meets another by a chance of 4e-12."""
    return int.from_bytes(blake2b(event_id.encode(), digest_size=ID_BITS // 8).digest()) or 1


def hashed_type(event_type: str) -> int:
    """An event type in 16 bits."""
    return int.from_bytes(blake2b(event_type.encode(), digest_size=2).digest())


def hour_of(event_time: float) -> int:
    """Hours since 1970."""
    return min(int(event_time // HOUR_S), 0xFFFF_FFFF)


def _interest(value: bytes, at: int) -> tuple[Interest, int]:
    """The interest that stands there, and where it ends; UnreadableRecordError, struct.error or UnicodeDecodeError."""
    size, views, weight, moment = _INTEREST.unpack_from(value, at)
    start = at + _INTEREST.size
    if start + size > len(value) or not 0 <= moment <= LATEST_TIME_S:
        raise UnreadableRecordError
    if not (0 < weight <= 2 * views if views else weight == 0):  # a view weighs 1 at most, and rounding a little
        raise UnreadableRecordError
    return Interest(value[start : start + size].decode(), views, weight, moment), start + size


def _seen(t: float) -> bool:
    """Whether a customer can have been seen then, or never."""
    return 0 <= t <= LATEST_TIME_S or math.isinf(t)


def _rank(interest: Interest, half_life_s: float) -> tuple[float, float, str]:
    """Sorts by weight at any common time, most first; what was bought comes last."""
    if not interest.views:
        return math.inf, -interest.at, interest.item_id
    return -(math.log2(interest.weight) + interest.at / half_life_s), -interest.at, interest.item_id


def _add(mine: Interest, other: Interest, half_life_s: float) -> None:
    """Make ``mine`` what both say of the same item."""
    at = max(mine.at, other.at)
    if mine.views and other.views:
        mine.weight = mine.weight_at(at, half_life_s) + other.weight_at(at, half_life_s)
        mine.views, mine.at = min(mine.views + other.views, MOST_VIEWS), at
        mine.weight = min(mine.weight, mine.views)
        return
    newest = other if (other.at, not other.views) > (mine.at, not mine.views) else mine
    mine.views, mine.weight, mine.at = newest.views, newest.weight, newest.at


def _merged_channels(mine: dict[str, int], others: dict[str, int]) -> dict[str, int]:
    """Counts from both; of too many places, those with the fewest count as one."""
    found = {name: mine.get(name, 0) + others.get(name, 0) for name in [*mine, *others]}
    named = [name for name in found if name != OTHER]
    if len(named) > MOST_CHANNELS:
        named.sort(key=lambda name: (-found[name], name))
        rest = found.get(OTHER, 0) + sum(found[name] for name in named[MOST_CHANNELS:])
        found = {name: found[name] for name in named[:MOST_CHANNELS]} | {OTHER: rest}
    return {name: min(count, MOST_COUNT) for name, count in found.items()}


def _merged_interests(mine: list[Interest], others: list[Interest], half_life_s: float) -> list[Interest]:
    found = {i.item_id: Interest(i.item_id, i.views, i.weight, i.at) for i in mine}
    for other in others:
        if (same := found.get(other.item_id)) is None:
            found[other.item_id] = other
        else:
            _add(same, other, half_life_s)
    return list(found.values())
