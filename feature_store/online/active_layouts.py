"""The active layouts: every server folds live events into the states of all of them.

::

    load, or a server that starts ──► {tm:layouts}:folded, with the features: every commit folds into it from now on
    load has ended                ──► tm:layouts: servers may switch to it
    prune                         ──► removed from both, then the states are deleted

A commit names the version of the active layouts that it was computed for, and is refused if they have changed. So from
the moment a layout is announced, every event is folded into it, by whichever server. What a load finds in the log and
what servers fold meet without a gap, and a server can return to an earlier model as long as its states are kept.
"""

from __future__ import annotations

import json
import logging
import re
import uuid
from collections.abc import Mapping
from typing import Final, NamedTuple

from feature_store.definitions import Feature
from feature_store.online.command_client import CommandClient
from feature_store.online.keys import ACTIVE_LAYOUTS, CHUNK, ERASURE_KEY, LAYOUTS_VERSION, STORED_LAYOUTS, Keys
from feature_store.online.store import RedisStore
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


class ActiveLayouts(NamedTuple):
    """The active layouts by fingerprint, their version, and the key of the hashes of erased customers.

    The key is read together with the layouts, because a Redis that has lost it has lost the version as well.
    """

    version: bytes
    layouts: Mapping[str, StateLayout]
    erasure_key: bytes


def announce(client: CommandClient, layout: StateLayout) -> None:
    """Make a layout active: everything recorded from now on is folded into it as well."""
    client.call(client.redis.set, ERASURE_KEY, _new_version(), nx=True)
    client.evaluate(ADD, [ACTIVE_LAYOUTS, LAYOUTS_VERSION], *_added(layout))


async def register(store: RedisStore, layout: StateLayout) -> None:
    """Make a layout active, and note that it has states, for a server; StoreUnavailableError."""
    await store.ask(b"SADD", STORED_LAYOUTS, layout.fingerprint.encode())
    await store.ask(b"SET", ERASURE_KEY, _new_version(), b"NX")
    await store.ask(b"EVAL", ADD, b"2", ACTIVE_LAYOUTS, LAYOUTS_VERSION, *_added(layout))


async def read_active(store: RedisStore, known: Mapping[str, StateLayout]) -> ActiveLayouts:
    """The active layouts; those in ``known`` are reused. StoreUnavailableError."""
    # Version first: a commit with an old version and new layouts is refused, and then they are read again.
    version = await store.ask(b"GET", LAYOUTS_VERSION) or b""
    erasure_key = await store.ask(b"GET", ERASURE_KEY) or b""
    reply = await store.ask(b"HGETALL", ACTIVE_LAYOUTS)
    pairs = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)  # RESP3 or RESP2
    definitions = [(name.decode(), definition) for name, definition in pairs]
    layouts = {name: known.get(name) or _layout(name, definition) for name, definition in definitions}
    usable = {name: layout for name, layout in layouts.items() if layout is not None}
    return ActiveLayouts(version, usable, erasure_key)


async def is_ready(store: RedisStore, fingerprint: str) -> bool:
    """Whether a layout has states that are loaded and up to date; StoreUnavailableError."""
    name = fingerprint.encode()
    is_stored = await store.ask(b"SISMEMBER", STORED_LAYOUTS, name)
    return bool(is_stored) and bool(await store.ask(b"HEXISTS", ACTIVE_LAYOUTS, name))


class Pruner:
    """Removes the states of layouts. Profiles do not belong to a layout and stay."""

    def __init__(self, client: CommandClient) -> None:
        self._client = client
        self._redis = client.redis

    def fingerprints(self) -> list[str]:
        """Fingerprints of all layouts that have states or are active."""
        stored = self._client.call(self._redis.smembers, STORED_LAYOUTS)
        active = self._client.call(self._redis.hkeys, ACTIVE_LAYOUTS)
        return sorted(name.decode() for name in {*stored, *active} if re.fullmatch(FINGERPRINT.encode(), name))

    def remove(self, fingerprint: str) -> int:
        """Deactivate a layout, remove its states and the facts about its load, and return the number of states."""
        # Deactivated first, so that no server adds states while they are being removed.
        self._client.evaluate(
            REMOVE, [ACTIVE_LAYOUTS, LAYOUTS_VERSION, STORED_LAYOUTS], fingerprint.encode(), _new_version()
        )
        keys, removed, cursor = Keys(fingerprint), 0, 0
        self._client.call(self._redis.unlink, keys.load)
        while True:
            cursor, chunk = self._client.call(self._redis.scan, cursor, keys.prefix + b"*", CHUNK)
            removed += self._client.call(self._redis.unlink, *chunk) if chunk else 0
            if cursor == 0:
                return removed


def _added(layout: StateLayout) -> tuple[bytes, bytes, bytes]:
    features = [feature.model_dump(exclude_none=True) for feature in layout.features]
    return layout.fingerprint.encode(), json.dumps(features).encode(), _new_version()


def _new_version() -> bytes:
    """Random, so that it never equals an earlier one, even of a Redis that lost its data and started anew."""
    return uuid.uuid4().hex.encode()


def _layout(name: str, definition: bytes) -> StateLayout | None:
    """A layout from its definition; None if this release does not know such features."""
    try:
        layout = StateLayout([Feature.model_validate(line) for line in json.loads(definition)])
    except ValueError:
        layout = None
    if layout is None or layout.fingerprint != name:
        logger.error("live events cannot be folded into states of fingerprint %s: this release does not know it", name)
        return None
    return layout
