"""``tidemark score`` prints what a running server answers."""

from __future__ import annotations

import re

import pytest

from service.score import score
from tests.conftest import Call
from tests.e2e.server_process import ServerProcess
from tidemark import ScoringClient

pytestmark = pytest.mark.one_front


def test_each_customer_gets_a_line_with_probabilities_thresholds_and_alerts(
    call: Call, server: ServerProcess, client: ScoringClient
) -> None:
    done = call(score, "900", "5", "--target", server.target)
    assert (done.code, done.err) == (0, "")
    heading, *lines = done.out.splitlines()
    assert heading.split() == [
        *("customer", "churn", "threshold", "alert", "propensity", "threshold", "alert"),
        *("expected", "spend"),
    ]
    assert [line.split()[0] for line in lines] == ["900", "5"]
    churn = client.score("900").churn
    _, probability, threshold, alert, *_ = lines[0].split()
    assert abs(float(probability) - churn.probability) < 0.01
    assert abs(float(threshold) - churn.threshold) < 0.01
    assert (alert == "act") == churn.alert


def test_an_explanation_is_printed_in_sentences_that_sum_to_the_probability(call: Call, server: ServerProcess) -> None:
    done = call(score, "900", "--explain", "--target", server.target)
    heading, *lines, threshold = done.out.split("\n\n")[1].splitlines()
    assert heading.startswith("900, churn: ")
    probability, typical = (float(part.rpartition(" ")[2]) for part in heading.split(";"))
    assert abs(typical + sum(float(line.split()[0]) for line in lines) - probability) < 0.01
    assert "a typical customer" in lines[0]
    assert lines[-1].endswith("all other features")
    assert re.match(r"threshold [01]\.\d{3}: (From a probability of|Never, because a win is worth) ", threshold)


def test_a_customer_without_a_score_is_named_with_the_reason_and_the_others_are_printed(
    call: Call, server: ServerProcess
) -> None:
    done = call(score, "nobody", "900", "--target", server.target)
    assert done.code == 1
    assert done.err.startswith("nobody: CUSTOMER_UNKNOWN: ")
    assert done.out.splitlines()[-1].split()[0] == "900"


def test_a_server_that_cannot_be_reached_is_one_line(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.score.TIMEOUT_S", 0.5)
    done = call(score, "900", "--target", "127.0.0.1:1")
    assert done.is_bad_input
    assert "127.0.0.1:1: " in done.err


def test_a_token_that_would_leave_the_machine_in_the_clear_is_not_sent(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDEMARK_TOKEN", "secret")
    done = call(score, "900", "--target", "10.0.0.1:1")
    assert done.is_bad_input
    assert "in the clear" in done.err
    assert "secret" not in done.err
