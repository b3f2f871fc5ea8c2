"""The layouts whose states live beside each other: live events are folded into all of them, by every server.

::

    load, or a server that starts ──► {tm:layouts}:folded, with the features: every commit folds into it from now on
    load has ended                ──► tm:layouts: servers may go over to it
    prune                         ──► out of both, then the states are removed

A commit says for which layouts it was computed (by a tag), and is refused where they are others by now. So from the
moment a layout is announced no event passes it by, whoever records it: what a load finds in the log and what servers
fold meets without a gap, and a model can be gone back to for as long as its states are kept.
"""

from __future__ import annotations

import json
import logging
import re
import uuid
from collections.abc import Mapping
from typing import Final, NamedTuple

from feature_store.definitions import Feature
from feature_store.online.store import CHUNK, FOLDED, LAYOUTS, TAG, Keys, LogReader, Redis
from feature_store.state.layout import StateLayout

logger: Final = logging.getLogger(__name__)

FINGERPRINT: Final = r"[0-9a-f]{8}"
ADD: Final = b"""
if redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2]) == 1 or redis.call('EXISTS', KEYS[2]) == 0 then
    redis.call('SET', KEYS[2], ARGV[3])
end
"""
REMOVE: Final = b"""
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('SREM', KEYS[3], ARGV[1])
redis.call('SET', KEYS[2], ARGV[2])
"""


class Folded(NamedTuple):
    """The layouts that live events are folded into, and their tag."""

    tag: bytes
    layouts: Mapping[str, StateLayout]


def announce(redis: LogReader, layout: StateLayout) -> None:
    """Have all that is recorded from now on folded into this layout too."""
    redis.evaluate(ADD, [FOLDED, TAG], *_added(layout))


async def register(redis: Redis, layout: StateLayout) -> None:
    """The same for a server, which also says that there are states; StoreUnavailableError."""
    await redis.ask(b"SADD", LAYOUTS, layout.fingerprint.encode())
    await redis.ask(b"EVAL", ADD, b"2", FOLDED, TAG, *_added(layout))


async def folded(redis: Redis, known: Mapping[str, StateLayout]) -> Folded:
    """What live events are folded into; ``known`` are layouts that need not be made again. StoreUnavailableError."""
    tag = await redis.ask(b"GET", TAG) or b""  # first: an old tag with new layouts is refused, and asked for again
    told = await redis.ask(b"HGETALL", FOLDED)
    found = told.items() if isinstance(told, dict) else zip(told[::2], told[1::2], strict=True)  # by protocol
    names = [(name.decode(), definition) for name, definition in found]
    layouts = {name: known.get(name) or _layout(name, definition) for name, definition in names}
    return Folded(tag, {name: layout for name, layout in layouts.items() if layout is not None})


async def is_ready(redis: Redis, fingerprint: str) -> bool:
    """Whether there are states of a fingerprint, loaded and kept up since; StoreUnavailableError."""
    name = fingerprint.encode()
    return bool(await redis.ask(b"SISMEMBER", LAYOUTS, name)) and bool(await redis.ask(b"HEXISTS", FOLDED, name))


class Pruner(LogReader):
    """Removes the states of fingerprints, for a command. Records are nobody's states: they stay."""

    def fingerprints(self) -> list[str]:
        """All that there are states of, or that live events are folded into."""
        names = {*self._call(self._redis.smembers, LAYOUTS), *self._call(self._redis.hkeys, FOLDED)}
        return sorted(name.decode() for name in names if re.fullmatch(FINGERPRINT.encode(), name))

    def remove(self, fingerprint: str) -> int:
        """Remove the states of a fingerprint and what is known of it, and return how many they were."""
        self.evaluate(
            REMOVE, [FOLDED, TAG, LAYOUTS], fingerprint.encode(), _new_tag()
        )  # first: nobody adds to them now
        keys, removed, cursor = Keys(fingerprint), 0, 0
        self._call(self._redis.unlink, keys.load)
        while True:
            cursor, found = self._call(self._redis.scan, cursor, keys.prefix + b"*", CHUNK)
            removed += self._call(self._redis.unlink, *found) if found else 0
            if cursor == 0:
                return removed


def _added(layout: StateLayout) -> tuple[bytes, bytes, bytes]:
    features = [feature.model_dump(exclude_none=True) for feature in layout.features]
    return layout.fingerprint.encode(), json.dumps(features).encode(), _new_tag()


def _new_tag() -> bytes:
    """Never one of before, not even of a Redis that was lost and began anew."""
    return uuid.uuid4().hex.encode()


def _layout(name: str, definition: bytes) -> StateLayout | None:
    """A layout from its definition, None where this release does not know such features."""
    try:
        layout = StateLayout([Feature.model_validate(line) for line in json.loads(definition)])
    except ValueError:
        layout = None
    if layout is None or layout.fingerprint != name:
        logger.error("live events cannot be folded into states of fingerprint %s: this release does not know it", name)
        return None
    return layout
