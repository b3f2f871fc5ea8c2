"""Events and the loop: a call is answered whenever it comes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from feature_store.events import Event, Rules
from feature_store.live import ACCEPTED, Outcome
from service.recorder import Recorded, Recorder

NOW = 1_800_000_000.0


def events(count: int) -> list[Event]:
    return [Event(str(number), "purchase", NOW) for number in range(count)]


async def stored(batch: Sequence[Event]) -> list[Outcome]:
    return [ACCEPTED] * len(batch)


def test_a_call_that_comes_just_as_all_workers_end_is_answered() -> None:
    recorder = Recorder(stored, Rules(), lambda: NOW)

    async def later() -> Recorded:
        await asyncio.sleep(0)
        return await recorder.record(events(1))

    async def both() -> list[Recorded]:
        calls = [recorder.record(events(1)), recorder.record(events(1)), later()]
        return await asyncio.wait_for(asyncio.gather(*calls), 1)

    assert [recorded.accepted for recorded in asyncio.run(both())] == [1, 1, 1]
