"""Events of many calls at once: nobody is left waiting, in whatever turn of the loop they come."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence

import pytest

from feature_store.state.events import Event, Problem, Rules, problem
from feature_store.state.folding import ACCEPTED, DUPLICATE, Outcome
from service.batching import event_batcher
from service.batching.event_batcher import (
    BATCH_ROWS,
    BATCH_ROWS_BESIDE_SCORES,
    WORKERS,
    YIELDED_TURNS,
    EventBatcher,
    RecordingResult,
)
from tests.waiting import PATIENCE_S


def event(customer_id: str = "c", event_id: str = "") -> Event:
    return Event(customer_id, "view", time.time(), event_id=event_id)


class Store:
    """Knows no customers, only which events it has seen."""

    def __init__(self, turns: int = 1) -> None:
        self.turns = turns
        self.batches: list[int] = []
        self.at_once = self.most_at_once = 0

    async def record(self, events: Sequence[Event]) -> list[Outcome]:
        self.batches.append(len(events))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        for _ in range(self.turns):
            await asyncio.sleep(0)
        self.at_once -= 1
        return [DUPLICATE if item.event_id == "again" else ACCEPTED for item in events]


@pytest.mark.parametrize("turns", range(4))
def test_events_that_arrive_in_any_turn_of_the_loop_are_not_left_waiting(turns: int) -> None:
    async def run() -> None:
        recorder = EventBatcher(Store(turns).record, Rules())

        async def call(wait: int) -> int:
            for _ in range(wait):
                await asyncio.sleep(0)
            return (await recorder.record([event()])).accepted

        for gap in range(12):
            calls = [asyncio.create_task(call(wait)) for wait in (0, 1, gap, gap)]
            assert await asyncio.wait_for(asyncio.gather(*calls), PATIENCE_S) == [1, 1, 1, 1]

    asyncio.run(run())


def test_events_that_come_in_the_very_turn_in_which_the_workers_end_are_not_left_waiting() -> None:
    async def run() -> None:
        recorder = EventBatcher(Store(0).record, Rules())
        calls = [asyncio.create_task(recorder.record([event()])) for _ in range(WORKERS)]
        await asyncio.sleep(0)  # now the workers have been made, and end in the next turn
        calls.append(asyncio.create_task(recorder.record([event()])))
        result = await asyncio.wait_for(asyncio.gather(*calls), PATIENCE_S)
        assert [item.accepted for item in result] == [1] * (WORKERS + 1)

    asyncio.run(run())


def test_calls_share_batches_and_each_gets_the_outcomes_of_its_own_events() -> None:
    async def run() -> None:
        store = Store()
        recorder = EventBatcher(store.record, Rules())
        large = [event(event_id="again" if at % 2 else "") for at in range(200)]
        replies = await asyncio.gather(
            recorder.record(large),
            recorder.record([event(), event("")]),
            *(recorder.record([event()]) for _ in "12345"),
        )
        assert [(result.accepted, result.duplicates, len(result.rejected)) for result in replies] == [
            (100, 100, 0),
            (1, 0, 1),
            *[(1, 0, 0)] * 5,
        ]
        assert max(store.batches) == BATCH_ROWS
        assert store.most_at_once <= WORKERS

    asyncio.run(run())


def test_other_calls_do_not_wait_for_the_events_of_a_cancelled_call() -> None:
    async def run() -> None:
        store = Store(5)
        recorder = EventBatcher(store.record, Rules())
        calls = [asyncio.create_task(recorder.record([event()] * 500)) for _ in range(3)]
        await asyncio.sleep(0)
        for call in calls[:2]:
            call.cancel()
        assert (await calls[2]).accepted == 500
        assert sum(store.batches) < 500 + 3 * BATCH_ROWS
        assert not recorder._queue
        assert not recorder._workers

    asyncio.run(run())


def test_events_give_way_to_scores_in_small_batches_with_turns_of_the_loop_between() -> None:
    async def run() -> None:
        asked = True
        store = Store()
        recorder = EventBatcher(store.record, Rules(), scoring=lambda: asked)
        turns = 0

        async def score() -> None:
            nonlocal turns
            while asked:
                await asyncio.sleep(0)
                turns += 1

        scoring = asyncio.create_task(score())
        await recorder.record([event() for _ in range(4 * BATCH_ROWS)])
        assert max(store.batches) == BATCH_ROWS_BESIDE_SCORES
        assert turns >= YIELDED_TURNS * (len(store.batches) // WORKERS - 1)
        asked = False
        await scoring
        store.batches.clear()
        await recorder.record([event() for _ in range(4 * BATCH_ROWS)])
        assert max(store.batches) == BATCH_ROWS

    asyncio.run(run())


@pytest.mark.parametrize("kind", ["view", ""])
def test_a_large_request_is_checked_in_slices_between_which_others_run(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    turns, checked = 0, Counter[int]()

    def counted(event: Event, rules: Rules, now: float) -> Problem | None:
        checked[turns] += 1
        return problem(event, rules, now)

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def run() -> RecordingResult:
        counting = asyncio.create_task(count_turns())
        result = await EventBatcher(Store().record, Rules()).record([Event("c", kind, time.time())] * 1000)
        counting.cancel()
        return result

    monkeypatch.setattr(event_batcher, "problem", counted)
    result = asyncio.run(run())
    assert result.accepted + len(result.rejected) == checked.total() == 1000
    assert max(checked.values()) <= BATCH_ROWS
