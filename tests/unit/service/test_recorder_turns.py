"""Events and the loop: a call is answered whenever it comes, and scores have their turn between batches."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from feature_store.events import Event, Rules
from feature_store.live import ACCEPTED, Outcome
from service.recorder import BATCH, Recorded, Recorder

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


def test_others_have_turns_of_the_loop_between_batches() -> None:
    sizes: list[int] = []
    turns_before: list[int] = []
    turns = 0

    async def record(batch: Sequence[Event]) -> list[Outcome]:
        sizes.append(len(batch))
        turns_before.append(turns)
        return [ACCEPTED] * len(batch)

    async def run() -> Recorded:
        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        recorded = await Recorder(record, Rules(), lambda: NOW).record(events(3 * BATCH))
        counting.cancel()
        return recorded

    assert asyncio.run(run()).accepted == 3 * BATCH
    assert sizes == [BATCH] * 3
    assert turns_before[0] < turns_before[1] < turns_before[2]
