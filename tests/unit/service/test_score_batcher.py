"""Batches form from what has arrived, large parts take turns, and every caller gets exactly one answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, cast

import numpy as np
import pytest

from service.batching.score_batcher import ScoreBatcher
from service.errors import Reason, RequestError
from service.scoring.types import SCORE_ROW, Rows, ScoreRequest, Scores
from tests.waiting import PATIENCE_S, settle

Score = Callable[[Sequence[ScoreRequest]], Awaitable[list[Scores]]]


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, PATIENCE_S))


def numbered(customer_ids: Sequence[str]) -> Rows:
    """Rows that can be told apart: each expects its customer's id as the spend."""
    rows = np.zeros(len(customer_ids), SCORE_ROW)
    rows["expected_spend"] = [float(customer_id) for customer_id in customer_ids]
    return rows


def numbers(scores: Scores) -> list[float]:
    return cast("list[float]", scores.rows["expected_spend"].tolist())


class Recorder:
    """A scorer that remembers its batches; a row says which id it is for."""

    def __init__(self, gate: asyncio.Event | None = None) -> None:
        self.batches: list[list[str]] = []
        self.gate = gate

    async def score(self, parts: Sequence[ScoreRequest]) -> list[Scores]:
        self.batches.append([customer_id for part in parts for customer_id in part.customer_ids])
        await (self.gate.wait() if self.gate else asyncio.sleep(0))
        return [Scores(numbered(p.customer_ids), dict(p.refused), "v") for p in parts]


def ids(start: int, stop: int) -> ScoreRequest:
    return ScoreRequest([str(i) for i in range(start, stop)])


def test_calls_that_arrive_together_form_one_batch() -> None:
    async def main() -> None:
        recorder = Recorder()
        batcher = ScoreBatcher(recorder.score)
        scores = await asyncio.gather(*(batcher.score(ids(i, i + 1)) for i in range(50)))
        assert len(recorder.batches) == 1
        assert [numbers(score) for score in scores] == [[float(i)] for i in range(50)]

    run(main())


def test_calls_that_arrive_while_a_batch_runs_form_the_next_one() -> None:
    async def main() -> None:
        recorder = Recorder(gate := asyncio.Event())
        batcher = ScoreBatcher(recorder.score)
        first = asyncio.create_task(batcher.score(ids(0, 1)))
        await settle()
        rest = [asyncio.create_task(batcher.score(ids(i, i + 1))) for i in range(1, 9)]
        await settle()
        gate.set()
        await asyncio.gather(first, *rest)
        assert [len(batch) for batch in recorder.batches] == [1, 8]

    run(main())


def test_a_large_part_is_cut_and_comes_back_whole_and_in_order() -> None:
    async def main() -> None:
        recorder = Recorder()
        batcher = ScoreBatcher(recorder.score, max_rows=100, slice_rows=30)
        refused = {at: RequestError(Reason.CUSTOMER_ID_INVALID, "bad") for at in (0, 29, 30, 999)}
        scores = await batcher.score(ScoreRequest([str(i) for i in range(1000)], refused=refused))
        assert numbers(scores) == [float(i) for i in range(1000)]
        assert set(scores.errors) == {0, 29, 30, 999}
        assert max(len(batch) for batch in recorder.batches) <= 30

    run(main())


def test_a_single_call_does_not_wait_for_a_large_one() -> None:
    async def main() -> None:
        recorder = Recorder()
        batcher = ScoreBatcher(recorder.score, max_rows=64, slice_rows=32)
        large = [asyncio.create_task(batcher.score(ids(0, 1000))) for _ in range(4)]
        await settle(5)
        started = len(recorder.batches)
        await batcher.score(ids(5000, 5001))
        at = next(i for i, batch in enumerate(recorder.batches) if "5000" in batch)
        assert at <= started + 4  # what the lane for large parts had begun in the meantime
        assert recorder.batches[at] == ["5000"]
        assert not any(task.done() for task in large)
        await asyncio.gather(*large)

    run(main())


