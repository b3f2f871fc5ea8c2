"""Events past capacity: calls are shed by the time they would wait, and what is late or given up is not recorded."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Sequence
from typing import Any

import pytest
from tidemark.v1 import events_pb2

from feature_store.state.events import Event, Rules
from feature_store.state.folding import ACCEPTED, Outcome
from service.api.events import EventStream
from service.batching.event_batcher import BATCH_ROWS, EventBatcher
from service.call_context import NO_CONTEXT, CallContext
from service.errors import Reason, RequestError
from tests.waiting import PATIENCE_S, settle

NOW = 1_800_000_000.0
RULES = Rules(max_lateness_s=1e6, max_future_s=10, cap_type_hour=9, cap_hour=9, cap_total=9, keep_text=False)
FULL = [Event(f"c{number}", "view", NOW) for number in range(BATCH_ROWS)]


class Gate:
    """A store whose batches end when it is let go, and a clock."""

    def __init__(self) -> None:
        self.recorded: list[str] = []
        self.open = asyncio.Event()
        self.now = 100.0

    async def record(self, events: Sequence[Event]) -> list[Outcome]:
        self.recorded += [event.customer_id for event in events]
        await self.open.wait()
        return [ACCEPTED] * len(events)

    def recorder(self, max_wait_s: float = 0.004) -> EventBatcher:
        return EventBatcher(self.record, RULES, lambda: NOW, max_wait_s=max_wait_s, monotonic=lambda: self.now)


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, PATIENCE_S))


async def record(recorder: EventBatcher, events: Sequence[Event], deadline: float = math.inf) -> int:
    """As a handler does it."""
    context = CallContext(deadline)
    recorder.admit(context)
    return (await recorder.record(events, context)).accepted


async def busy(recorder: EventBatcher) -> list[asyncio.Task[int]]:
    """Both workers have a batch under way."""
    tasks = []
    for _ in range(2):
        tasks.append(asyncio.create_task(record(recorder, FULL)))
        await settle()
    return tasks


def test_calls_that_would_wait_too_long_are_shed_and_the_others_recorded() -> None:
    async def main() -> None:
        gate = Gate()
        recorder = gate.recorder()
        tasks = [*await busy(recorder), *(asyncio.create_task(record(recorder, FULL)) for _ in range(10))]
        await settle()
        gate.open.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        shed = [item for item in outcomes if isinstance(item, RequestError)]
        assert {error.reason for error in shed} == {Reason.OVERLOADED}
        assert all(error.retry_after_s and error.pushback_ms for error in shed)
        assert len(shed) == recorder.drops.shed == 7  # two and a half batches of 2 ms, for two workers
        assert len(gate.recorded) == 5 * BATCH_ROWS

    run(main())


def test_only_the_first_message_of_a_stream_is_shed() -> None:
    async def main() -> None:
        gate = Gate()
        recorder = gate.recorder(0.001)
        empty = events_pb2.StreamEventsRequest().SerializeToString()
        begun, late = EventStream(recorder, NO_CONTEXT), EventStream(recorder, NO_CONTEXT)
        await begun.answer(empty)
        tasks = [*await busy(recorder), *(asyncio.create_task(record(recorder, FULL)) for _ in range(3))]
        await settle()
        await begun.answer(empty)
        with pytest.raises(RequestError) as caught:
            await late.answer(empty)
        assert caught.value.reason is Reason.OVERLOADED
        gate.open.set()
        await asyncio.gather(*tasks)
        await late.answer(empty)

    run(main())


def test_a_deadline_that_cannot_be_met_is_refused_and_one_that_went_by_is_not_recorded() -> None:
    async def main() -> None:
        gate = Gate()
        recorder = gate.recorder(math.inf)
        tasks = await busy(recorder)
        late = asyncio.create_task(record(recorder, [Event("late", "view", NOW)], gate.now + 1))
        leaver = asyncio.create_task(record(recorder, [Event("leaver", "view", NOW)]))
        await settle()
        with pytest.raises(RequestError) as caught:
            await asyncio.create_task(record(recorder, FULL, gate.now + 0.001))
        assert caught.value.reason is Reason.DEADLINE_TOO_SHORT
        leaver.cancel()
        gate.now += 2
        gate.open.set()
        outcomes = await asyncio.gather(*tasks, late, leaver, return_exceptions=True)
        assert outcomes[:2] == [BATCH_ROWS, BATCH_ROWS]
        assert isinstance(outcomes[2], RequestError)
        assert outcomes[2].reason is Reason.DEADLINE_TOO_SHORT
        assert not {"late", "leaver"} & set(gate.recorded)
        assert (recorder.drops.refused, recorder.drops.expired, recorder.drops.cancelled) == (1, 1, 1)
        assert recorder._queue.rows == 0

    run(main())
