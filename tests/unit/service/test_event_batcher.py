"""Events are recorded in small batches of all calls, each call hears of its own, and a bad one rejects itself alone."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Sequence
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st
from tidemark.v1 import events_pb2

from feature_store.errors import (
    ArchiveBehindError,
    NotInClusterError,
    ReadOnlyStoreError,
    StoreFullError,
    StoreUnavailableError,
)
from feature_store.online.customer_store import ConflictError
from feature_store.state.events import Event, EventReason, Problem, Rules
from feature_store.state.folding import ACCEPTED, DUPLICATE, UNREAD, WITHHELD, Outcome, Verdict
from service.api.events import EventStream
from service.batching.event_batcher import BATCH_ROWS, WORKERS, EventBatcher, IndexedProblem, RecordingResult
from service.call_context import NO_CONTEXT
from service.errors import Code, Reason, RequestError
from tests.waiting import PATIENCE_S, settle

NOW = 1_800_000_000.0
CLIPPED = Problem("amount", EventReason.AMOUNT_CLIPPED, "counted as 100")
OUTCOMES = {
    "dup": DUPLICATE,
    "clip": Outcome(Verdict.ACCEPTED, CLIPPED),
    "withheld": Outcome(Verdict.REJECTED, WITHHELD),
}


def event(name: str = "c", kind: str = "ok") -> Event:
    """An event that is accepted, or becomes what its type says; of type "late", it is refused before."""
    return Event(name, kind, NOW - (1e6 if kind == "late" else 0))


def events(*kinds: str) -> list[Event]:
    return [event(kind=kind) for kind in kinds]


class Store:
    """Remembers the customers of each batch; fails for a batch in which there is one of ``failures``."""

    def __init__(self, gate: asyncio.Event | None = None) -> None:
        self.batches: list[list[str]] = []
        self.failures: dict[str, Exception] = {}
        self.gate = gate
        self.at_once = self.most_at_once = 0

    async def record(self, events: Sequence[Event]) -> list[Outcome]:
        self.batches.append([event.customer_id for event in events])
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await (self.gate.wait() if self.gate else asyncio.sleep(0))
        self.at_once -= 1
        for event in events:
            if event.customer_id in self.failures:
                raise self.failures[event.customer_id]
        return [OUTCOMES.get(event.event_type, ACCEPTED) for event in events]


def recorder_of(store: Store) -> EventBatcher:
    return EventBatcher(store.record, Rules(), clock=lambda: NOW)


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, PATIENCE_S))


def record(*mine: Event) -> tuple[RecordingResult, Store]:
    store = Store()
    return asyncio.run(recorder_of(store).record(mine)), store


# --- what becomes of each -------------------------------------------------------------------------------------------


def test_rejected_and_guarded_events_are_reported_by_their_position_in_the_request() -> None:
    result, store = record(*events("late", "ok", "clip", "dup", "withheld", "ok", "late", "clip", "withheld"))
    assert (result.accepted, result.duplicates) == (4, 1)
    assert [(noted.at, noted.problem.reason) for noted in result.rejected] == [
        (0, "EVENT_TOO_LATE"),
        (4, "CONSENT_WITHHELD"),
        (6, "EVENT_TOO_LATE"),
        (8, "CONSENT_WITHHELD"),
    ]
    assert result.guarded == [IndexedProblem(2, CLIPPED), IndexedProblem(7, CLIPPED)]
    assert store.batches == [["c"] * 7]


@given(st.lists(st.sampled_from(["ok", "dup", "clip", "withheld", "late"]), max_size=300))
def test_positions_are_right_however_a_request_is_cut(kinds: list[str]) -> None:
    result, store = record(*events(*kinds))
    places: dict[str, list[int]] = {kind: [at for at, k in enumerate(kinds) if k == kind] for kind in set(kinds)}
    assert result.accepted == kinds.count("ok") + kinds.count("clip")
    assert result.duplicates == kinds.count("dup")
    assert [noted.at for noted in result.rejected] == sorted([*places.get("withheld", []), *places.get("late", [])])
    assert [noted.at for noted in result.guarded] == places.get("clip", [])
    assert sum(map(len, store.batches)) == len(kinds) - kinds.count("late")


@pytest.mark.parametrize("kinds", [(), ("late",), ("late", "late")])
def test_where_nothing_is_good_nothing_is_stored(kinds: tuple[str, ...]) -> None:
    result, store = record(*events(*kinds))
    assert (result.accepted, len(result.rejected)) == (0, len(kinds))
    assert store.batches == []


def test_events_that_nothing_reads_are_counted_among_the_accepted() -> None:
    result = RecordingResult()
    for at, outcome in enumerate([ACCEPTED, UNREAD, DUPLICATE, UNREAD]):
        result.add_outcome(at, outcome)
    assert (result.accepted, result.duplicates, result.unread) == (3, 1, 2)


def test_events_are_counted_by_verdict_or_reason() -> None:
    async def main() -> None:
        recorder = recorder_of(Store())
        await recorder.record(events("ok", "clip", "dup", "late"))
        await recorder.record(events("ok", "withheld"))
        assert recorder.counts == {
            "accepted": 3,
            "duplicates": 1,
            "AMOUNT_CLIPPED": 1,
            "EVENT_TOO_LATE": 1,
            "CONSENT_WITHHELD": 1,
        }

    run(main())


# --- batches --------------------------------------------------------------------------------------------------------


def test_calls_that_arrive_together_form_one_batch() -> None:
    async def main() -> None:
        store = Store()
        recorder = recorder_of(store)
        result = await asyncio.gather(*(recorder.record(events("ok")) for _ in range(BATCH_ROWS)))
        assert [item.accepted for item in result] == [1] * BATCH_ROWS
        assert [len(batch) for batch in store.batches] == [BATCH_ROWS]

    run(main())


def test_events_that_arrive_while_batches_are_stored_form_the_next_one() -> None:
    async def main() -> None:
        store = Store(gate := asyncio.Event())
        recorder = recorder_of(store)
        calls = []
        for _ in range(12):
            calls.append(asyncio.create_task(recorder.record(events("ok"))))
            await settle()
        gate.set()
        await asyncio.gather(*calls)
        assert sorted(len(batch) for batch in store.batches) == [1, 1, 10]

    run(main())


def test_no_batch_is_larger_than_it_may_be_and_few_are_under_way() -> None:
    async def main() -> None:
        store = Store()
        recorder = recorder_of(store)
        sizes = [1000, 1, 63, 64, 65, 300]
        result = await asyncio.gather(*(recorder.record(events(*["ok"] * size)) for size in sizes))
        assert [item.accepted for item in result] == sizes
        assert max(map(len, store.batches)) == BATCH_ROWS
        assert len(store.batches) <= math.ceil(sum(sizes) / BATCH_ROWS) + WORKERS
        assert store.most_at_once == WORKERS

    run(main())


def test_a_single_event_does_not_wait_for_a_large_call() -> None:
    async def main() -> None:
        store = Store()
        recorder = recorder_of(store)
        large = [asyncio.create_task(recorder.record([event("large")] * 1000)) for _ in range(3)]
        await settle(5)
        begun = len(store.batches)
        await recorder.record([event("single")])
        at = next(n for n, batch in enumerate(store.batches) if "single" in batch)
        assert at <= begun + len(large)
        assert not any(call.done() for call in large)
        await asyncio.gather(*large)

    run(main())


def test_events_of_a_call_are_stored_in_their_order() -> None:
    _, store = record(*(event(str(n)) for n in range(200)))
    assert [name for batch in store.batches for name in batch] == [str(n) for n in range(200)]


def test_a_call_at_any_moment_of_the_end_of_a_batch_is_taken_up() -> None:
    async def main() -> None:
        for turns in range(40):
            recorder = recorder_of(Store())
            await recorder.record(events("ok"))
            for _ in range(turns):
                await asyncio.sleep(0)
            await asyncio.wait_for(recorder.record(events("ok")), PATIENCE_S)

    run(main())


def test_a_call_is_taken_up_though_all_batches_have_just_ended_together() -> None:
    async def main() -> None:
        gate = asyncio.get_running_loop().create_future()

        async def store(mine: Sequence[Event]) -> list[Outcome]:
            await gate
            return [ACCEPTED] * len(mine)

        recorder = EventBatcher(store, Rules(), clock=lambda: NOW)

        async def call(times: int) -> int:
            return sum([(await recorder.record(events("ok"))).accepted for _ in range(times)])

        callers = []
        for times in [2] + [1] * (WORKERS - 1):
            callers.append(asyncio.create_task(call(times)))
            await settle()
        gate.set_result(None)
        assert await asyncio.wait_for(asyncio.gather(*callers), PATIENCE_S) == [2] + [1] * (WORKERS - 1)

    run(main())


# --- failures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "reason", "code"),
    [
        (StoreUnavailableError("secret-host"), Reason.FEATURE_STORE_UNAVAILABLE, Code.UNAVAILABLE),
        (StoreFullError("OOM"), Reason.FEATURE_STORE_FULL, Code.RESOURCE_EXHAUSTED),
        (ReadOnlyStoreError("READONLY"), Reason.FEATURE_STORE_UNAVAILABLE, Code.UNAVAILABLE),
        (NotInClusterError(), Reason.NOT_IN_CLUSTER, Code.FAILED_PRECONDITION),
        (ArchiveBehindError(), Reason.ARCHIVE_BEHIND, Code.RESOURCE_EXHAUSTED),
        (ConflictError(), Reason.CONFLICT, Code.ABORTED),
        (ValueError("customer secret-4711"), Reason.INTERNAL, Code.INTERNAL),
    ],
)
def test_a_failed_batch_is_reported_by_its_reason_without_internal_details(
    caplog: pytest.LogCaptureFixture, error: Exception, reason: Reason, code: Code
) -> None:
    async def main() -> None:
        store = Store()
        store.failures["bad"] = error
        with pytest.raises(RequestError) as caught:
            await recorder_of(store).record([event("bad")])
        assert (caught.value.reason, caught.value.code) == (reason, code)
        assert "secret" not in caught.value.message + caplog.text
        assert ("ValueError" in caplog.text) is (reason is Reason.INTERNAL)

    run(main())


def test_a_failure_fails_the_calls_of_its_batch_and_no_other() -> None:
    async def main() -> None:
        store = Store(gate := asyncio.Event())
        store.failures["bad"] = StoreUnavailableError()
        recorder = recorder_of(store)
        calls = []
        for name in ("a", "b"):  # two batches are under way, so that the others wait for one that they share
            calls.append(asyncio.create_task(recorder.record([event(name)])))
            await settle()
        calls += [asyncio.create_task(recorder.record([event(name)])) for name in ("bad", "neighbour")]
        await settle()
        gate.set()
        result = await asyncio.gather(*calls, return_exceptions=True)
        assert store.batches == [["a"], ["b"], ["bad", "neighbour"]]
        assert [isinstance(item, RequestError) for item in result] == [False, False, True, True]
        assert (await recorder.record(events("ok"))).accepted == 1

    run(main())


def test_a_large_call_of_which_a_part_failed_has_failed_and_is_not_gone_on_with() -> None:
    async def main() -> None:
        store = Store()
        store.failures["bad"] = ArchiveBehindError()
        recorder = recorder_of(store)
        with pytest.raises(RequestError) as caught:
            await recorder.record([event("bad"), *[event()] * 999])
        assert caught.value.reason is Reason.ARCHIVE_BEHIND
        begun = len(store.batches)
        assert begun <= 2 * WORKERS
        assert (await recorder.record(events("ok"))).accepted == 1
        assert len(store.batches) == begun + 1

    run(main())


def test_a_caller_that_gives_up_does_not_disturb_its_neighbours() -> None:
    async def main() -> None:
        store = Store(gate := asyncio.Event())
        recorder = recorder_of(store)
        calls = [asyncio.create_task(recorder.record([event(str(n))] * 100)) for n in range(4)]
        await settle()
        calls[0].cancel()
        calls[3].cancel()
        gate.set()
        result = await asyncio.gather(*calls, return_exceptions=True)
        assert [isinstance(item, RecordingResult) and item.accepted for item in result] == [False, 100, 100, False]
        assert not any("3" in batch for batch in store.batches)  # its turn had not come yet

    run(main())


# --- streams --------------------------------------------------------------------------------------------------------


def message(*mine: Event) -> bytes:
    return events_pb2.StreamEventsRequest(
        events=[
            events_pb2.Event(
                customer_id=item.customer_id,
                event_type=item.event_type,
                event_time=Timestamp(seconds=int(item.event_time)),
            )
            for item in mine
        ]
    ).SerializeToString()


def streamed(store: Store, *messages: bytes) -> list[events_pb2.StreamEventsResponse]:
    async def main() -> list[events_pb2.StreamEventsResponse]:
        stream = EventStream(recorder_of(store), NO_CONTEXT)
        return [events_pb2.StreamEventsResponse.FromString(await stream.answer(item)) for item in messages]

    return asyncio.run(main())


def test_each_message_of_a_stream_is_acknowledged_with_its_own_outcome() -> None:
    replies = streamed(
        Store(),
        message(*events("ok", "late")),
        message(),
        message(*events("clip", "dup", "withheld")),
        message(*events("late", "clip")),
    )
    assert [reply.acknowledged_messages for reply in replies] == [1, 2, 3, 4]
    assert [(reply.accepted, reply.duplicates) for reply in replies] == [(1, 0), (0, 0), (1, 1), (1, 0)]
    assert [[(item.index, item.field) for item in reply.rejected] for reply in replies] == [
        [(1, "event_time")],
        [],
        [(2, "customer_id")],
        [(0, "event_time")],
    ]
    assert [[(item.index, item.field, item.reason, item.message) for item in reply.guarded] for reply in replies] == [
        [],
        [],
        [(0, *CLIPPED)],
        [(1, *CLIPPED)],
    ]


def test_an_acknowledgement_tells_every_event_that_was_refused_or_guarded() -> None:
    (reply,) = streamed(Store(), message(*events(*["late", "clip"] * 500)))
    assert reply.accepted == 500
    assert [item.index for item in reply.rejected] == list(range(0, 1000, 2))
    assert [item.index for item in reply.guarded] == list(range(1, 1000, 2))


def test_a_message_that_fails_ends_the_stream_and_earlier_events_stay_recorded() -> None:
    store = Store()
    store.failures["bad"] = StoreUnavailableError()
    with pytest.raises(RequestError) as caught:
        streamed(store, message(event("a")), message(event("bad")), message(event("b")))
    assert caught.value.reason is Reason.FEATURE_STORE_UNAVAILABLE
    assert store.batches == [["a"], ["bad"]]


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"\xff", Reason.REQUEST_MALFORMED), (message(*[event()] * 1001), Reason.TOO_MANY_EVENTS)],
    ids=["no message", "1001 events"],
)
def test_a_message_that_is_none_or_too_large_is_refused_whole(data: bytes, reason: Reason) -> None:
    store = Store()
    with pytest.raises(RequestError) as caught:
        streamed(store, message(event("a")), data)
    assert caught.value.reason is reason
    assert store.batches == [["a"]]
