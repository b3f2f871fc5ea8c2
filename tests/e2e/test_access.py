"""Who may call, over sockets on both fronts: tokens, scopes, quotas, a file that changes, and logs that name nobody."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import grpc
import pytest
import redis
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tidemark.rpc import error_details_pb2, status_pb2
from tidemark.v1 import scoring_pb2

from tests.conftest import Run
from tests.e2e.conftest import RedisProcess, refused
from tests.e2e.live import ALONE, Live, Start, event, info_of, someone, starter, told_of, use_up
from tests.e2e.raw_client import RawClient
from tests.e2e.server_process import ServerProcess
from tests.waiting import PATIENCE_S, until
from tidemark import CallFailedError, CustomerClient, Event, EventClient, ScoringClient

KNOWN = "900"

pytestmark = pytest.mark.both_fronts

SCORE = "/tidemark.v1.ScoringService/ScoreCustomer"
BATCH = "/tidemark.v1.ScoringService/BatchScoreCustomers"
DENIED, NOBODY = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


class _Details(NamedTuple):
    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: Any
    compression: Any


class _Bearing(grpc.UnaryUnaryClientInterceptor, grpc.StreamStreamClientInterceptor):
    """Sends a header along with each call."""

    def __init__(self, authorization: str) -> None:
        self._authorization = authorization

    def _with_header(self, plain: Any) -> _Details:
        sent = (*(plain.metadata or ()), ("authorization", self._authorization))
        return _Details(plain.method, plain.timeout, sent, None, None, None)

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return continuation(self._with_header(client_call_details), request)

    def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return continuation(self._with_header(client_call_details), request_iterator)


@contextmanager
def calling_as(target: str, token: str | None, scheme: str = "Bearer") -> Iterator[Live]:
    """A connection of its own, for somebody with this token."""
    with grpc.insecure_channel(target, ALONE) as channel:
        yield Live(channel if token is None else grpc.intercept_channel(channel, _Bearing(f"{scheme} {token}")))


def entry(name: str, scopes: str, **more: object) -> dict[str, object]:
    """A caller whose token is its name."""
    sha256 = hashlib.sha256(name.encode()).hexdigest()
    return {"name": name, "scopes": scopes.split(), "sha256": sha256, **more}


def write(path: Path, *entries: dict[str, object]) -> None:
    path.write_text(json.dumps({"caller": list(entries)}))


ALL: Final = "score events customers models"
CALLERS: Final = (
    *(entry(f"only-{scope}", scope) for scope in ALL.split()),
    entry("all", ALL),
    entry("expired", ALL, expires="2020-01-01T00:00:00Z"),
    entry("metered", ALL, quota=200, burst=300),
    entry("paced", ALL, quota=100, burst=10),
)


@pytest.fixture(scope="module")
def start(
    front: str,  # noqa: ARG001  # set before a server starts
    loaded_redis: str,
    small_registry: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Start]:
    with ExitStack() as stack:
        yield starter(stack, small_registry, tmp_path_factory.mktemp("server"), loaded_redis)


@pytest.fixture(scope="module")
def guarded(start: Start, tmp_path_factory: pytest.TempPathFactory) -> ServerProcess:
    """A server that knows its callers."""
    path = tmp_path_factory.mktemp("callers") / "callers.json"
    write(path, *CALLERS)
    return start("--callers", str(path))


# --- scopes ---------------------------------------------------------------------------------------------------------


def stream_one(live: Live) -> Any:
    return live.stream([[event(someone())]])


CALLS: Final[list[tuple[str, str, Callable[[Live], Any]]]] = [
    ("ScoreCustomer", "score", lambda live: live.score(KNOWN)),
    ("BatchScoreCustomers", "score", lambda live: live.score_many(KNOWN)),
    ("RecordEvents", "events", lambda live: live.record(event(someone()))),
    ("StreamEvents", "events", stream_one),
    ("GetCustomer", "customers", lambda live: live.get(KNOWN)),
    ("MergeCustomers", "customers", lambda live: live.merge(someone(), someone())),
    ("SetConsent", "customers", lambda live: live.consent(someone(), scoring=True)),
    ("DeleteCustomer", "customers", lambda live: live.delete(someone())),
]


@pytest.mark.parametrize(("method", "needed", "call"), CALLS, ids=[method for method, _, _ in CALLS])
def test_a_method_is_for_callers_with_its_scope(
    method: str, needed: str, call: Callable[[Live], Any], guarded: ServerProcess
) -> None:
    assert method
    for scope in ALL.split():
        with calling_as(guarded.target, f"only-{scope}") as live:
            if scope == needed:
                call(live)
                continue
            with refused(DENIED) as result:
                call(live)
            assert told_of(result[0])[0] == "SCOPE_MISSING"
            assert f"scope {needed}" in result[0].message
    with calling_as(guarded.target, "all", scheme="bearer") as live:
        call(live)


@pytest.mark.parametrize(("method", "needed", "call"), CALLS, ids=[method for method, _, _ in CALLS])
def test_nobody_else_gets_in(method: str, needed: str, call: Callable[[Live], Any], guarded: ServerProcess) -> None:
    assert method
    assert needed
    messages = set()
    for token, scheme, reason in (
        (None, "", "CREDENTIALS_MISSING"),
        ("nobody", "Bearer", "CREDENTIALS_INVALID"),
        ("expired", "Bearer", "CREDENTIALS_INVALID"),
        ("all", "Basic", "CREDENTIALS_INVALID"),
    ):
        with calling_as(guarded.target, token, scheme) as live, refused(NOBODY) as result:
            call(live)
        assert told_of(result[0]) == (reason, "")
        messages.add(result[0].message)
    assert len(messages) == 2  # one for who shows nothing, one for all others


def test_health_and_reflection_are_open_to_all(guarded: ServerProcess) -> None:
    with grpc.insecure_channel(guarded.target) as channel:
        asked = health_pb2.HealthCheckRequest()
        assert health_pb2_grpc.HealthStub(channel).Check(asked, timeout=PATIENCE_S).status == 1
        assert next(iter(health_pb2_grpc.HealthStub(channel).Watch(asked, timeout=PATIENCE_S))).status == 1
        listing = [reflection_pb2.ServerReflectionRequest(list_services="")]
        (reported,) = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter(listing), timeout=PATIENCE_S
        )
        assert "tidemark.v1.ScoringService" in {item.name for item in reported.list_services_response.service}


def test_several_tokens_are_refused_and_bytes_are_no_token(guarded: ServerProcess) -> None:
    request = scoring_pb2.ScoreCustomerRequest(customer_id=KNOWN).SerializeToString()
    with RawClient(guarded.target) as raw:
        for sent, code in (
            ([b"Bearer all"], 0),
            ([b"Bearer nobody", b"Bearer all"], 16),
            ([b"Bearer all", b"Bearer nobody"], 16),
            ([b"Bearer all", b"Bearer all"], 16),
            ([b"Bearer \xff\xfe"], 16),
            ([b"Bearer " + b"x" * 6000], 16),
        ):
            reply = raw.ask(SCORE, request, [("authorization", value) for value in sent])
            assert reply.code == code, sent


def test_the_python_clients_send_their_token(guarded: ServerProcess) -> None:
    with ScoringClient(guarded.target, token="only-score", timeout_s=PATIENCE_S) as scores:
        assert scores.score(KNOWN).customer_id == KNOWN
    with (
        EventClient(guarded.target, token="only-events", timeout_s=PATIENCE_S) as events,
        CustomerClient(guarded.target, token="only-events", timeout_s=PATIENCE_S) as customers,
    ):
        assert events.record([Event(someone(), "view")]).accepted == 1
        assert events.stream([Event(someone(), "view")], timeout_s=PATIENCE_S).accepted == 1
        with pytest.raises(CallFailedError, match="SCOPE_MISSING"):
            customers.get(KNOWN)
    with ScoringClient(guarded.target, timeout_s=PATIENCE_S) as nobody, pytest.raises(CallFailedError) as caught:
        nobody.score(KNOWN)
    assert caught.value.problem.reason == "CREDENTIALS_MISSING"


# --- quotas ---------------------------------------------------------------------------------------------------------


def test_who_uses_up_a_quota_is_told_when_to_come_back_and_others_do_not_notice(guarded: ServerProcess) -> None:
    ids = [KNOWN] * 256
    with calling_as(guarded.target, "metered") as live, calling_as(guarded.target, "all") as other:
        with pytest.raises(grpc.RpcError) as caught:
            use_up(lambda: live.score_many(*ids))
        assert caught.value.code() is EXHAUSTED
        reported: Any = caught.value.trailing_metadata()
        trailers = dict(reported)
        status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
        assert told_of(status) == ("QUOTA_EXCEEDED", "")
        failure, retry = error_details_pb2.QuotaFailure(), error_details_pb2.RetryInfo()
        assert [detail.Unpack(failure) for detail in status.details].count(True) == 1
        assert [(item.subject, item.description) for item in failure.violations] == [("metered", status.message)]
        assert [detail.Unpack(retry) for detail in status.details].count(True) == 1
        wait_s = retry.retry_delay.ToTimedelta().total_seconds()
        assert 0 < wait_s <= 1.1  # about (256 - 44) / 200, less what has come meanwhile
        assert wait_s * 1000 <= int(trailers["grpc-retry-pushback-ms"]) <= wait_s * 1000 + 1
        assert len(other.score_many(*ids)) == 256
        time.sleep(wait_s)
        assert len(live.score_many(*ids)) == 256
        with refused(EXHAUSTED) as result:
            use_up(lambda: live.record(*(event(someone()) for _ in range(300))))
        assert info_of(result[0]).reason == "QUOTA_EXCEEDED"


def test_a_stream_of_events_is_held_back_and_not_broken(guarded: ServerProcess) -> None:
    customer = someone()
    with calling_as(guarded.target, "paced") as live:
        start = time.monotonic()
        done = live.stream([[event(customer, event_id=f"{n}-{m}") for m in range(10)] for n in range(6)])
        assert done.accepted == 60
        assert time.monotonic() - start > 0.45  # 10 at once, then 100 a second
        with pytest.raises(grpc.RpcError) as caught:
            live.stream([[event(customer)] * 100, [event(customer)] * 100], timeout=0.3)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


# --- a file that changes --------------------------------------------------------------------------------------------


def test_a_changed_file_counts_for_calls_on_open_connections_and_a_bad_one_does_not(
    start: Start, tmp_path: Path
) -> None:
    path = tmp_path / "callers.json"
    write(path, entry("first", "score"))
    server = start("--callers", str(path), "--host", "0.0.0.0")
    assert "tokens travel in the clear" in server.log

    def outcome(live: Live) -> str:
        try:
            live.score(KNOWN)
        except grpc.RpcError as error:
            return str(error.code().name)
        return "OK"

    with calling_as(server.target, "first") as first, calling_as(server.target, "second") as second:
        assert (outcome(first), outcome(second)) == ("OK", "UNAUTHENTICATED")
        path.write_text('{"caller": [')
        server.wait_for("the old ones stay in use")
        assert (outcome(first), outcome(second)) == ("OK", "UNAUTHENTICATED")
        write(path, entry("second", "score"))
        server.wait_for("callers: renewed")
        assert (outcome(first), outcome(second)) == ("UNAUTHENTICATED", "OK")
        write(path, entry("second", "events"))
        until(lambda: outcome(second) == "PERMISSION_DENIED")
    assert server.log.count("the old ones stay in use") == 1
    assert server.stop() == 0
    assert "calls refused so far: credentials_invalid" in server.log


# --- settings that do not do ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "0.0.0.0"], "--allow-anyone"),
        (["--callers", "missing.toml"], "missing.toml"),
        (["--callers", "bad.toml"], "bad.toml"),
    ],
)
@pytest.mark.any_front
def test_what_cannot_be_meant_ends_in_one_line(
    options: list[str], said: str, tmp_path: Path, small_registry: Path, run_service: Run
) -> None:
    (tmp_path / "bad.toml").write_text("[[caller]]\nname = 'shop'\n")
    usual = ["--registry", small_registry, "--redis", "redis://127.0.0.1:1", "--port", "0"]
    ended = run_service(*usual, *options)
    assert ended.is_bad_input, ended
    assert said in ended.err


# --- logs -----------------------------------------------------------------------------------------------------------

SECRET: Final = "mallory-4711"


def hostile(server: ServerProcess, url: str) -> None:
    """Everything that may go wrong with a customer, in one go."""
    request = scoring_pb2.ScoreCustomerRequest(customer_id=SECRET).SerializeToString()
    with redis.Redis.from_url(url) as store, calling_as(server.target, f"{SECRET}-token") as live:
        live.record(event(SECRET, "purchase", amount=5, item_id=SECRET, channel=SECRET, text=SECRET, event_id=SECRET))
        live.record(event(SECRET, SECRET, ago_s=1e7), event(SECRET, "view", ago_s=-1e7, item_id="\n" + SECRET))
        for key in store.keys(f"*{SECRET}*"):
            value = store.get(key)
            if isinstance(value, bytes):
                store.set(key, value[:-3])
        attempts: list[Callable[[], Any]] = [
            lambda: live.score(SECRET),
            lambda: live.score_many(SECRET, SECRET + "\n", KNOWN),
            lambda: live.get(SECRET),
            lambda: live.get(SECRET + "\0"),
            lambda: live.merge(SECRET, SECRET),
            lambda: live.merge(SECRET, KNOWN),
            lambda: live.consent(SECRET),
            lambda: live.record(event(SECRET)),
            lambda: live.channel.unary_unary(f"/tidemark.v1.ScoringService/{SECRET}")(b"", timeout=PATIENCE_S),  # type: ignore[arg-type]
            lambda: live.channel.unary_unary(SCORE)(request[:-4], timeout=PATIENCE_S),  # type: ignore[arg-type]
            lambda: live.channel.unary_unary(BATCH)(b"\xff" + request, timeout=PATIENCE_S),  # type: ignore[arg-type]
            lambda: live.channel.unary_unary(SCORE)(request, timeout=1e-3),  # type: ignore[arg-type]
            lambda: live.delete(SECRET),
        ]
        for attempt in attempts:
            try:
                attempt()
            except grpc.RpcError:
                continue
    with RawClient(server.target) as raw:
        raw.ask(SCORE, request, [("authorization", f"Bearer {SECRET}"), ("grpc-timeout", SECRET)])
        raw.ask(SCORE, request, [("grpc-encoding", SECRET), (SECRET, SECRET)])
        raw.write(request * 100)  # no HTTP/2 any more


def test_no_customer_and_no_token_is_in_the_log_whatever_comes(
    own_redis: RedisProcess, small_registry: Path, tmp_path: Path
) -> None:
    path = tmp_path / "callers.json"
    write(path, entry(f"{SECRET}-token", ALL) | {"name": "shop"})
    options = ["--registry", str(small_registry), "--redis", own_redis.url, "--port", "0", "--callers", str(path)]
    options += ["--redis-timeout-s", "1"]
    key = {"TIDEMARK_LOG_KEY": "of the shop", "PYTHONASYNCIODEBUG": "1"}
    with ServerProcess(tmp_path, *options, "--log-level", "DEBUG", environment=key) as server:
        server.wait_for("health is SERVING")
        hostile(server, own_redis.url)
        own_redis.pause()
        hostile_pause(server)
        own_redis.resume()
        server.wait_for("health is SERVING(.|\n)*NOT_SERVING(.|\n)*health is SERVING")
        assert server.stop() == 0
        log = server.log
    assert SECRET not in log
    assert "mallory" not in log
    assert "Traceback" not in log
    assert f"customer {hash_of(SECRET)}: what is stored cannot be used" in log


def hostile_pause(server: ServerProcess) -> None:
    """Calls while Redis hangs."""
    with calling_as(server.target, f"{SECRET}-token") as live:
        for _ in range(2):
            with pytest.raises(grpc.RpcError):
                live.score(SECRET)
            with pytest.raises(grpc.RpcError):
                live.record(event(SECRET))
    server.wait_for("NOT_SERVING")


def hash_of(customer_id: str) -> str:
    return hmac.new(b"of the shop", customer_id.encode(), "sha256").hexdigest()[:16]
