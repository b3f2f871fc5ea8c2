"""The client: typed, with a deadline by default and retries where they help. Needs grpcio and protobuf alone.

from tidemark.scoring import ScoringClient

with ScoringClient("127.0.0.1:50051") as client:
    score = client.score("900")
    if score.churn.alert:
        send_offer(score.customer_id)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self

import grpc
from tidemark.rpc import error_details_pb2, status_pb2
from tidemark.v1 import scoring_pb2, scoring_pb2_grpc

from tidemark.explanation import Contribution, Explanation, SlotValue
from tidemark.loopback import stays_here

MAX_BATCH: Final = 1000
MAX_EXPLAINED: Final = 100
DEFAULT_TIMEOUT_S: Final = 1.0
CODES: Final = {code.value[0]: code for code in grpc.StatusCode}

RETRIED: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED)
"""CANCELLED is what grpcio's server says to a call that reaches it while it stops."""
RETRY_POLICY: Final = {
    "methodConfig": [
        {
            "name": [
                {"service": "tidemark.v1.ScoringService"},
                {"service": "tidemark.v1.EventService", "method": "RecordEvents"},
                {"service": "tidemark.v1.CustomerService"},
                {"service": "tidemark.v1.ModelService"},
            ],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.05s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": [code.name for code in RETRIED],
            },
        }
    ],
    "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.1},
}
"""gRPC's own retries, within the deadline, and fewer where most calls fail: a service config for any language.

To try again is safe: a score changes nothing, an event has an id by which it is counted once, and what is done to a
customer is the same when it is done twice. With it no call is lost while the workers of a server are replaced.
StreamEvents is not among them: see NO_RETRIES."""
OPTIONS: Final = (
    ("grpc.service_config", json.dumps(RETRY_POLICY)),
    # A second, by default, before a connection is tried again: longer than all retries together.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
NO_RETRIES: Final = ("grpc.enable_retries", 0)
"""For streams of requests: where gRPC's C core repeats one, of its own accord too, it may leave out messages and report
OK, or end the process (grpc#40283, seen with grpcio 1.81.1 and 1.85.1)."""


@dataclass(frozen=True)
class Offer:
    """What acting on an alert costs and effects; None keeps the model's default. Amounts in the shop's currency."""

    contact_cost: float | None = None
    offer_cost: float | None = None
    success_rate: float | None = None
    redemption_rate: float | None = None
    budget_price: float | None = None


@dataclass(frozen=True)
class Economics:
    """The offers to price, and the share of spend that is profit; None keeps the model's default."""

    margin: float | None = None
    churn: Offer = Offer()
    propensity: Offer = Offer()


@dataclass(frozen=True)
class Alert:
    """A calibrated probability, the customer's own threshold, and whether to act now.

    repeated_view: the score's top interest was looked at often, and not bought; automated_response_off: the customer
    does not allow to act; spike: far more answers alert than usually, so hold back what cannot be undone; explanation:
    where it was asked for.
    """

    probability: float
    threshold: float
    alert: bool
    repeated_view: bool = False
    automated_response_off: bool = False
    spike: bool = False
    explanation: Explanation | None = None


@dataclass(frozen=True)
class Interest:
    """An item that a customer looks at and has not bought since."""

    item_id: str
    views: int
    last_viewed: datetime


@dataclass(frozen=True)
class Score:
    """The score of one customer; expected_spend over the value horizon, in the shop's currency.

    stale: from what the server knew before its feature store stopped answering, which only allow_stale brings.
    """

    customer_id: str
    churn: Alert
    propensity: Alert
    expected_spend: float
    features_as_of: datetime
    model_version: str
    top_interest: Interest | None = None
    stale: bool = False


@dataclass(frozen=True)
class Problem:
    """Why there is no score: status code, reason (UPPER_SNAKE) and message of the server, and the field it means."""

    code: grpc.StatusCode
    reason: str
    message: str
    field: str | None = None
    retry_after: timedelta | None = None


class CallFailedError(Exception):
    """A call failed; ``problem`` says why."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"{problem.code.name} {problem.reason}: {problem.message}")
        self.problem: Final = problem


class Client:
    """A connection to a server. Threads may share one client; close it, or use it in a ``with`` statement."""

    def __init__(
        self,
        target: str = "127.0.0.1:50051",
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        credentials: grpc.ChannelCredentials | None = None,
        token: str | None = None,
    ) -> None:
        """``target`` is host:port; ``timeout_s`` bounds each call with its retries; without credentials no TLS.

        ``token`` goes along with each call; ValueError where it would leave this machine without TLS.
        """
        self._target, self._credentials = target, credentials
        self._metadata = bearing(token, target, secure=credentials is not None)
        self._timeout_s = timeout_s
        self._channel = self._connect(*OPTIONS)
        self._stub = self._make_stub(self._channel)

    def _connect(self, *options: tuple[str, Any]) -> grpc.Channel:
        if self._credentials is not None:
            return grpc.secure_channel(self._target, self._credentials, options)
        if self._metadata is not None:
            options = (*options, ("grpc.enable_http_proxy", 0))  # a token in the clear, which a proxy takes elsewhere
        return grpc.insecure_channel(self._target, options)

    @staticmethod
    def _make_stub(channel: grpc.Channel) -> Any:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def _call(self, method: Any, request: Any, timeout_s: float | None) -> Any:
        try:
            timeout_s = self._timeout_s if timeout_s is None else timeout_s
            return method(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise CallFailedError(_call_problem(error)) from None


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
        """Score one customer; CallFailedError where the server refuses or does not answer in time.

        ``allow_stale``: how old a score may be while the server's feature store is away, rather than none.
        ``explain``: say with each alert why, by at most ``max_reasons`` contributions (0: the server's default).
        """
        request = scoring_pb2.ScoreCustomerRequest(
            customer_id=customer_id,
            economics=_economics(economics),
            max_feature_age=max_feature_age,
            allow_stale=allow_stale,
            explain=explain,
            max_reasons=max_reasons,
        )
        return _score(self._call(self._stub.ScoreCustomer, request, timeout_s))

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
        """A score, or why there is none, for each customer, in order; in calls of at most 1000 customers.

        With explain in calls of at most 100, for which a second may be too short.
        ``timeout_s`` bounds each call. CallFailedError where a whole call fails.
        """
        if isinstance(customer_ids, str):
            raise TypeError("customer_ids is one text: give a list of ids")
        results: list[Score | Problem] = []
        step = MAX_EXPLAINED if explain else MAX_BATCH
        for start in range(0, len(customer_ids), step):
            request = scoring_pb2.BatchScoreCustomersRequest(
                customer_ids=customer_ids[start : start + step],
                economics=_economics(economics),
                max_feature_age=max_feature_age,
                allow_stale=allow_stale,
                explain=explain,
                max_reasons=max_reasons,
            )
            response = self._call(self._stub.BatchScoreCustomers, request, timeout_s)
            results += [_score(r.score) if r.HasField("score") else _problem(r.status) for r in response.results]
        return results


def bearing(token: str | None, target: str, *, secure: bool) -> tuple[tuple[str, str], ...] | None:
    """Metadata that brings a token; ValueError where it cannot be one, or would leave this machine without TLS."""
    if token is None:
        return None
    if not (token and token.isascii() and token.isprintable()) or " " in token:
        raise ValueError("the token is empty, or has spaces or other characters that no token has: copy it again")
    if not secure and not stays_here(target):
        raise ValueError("a token would be sent in the clear: give credentials as well, so that TLS is used")
    return (("authorization", f"Bearer {token}"),)


def _economics(economics: Economics | None) -> scoring_pb2.Economics | None:
    if economics is None:
        return None
    offers = {name: scoring_pb2.Offer(**vars(getattr(economics, name))) for name in ("churn", "propensity")}
    return scoring_pb2.Economics(margin=economics.margin, **offers)


def _score(score: scoring_pb2.ScoreCustomerResponse) -> Score:
    return Score(
        customer_id=score.customer_id,
        churn=_alert(score.churn),
        propensity=_alert(score.propensity),
        expected_spend=score.expected_spend,
        features_as_of=score.features_as_of.ToDatetime(UTC),
        model_version=score.model_version,
        top_interest=interest(score.top_interest) if score.HasField("top_interest") else None,
        stale=score.stale,
    )


def _alert(alert: scoring_pb2.Alert) -> Alert:
    return Alert(
        alert.probability,
        alert.threshold,
        alert.alert,
        alert.repeated_view,
        alert.automated_response_off,
        alert.spike,
        _explanation(alert.explanation) if alert.HasField("explanation") else None,
    )


def _explanation(found: scoring_pb2.Explanation) -> Explanation:
    contributions = [
        Contribution(
            one.feature, one.contribution, one.reason_code, one.sentence, [_slot_value(slot) for slot in one.slots]
        )
        for one in found.contributions
    ]
    return Explanation(found.baseline_probability, contributions, found.other_contribution, found.exact)


def _slot_value(found: scoring_pb2.SlotValue) -> SlotValue:
    value = found.value if found.HasField("value") else None
    typical = found.typical if found.HasField("typical") else None
    return SlotValue(found.slot, value, typical, found.unit, found.text, found.typical_text)


def interest(found: scoring_pb2.Interest) -> Interest:
    """As the client gives it."""
    return Interest(found.item_id, found.views, found.last_viewed.ToDatetime(UTC))


def _call_problem(error: grpc.RpcError) -> Problem:
    trailers: Any = error.trailing_metadata() or ()
    details = dict(trailers).get("grpc-status-details-bin")
    if details is not None:
        return _problem(status_pb2.Status.FromString(details))
    return Problem(error.code(), error.code().name, error.details() or "")


def _problem(status: status_pb2.Status) -> Problem:
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    retry_after = None
    for detail in status.details:
        detail.Unpack(info)
        if detail.Unpack(retry):
            retry_after = retry.retry_delay.ToTimedelta()
    code = CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    return Problem(code, info.reason, status.message, info.metadata.get("field"), retry_after)
