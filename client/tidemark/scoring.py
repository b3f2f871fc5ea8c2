"""The blocking client of ScoringService.

Example:
    with ScoringClient("127.0.0.1:50051") as client:
        score = client.score("900")
        if score.churn.alert:
            send_offer(score.customer_id)
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from tidemark.v1 import scoring_pb2_grpc

from tidemark.base import Client
from tidemark.errors import Problem
from tidemark.messages.scoring import Terms, batch_requests, batch_results, score_of, score_request
from tidemark.types import Economics, Score


class ScoringClient(Client):
    """Scores customers."""

    _make_stub = staticmethod(scoring_pb2_grpc.ScoringServiceStub)

    def score(
        self,
        customer_id: str,
        *,
        economics: Economics | None = None,
        max_feature_age: timedelta | None = None,
        allow_stale: timedelta | None = None,
        explain: bool = False,
        max_reasons: int = 0,
        timeout_s: float | None = None,
    ) -> Score:
        """Score one customer.

        Args:
            customer_id: Id of the customer.
            economics: Figures to price the offers with, instead of the model's.
            max_feature_age: Refuses to score from older features.
            allow_stale: Accepts features that the server read at most this long ago, if its feature store is away.
            explain: Explains each alert, which takes about a millisecond more.
            max_reasons: Maximum number of contributions in each explanation; 0 means the server's default.
            timeout_s: Seconds for the call, its retries included; None for the client's default.

        Returns:
            The score.

        Raises:
            CallFailedError: The server refuses, or does not answer in time.
        """
        terms = Terms(economics, max_feature_age, allow_stale, explain, max_reasons)
        request = score_request(customer_id, terms)
        response = self._call(self._stub.ScoreCustomer, request, timeout_s, customer_id)
        return score_of(response.score)

    def score_many(
        self,
        customer_ids: Sequence[str],
        *,
        economics: Economics | None = None,
        max_feature_age: timedelta | None = None,
        allow_stale: timedelta | None = None,
        explain: bool = False,
        max_reasons: int = 0,
        timeout_s: float | None = None,
    ) -> list[Score | Problem]:
        """Score any number of customers, in calls of at most 1000, or 100 with ``explain``.

        Args:
            customer_ids: Ids of the customers.
            economics: Figures to price the offers with, instead of the model's.
            max_feature_age: Refuses to score from older features.
            allow_stale: Accepts features that the server read at most this long ago, if its feature store is away.
            explain: Explains each alert. A second may be too short for a call with 100 explanations.
            max_reasons: Maximum number of contributions in each explanation; 0 means the server's default.
            timeout_s: Seconds for each call, its retries included; None for the client's default.

        Returns:
            For each id, in order, its score, or the problem of this customer.

        Raises:
            CallFailedError: A whole call failed.
            TypeError: ``customer_ids`` is a single string.
        """
        terms = Terms(economics, max_feature_age, allow_stale, explain, max_reasons)
        results: list[Score | Problem] = []
        for ids, request in batch_requests(customer_ids, terms):
            response = self._call(self._stub.BatchScoreCustomers, request, timeout_s)
            results += batch_results(ids, response)
        return results