def test_no_batch_is_larger_than_allowed() -> None:
    async def main() -> None:
        recorder = Recorder()
        batcher = ScoreBatcher(recorder.score, max_rows=10, slice_rows=4)
        scores = await asyncio.gather(*(batcher.score(ids(i, i + 7)) for i in range(0, 70, 7)))
        assert [number for score in scores for number in numbers(score)] == [float(i) for i in range(70)]
        assert max(len(batch) for batch in recorder.batches) <= 10

    run(main())


def test_a_batch_that_fails_fails_all_its_parts_with_the_same_error() -> None:
    async def main() -> None:
        async def away(_parts: Sequence[ScoreRequest]) -> list[Scores]:
            raise RequestError(Reason.FEATURE_STORE_UNAVAILABLE, "away")

        batcher = ScoreBatcher(away)
        outcomes = await asyncio.gather(*(batcher.score(ids(0, 3)) for _ in range(5)), return_exceptions=True)
        assert [getattr(outcome, "reason", None) for outcome in outcomes] == [Reason.FEATURE_STORE_UNAVAILABLE] * 5

    run(main())


def test_a_bug_becomes_an_internal_error_that_shows_nothing_of_the_inside(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async def broken(_parts: Sequence[ScoreRequest]) -> list[Scores]:
            raise ValueError("customer 4711 has a secret")

        batcher = ScoreBatcher(broken)
        with pytest.raises(RequestError) as caught:
            await batcher.score(ids(0, 1))
        assert caught.value.reason is Reason.INTERNAL
        assert "4711" not in caught.value.message
        assert "4711" not in caplog.text
        assert "ValueError" in caplog.text
        batcher = ScoreBatcher(Recorder().score)
        assert numbers(await batcher.score(ids(0, 1))) == [0.0]

    run(main())


def test_abandoned_work_is_not_done() -> None:
    async def main() -> None:
        recorder = Recorder()
        batcher = ScoreBatcher(recorder.score)
        batcher.submit(ids(0, 5), lambda _: pytest.fail("nobody waits for this"), abandoned=lambda: True)
        await batcher.score(ids(5, 6))
        assert recorder.batches == [["5"]]

    run(main())


def test_a_caller_that_gives_up_does_not_disturb_its_neighbours() -> None:
    async def main() -> None:
        recorder = Recorder(gate := asyncio.Event())
        batcher = ScoreBatcher(recorder.score)
        leaver = asyncio.create_task(batcher.score(ids(0, 1)))
        stayer = asyncio.create_task(batcher.score(ids(1, 2)))
        await settle()
        leaver.cancel()
        gate.set()
        assert numbers(await stayer) == [1.0]

    run(main())


def test_a_call_at_any_moment_of_the_end_of_a_batch_is_taken_up() -> None:
    async def main() -> None:
        for turns in range(60):
            batcher = ScoreBatcher(Recorder().score)
            await batcher.score(ids(0, 1))
            for _ in range(turns):
                await asyncio.sleep(0)
            await asyncio.wait_for(batcher.score(ids(1, 2)), PATIENCE_S)

    run(main())


def test_a_part_without_customers_is_answered_without_a_batch() -> None:
    async def main() -> None:
        recorder = Recorder()
        assert numbers(await ScoreBatcher(recorder.score).score(ScoreRequest([]))) == []
        assert recorder.batches == []

    run(main())


def test_explanations_go_eight_at_a_time_on_a_lane_of_their_own() -> None:
    async def main() -> None:
        recorder = Recorder()
        batcher = ScoreBatcher(recorder.score)
        many = asyncio.create_task(batcher.score(ScoreRequest([str(i) for i in range(100)], max_reasons=5)))
        await settle(5)
        await asyncio.gather(batcher.score(ids(500, 501)), batcher.score(ScoreRequest(["600"], max_reasons=5)))
        assert not many.done()
        assert numbers(await many) == [float(i) for i in range(100)]
        assert max(len(batch) for batch in recorder.batches) == 8
        assert ["500"] in recorder.batches

    run(main())
