"""Rows become counts, histograms and a verdict: nothing is left out, and nothing flatters."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram
from hypothesis import given
from hypothesis import strategies as st

from tidemark.load.outcomes import NO_ANSWER, NO_CONNECTION, OK, Kind, Outcome
from tidemark.load.plan import Plan, Target
from tidemark.load.rate_search import SearchResult
from tidemark.load.reporting import report
from tidemark.load.reporting.terminal import verdict
from tidemark.load.results import Result, Tally
from tidemark.load.sending.sender import Records

TARGET = Target("127.0.0.1", 50051, "127.0.0.1", remote=False)
PLAN = Plan(TARGET, duration_s=4.0, p99_ms=10.0)
REFUSED = Outcome("RESOURCE_EXHAUSTED", "OVERLOADED")
OUTCOMES = [OK, REFUSED, NO_ANSWER, NO_CONNECTION]

Row = tuple[float, float, float, int]


def tallied(*rows: Row, plan: Plan = PLAN, unsent: int = 0) -> Result:
    tally = Tally(plan, 100.0)
    tally.add(Records(np.array(rows, dtype=np.float64).tobytes(), OUTCOMES, last=(unsent, 0.5)))
    return tally.result(plan.duration_s)


ROWS = st.lists(
    st.tuples(st.floats(-1, 3.999), st.floats(0, 60), st.floats(0, 0.1), st.integers(0, 3)), min_size=1, max_size=60
)


@given(rows=ROWS)
def test_every_call_after_the_warm_up_is_counted_once_everywhere(rows: list[Row]) -> None:
    result, counted = tallied(*rows), [row for row in rows if row[0] >= 0]
    assert result.offered == len(counted) == sum(sum(item.calls.values()) for item in result.slices)
    assert {k: result.calls(k) for k in Kind} == {k: sum(item.calls[k] for item in result.slices) for k in Kind}
    timed = sorted(row[1] for row in counted if row[3] in (0, 2))
    assert HdrHistogram.decode(result.histogram).get_total_count() == len(timed)
    if timed:
        assert result.percentiles[100.0] == pytest.approx(max(timed) * 1e3, rel=2e-3, abs=2e-3)
        assert result.percentiles[50.0] == pytest.approx(timed[(len(timed) - 1) // 2] * 1e3, rel=2e-3, abs=2e-3)


def test_rows_in_pieces_come_to_the_same() -> None:
    rows: list[Row] = [(i / 100, 0.001 * (i % 30), 0.0, i % 4) for i in range(400)]
    tally = Tally(PLAN, 100.0)
    for at in range(0, 400, 7):
        tally.add(Records(np.array(rows[at : at + 7]).tobytes(), OUTCOMES, last=(0, 0.5 / 58)))
    assert replace(tally.result(4.0), cpu_cores=0.1) == replace(tallied(*rows), cpu_cores=0.1)


def test_a_call_that_ran_out_of_time_counts_with_its_time_and_a_quick_refusal_flatters_nothing() -> None:
    answered: list[Row] = [(0.01 * i, 0.005, 0.0, 0) for i in range(98)]
    expired = tallied(*answered, (1.0, 1.0, 0.0, 2), (1.1, 1.0, 0.0, 2))
    assert expired.percentiles[99.0] == pytest.approx(1000, rel=1e-3)
    refused = tallied(*answered, *[(2.0, 0.0001, 0.0, 1)] * 300)
    assert min(refused.percentiles.values()) == pytest.approx(5, rel=1e-3)
    assert not refused.holds
    assert (refused.calls(Kind.REFUSED), refused.calls(Kind.FAILED)) == (300, 0)


def test_a_rate_holds_where_99_of_100_calls_are_answered_within_the_aim() -> None:
    good: Row = (1.0, 0.0099, 0.0, 0)
    assert tallied(*[good] * 99, (1.0, 0.5, 0.0, 0)).holds
    assert not tallied(*[good] * 98, (1.0, 0.5, 0.0, 0), (1.0, 0.5, 0.0, 0)).holds
    assert not tallied(*[good] * 98, (1.0, 0.001, 0.0, 3), (1.0, 0.001, 0.0, 1)).holds


@pytest.mark.parametrize(("late", "unsent", "valid"), [(1, 0, True), (2, 0, False), (0, 2, False), (0, 0, True)])
def test_a_generator_that_is_late_says_so_and_nothing_else(late: int, unsent: int, valid: bool) -> None:
    on_time, tardy = (1.0, 0.001, 0.0001, 0), (1.0, 0.004, 0.003, 0)
    result = tallied(*[on_time] * (100 - late), *[tardy] * late, unsent=unsent)
    assert (result.valid, result.holds) == (valid, valid)
    said = verdict(PLAN, [result], None)
    assert ("NOT VALID: the load generator was the bottleneck" in said) is not valid
    assert ("kept up" in said) is valid
    outcome = verdict(PLAN, [result], SearchResult(50.0, 100.0, 2))
    assert outcome.startswith("At least 50.0" if not valid else "50.0 calls/s hold a p99 of 10 ms, 100.0 do not")


def test_no_calls_at_all_make_a_report_without_figures() -> None:
    result = Tally(PLAN, 1.0).result(4.0)
    assert not result.valid
    said = verdict(PLAN, [result], None)
    assert "no call was made" in said
    whole = report.Report(PLAN, "3 ids of a file", datetime.now(UTC), [result], None, said, result)
    assert json.loads(report.as_json(whole))["steps"][0]["latency_ms"] == {"mean": None}
    assert "no call was made" in report.as_html(whole)


def test_reports_hold_no_token_and_are_valid_whatever_a_server_calls_its_reasons() -> None:
    strange = Outcome("INTERNAL", "<script>alert('é')</script>")
    tally = Tally(PLAN, 100.0)
    tally.add(Records(np.array([(0.5, 0.01, 0.0, 0)]).tobytes(), [strange]))
    result = tally.result(4.0)
    access = replace(PLAN.access, token="s3cret", tls=True)
    plan = replace(PLAN, access=access)
    whole = report.Report(plan, "3 ids of a file", datetime.now(UTC), [result], None, "said", result)
    page, text = report.as_html(whole), report.as_json(whole)
    assert "<script" not in page
    assert "s3cret" not in page + text
    outcome: dict[str, Any] = json.loads(text)
    assert outcome["settings"]["token"] is True
    assert outcome["steps"][0]["outcomes"] == [
        {"code": "INTERNAL", "reason": strange.reason, "kind": "failed", "number": 1}
    ]
