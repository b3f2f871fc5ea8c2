"""A commit whose reply is lost is not sent again: nobody knows whether it was written."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path

import pytest
import redis

from feature_store.bundles import bundle
from feature_store.errors import StoreUnavailableError
from feature_store.online.commit import SCRIPT_HASH
from feature_store.online.customer_store import CustomerStore
from feature_store.online.store import RedisStore
from feature_store.state.events import Event, Rules
from feature_store.state.folding import EventFolder, Verdict
from feature_store.state.layout import StateLayout
from tests.conftest import Trained
from tests.waiting import PATIENCE_S


class Between:
    """Between a client and Redis: on demand it keeps the next reply to a commit to itself, and closes."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.swallow = False
        self.serving: list[asyncio.Task[None] | None] = []

    async def end(self) -> None:
        """Wait until all connections are closed."""
        await asyncio.gather(*(task for task in self.serving if task is not None))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.serving.append(asyncio.current_task())
        from_redis, to_redis = await asyncio.open_unix_connection(self._path)
        asked = False

        async def answer() -> None:
            while reply := await from_redis.read(65_536):
                if self.swallow and asked:
                    self.swallow = False
                    break
                writer.write(reply)
            writer.close()

        answering = asyncio.create_task(answer())
        while data := await reader.read(65_536):
            asked = asked or (self.swallow and SCRIPT_HASH in data)
            to_redis.write(data)
        to_redis.close()
        await answering
        for end in (to_redis, writer):
            with contextlib.suppress(OSError):
                await end.wait_closed()


def test_an_event_without_an_id_is_never_counted_twice_by_the_server_itself(
    toy: Trained, redis_url: str, tmp_path: Path
) -> None:
    manifest = bundle.read(toy.registry).manifest
    fold = EventFolder([StateLayout(manifest.features)], manifest.interests, Rules())

    def event(event_id: str = "") -> Event:
        return Event("once", "view", time.time(), channel="web", event_id=event_id)

    async def run() -> None:
        between = Between(redis_url.removeprefix("unix://"))
        server = await asyncio.start_unix_server(between.serve, str(tmp_path / "s"))
        store = RedisStore(f"unix://{tmp_path}/s", 2.0)
        customers = CustomerStore(store, fold)
        await customers.record([event()])
        for item in (event(), event("1")):
            between.swallow = True
            with pytest.raises(StoreUnavailableError):
                await customers.record([item])
        (outcome,) = await customers.record([event("1")])
        assert outcome.verdict is Verdict.DUPLICATE
        assert (await customers.get("once")).profile.channels == {"web": 3}
        await customers.erase("once")
        await store.close()
        server.close()
        await between.end()

    asyncio.run(asyncio.wait_for(run(), PATIENCE_S))
    with redis.Redis.from_url(redis_url) as connection:
        assert not connection.exists("tm:live:once")
