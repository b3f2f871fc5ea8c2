"""Clients that other services use, each with an HTTP/2 of its own, get right answers from a server process.

grpcio, grpc.aio, @grpc/grpc-js and Connect carry out the same plans: rounds of calls side by side on one connection.
The two in JavaScript (tests/clients) decode each reply and write it again, so that what is compared went through them.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import psutil
import pytest
from google.protobuf import any_pb2, descriptor_pb2, duration_pb2, timestamp_pb2
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tidemark.rpc import error_details_pb2, status_pb2
from tidemark.v1 import events_pb2, scoring_pb2

from feature_store.bundles import bundle
from tests.e2e.conftest import RedisProcess
from tests.e2e.live import EVENTS, calling, event, someone
from tests.e2e.server_process import ServerProcess
from tests.waiting import PATIENCE_S, until

ROOT = Path(__file__).parents[2]
SERVICE = "tidemark.v1.ScoringService"
SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3
KNOWN = "900"

pytestmark = pytest.mark.both_fronts

IDS = [str(number) for number in range(1, 1001)]
COMMON = [any_pb2, duration_pb2, timestamp_pb2, status_pb2, error_details_pb2, health_pb2]
FILES: list[Any] = [*COMMON, scoring_pb2, events_pb2]
REPLIES_MANY = ("Watch", "StreamEvents")
STREAMED = 3
"""So often each client sends the request of a stream, as do those in JavaScript."""

Call = tuple[str, Message]


@dataclass(frozen=True)
class Round:
    """Calls made side by side; the next round begins when all of them have ended."""

    calls: Sequence[Call]
    timeout_ms: int = 300_000
    cancel_ms: int = 0
    cancel_after: int = 0
    """Replies after which a call is cancelled."""
    metadata: tuple[tuple[str, str | bytes], ...] = ()


@dataclass(frozen=True)
class Outcome:
    """How a call ended: ``details`` are the bytes of the google.rpc.Status, ``infos`` what the client reads in them."""

    code: int
    message: str
    details: bytes
    infos: list[list[str]]
    replies: list[bytes]

    def read(self, kind: Any) -> Any:
        """The one reply of a call that went well."""
        assert (self.code, self.message, self.details, len(self.replies)) == (0, "", b"", 1)
        return kind.FromString(self.replies[0])


Client = Callable[..., list[list[Outcome]]]
"""``client(target, rounds, gzip=False)``."""


def score(customer_id: str) -> Call:
    return f"/{SERVICE}/ScoreCustomer", scoring_pb2.ScoreCustomerRequest(customer_id=customer_id)


def batch(ids: Sequence[str]) -> Call:
    return f"/{SERVICE}/BatchScoreCustomers", scoring_pb2.BatchScoreCustomersRequest(customer_ids=ids)


def record(*events: events_pb2.Event) -> Call:
    return f"/{EVENTS}/RecordEvents", events_pb2.RecordEventsRequest(events=events)


def stream(*events: events_pb2.Event) -> Call:
    return f"/{EVENTS}/StreamEvents", events_pb2.StreamEventsRequest(events=events)


def health(method: str, service: str) -> Call:
    return f"/grpc.health.v1.Health/{method}", health_pb2.HealthCheckRequest(service=service)


# --- the clients ----------------------------------------------------------------------------------------------------


def sync_client(target: str, rounds: Sequence[Round], *, gzip: bool = False) -> list[list[Outcome]]:
    with grpc.insecure_channel(target, compression=grpc.Compression.Gzip if gzip else None) as channel:
        return [_sync_round(channel, round_) for round_ in rounds]


def _sync_round(channel: Any, round_: Round) -> list[Outcome]:
    def begin(path: str, request: Message) -> Any:
        options = {"timeout": round_.timeout_ms / 1000, "metadata": round_.metadata}
        if path.endswith("StreamEvents"):
            return channel.stream_stream(path)(iter([request.SerializeToString()] * STREAMED), **options)
        method = channel.unary_stream(path) if path.endswith("Watch") else channel.unary_unary(path).future
        return method(request.SerializeToString(), **options)

    def end(path: str, call: Any) -> Outcome:
        replies: list[bytes] = []
        try:
            for reply in call if path.endswith(REPLIES_MANY) else [call.result()]:
                replies.append(reply)
                if len(replies) == round_.cancel_after:
                    call.cancel()
        except (grpc.RpcError, grpc.FutureCancelledError):
            pass  # its code tells
        return _outcome(call.code(), call.details(), call.trailing_metadata(), replies)

    calls = [begin(*call) for call in round_.calls]
    cancelling = threading.Timer(round_.cancel_ms / 1000, lambda: [call.cancel() for call in calls])
    if round_.cancel_ms:
        cancelling.start()
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(end, [path for path, _ in round_.calls], calls))


def aio_client(target: str, rounds: Sequence[Round], *, gzip: bool = False) -> list[list[Outcome]]:
    async def carry_out() -> list[list[Outcome]]:
        compression = grpc.Compression.Gzip if gzip else None
        async with grpc.aio.insecure_channel(target, compression=compression) as channel:
            return [await asyncio.gather(*(_aio_call(channel, *call, r) for call in r.calls)) for r in rounds]

    return asyncio.run(carry_out())


async def _aio_call(channel: Any, path: str, request: Message, round_: Round) -> Outcome:
    streams = path.endswith(REPLIES_MANY)
    data: Any = request.SerializeToString()
    method = channel.unary_stream(path) if streams else channel.unary_unary(path)
    events = path.endswith("StreamEvents")
    options = {"timeout": round_.timeout_ms / 1000, "metadata": round_.metadata}
    call = channel.stream_stream(path)(**options) if events else method(data, **options)
    if round_.cancel_ms:
        asyncio.get_running_loop().call_later(round_.cancel_ms / 1000, call.cancel)
    replies: list[bytes] = []
    try:
        if events:
            # One message at a time: grpc.aio hides the status of a call that ends while a message is being written.
            for _ in range(STREAMED):
                await call.write(data)
                replies.append(await call.read())
            await call.done_writing()
        elif not streams:
            replies.append(await call)
        if streams:
            async for reply in _replies(call):
                replies.append(reply)
                if len(replies) == round_.cancel_after:
                    call.cancel()
    except (grpc.RpcError, asyncio.CancelledError):
        pass  # its code tells
    return _outcome(await call.code(), await call.details(), await call.trailing_metadata(), replies)


async def _replies(call: Any) -> AsyncIterator[bytes]:
    while (reply := await call.read()) is not grpc.aio.EOF:
        yield reply


def _outcome(code: grpc.StatusCode, message: str | None, trailers: Any, replies: list[bytes]) -> Outcome:
    details = dict(trailers or ()).get("grpc-status-details-bin", b"")
    infos = []
    for detail in status_pb2.Status.FromString(details).details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            infos.append([info.domain, info.reason, info.metadata["field"]])
    return Outcome(code.value[0], message or "", details, infos, replies)


def node_client(script: Path) -> Client:
    def carry_out(target: str, rounds: Sequence[Round], *, gzip: bool = False) -> list[list[Outcome]]:
        files = [descriptor_pb2.FileDescriptorProto.FromString(file.DESCRIPTOR.serialized_pb) for file in FILES]
        contract = {"protos": str(ROOT / "protos"), "descriptors": descriptor_pb2.FileDescriptorSet(file=files)}
        plan = contract | {"target": target, "gzip": gzip, "rounds": [vars(round_) for round_ in rounds]}
        written = json.dumps(plan, default=_text)
        command = ["node", str(script)]
        ended = subprocess.run(command, input=written, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        assert (ended.returncode, ended.stderr) == (0, "")
        return [[Outcome(**_read(outcome)) for outcome in round_] for round_ in json.loads(ended.stdout)]

    return carry_out


def _text(value: bytes | Message) -> str:
    return base64.b64encode(value if isinstance(value, bytes) else value.SerializeToString()).decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text + "==")  # gRPC leaves the padding out


def _read(outcome: dict[str, Any]) -> dict[str, Any]:
    return outcome | {"details": _bytes(outcome["details"]), "replies": [_bytes(reply) for reply in outcome["replies"]]}


CLIENTS: dict[str, Callable[[pytest.FixtureRequest], Client]] = {
    "grpcio": lambda _: sync_client,
    "grpc.aio": lambda _: aio_client,
    "grpc-js": lambda request: node_client(request.getfixturevalue("node_folder") / "grpc_js.mjs"),
    "connect": lambda request: node_client(request.getfixturevalue("node_folder") / "connect.mjs"),
}


@pytest.fixture(scope="session")
def target(server: ServerProcess) -> str:
    """host:port of the server that all of this is about."""
    return server.target


@pytest.fixture(params=CLIENTS)
def carry_out(request: pytest.FixtureRequest, target: str) -> Client:
    """``carry_out(*rounds, gzip=False)``."""
    client = CLIENTS[request.param](request)
    return lambda *rounds, gzip=False: client(target, rounds, gzip=gzip)


@pytest.fixture
def expected(target: str) -> dict[str, Any]:
    """What grpcio is told about every customer there is, now: scores move with time."""
    (((outcome,),)) = sync_client(target, [Round([batch(IDS)])])
    results = outcome.read(scoring_pb2.BatchScoreCustomersResponse).results
    return {result.score.customer_id: result.score for result in results if result.HasField("score")}


def figures(score: Any) -> list[float]:
    alerts = [figure for alert in (score.churn, score.propensity) for figure in (alert.probability, alert.threshold)]
    return [*alerts, score.expected_spend]


def assert_scores(found: Sequence[Any], expected: dict[str, Any], ids: Sequence[str]) -> None:
    """Each id has the score of its own; one in a hundred may have moved on meanwhile, as trees have edges."""
    assert [score.customer_id for score in found] == list(ids)
    moved = 0
    for score in found:
        twin = expected[score.customer_id]
        assert (score.model_version, score.feature_time) == (twin.model_version, twin.feature_time)
        assert score.churn.alert is (score.churn.probability >= score.churn.threshold)
        assert score.propensity.alert is (score.propensity.probability >= score.propensity.threshold)
        moved += figures(score) != pytest.approx(figures(twin), rel=1e-4, abs=1e-6)
    assert moved <= len(found) / 100


def scores(outcomes: Sequence[Outcome]) -> list[Any]:
    return [outcome.read(scoring_pb2.ScoreCustomerResponse).score for outcome in outcomes]


def acknowledgements(outcome: Outcome) -> list[Any]:
    assert outcome.code == 0, outcome.message
    return [events_pb2.StreamEventsResponse.FromString(reply) for reply in outcome.replies]


def statuses(outcome: Outcome) -> list[int]:
    return [health_pb2.HealthCheckResponse.FromString(reply).status for reply in outcome.replies]


# --- right answers --------------------------------------------------------------------------------------------------


def test_a_score_is_what_grpcio_is_told(carry_out: Client, expected: dict[str, Any], small_registry: Path) -> None:
    (result,) = carry_out(Round([score(KNOWN)]))
    assert_scores(scores(result), expected, [KNOWN])
    assert scores(result)[0].model_version == bundle.read(small_registry).manifest.version


@pytest.mark.parametrize("gzip", [False, True], ids=["plain", "gzip"])
def test_batches_of_1000_side_by_side_keep_order_and_problems(
    carry_out: Client, expected: dict[str, Any], *, gzip: bool
) -> None:
    ids = ["nobody", *list(expected)[:600], "", *expected][:1000]
    (answer,) = carry_out(Round([batch(ids)] * 3), gzip=gzip)
    for outcome in answer:
        results = outcome.read(scoring_pb2.BatchScoreCustomersResponse).results
        known = [n for n, customer_id in enumerate(ids) if customer_id in expected]
        assert_scores([results[n].score for n in known], expected, [ids[n] for n in known])
        codes = {ids[n]: result.status.code for n, result in enumerate(results) if n not in known}
        assert codes == {"nobody": grpc.StatusCode.NOT_FOUND.value[0], "": grpc.StatusCode.INVALID_ARGUMENT.value[0]}


def test_requests_larger_than_the_first_window_arrive_whole(carry_out: Client) -> None:
    ids = [f"{number:0256}" for number in range(1000)]
    _, answer = carry_out(Round([score(KNOWN)]), Round([batch(ids)] * 4))
    for outcome in answer:
        results = outcome.read(scoring_pb2.BatchScoreCustomersResponse).results
        infos = [error_details_pb2.ErrorInfo.FromString(result.status.details[0].value) for result in results]
        assert [info.metadata["field"] for info in infos] == ["customer_ids"] * 1000


def test_1000_calls_at_once_get_each_its_own_answer(carry_out: Client, expected: dict[str, Any]) -> None:
    ids = [*expected, *expected][:1000]
    (result,) = carry_out(Round([score(customer_id) for customer_id in ids]))
    assert_scores(scores(result), expected, ids)


def test_metadata_of_all_kinds_and_compression_change_nothing(carry_out: Client, expected: dict[str, Any]) -> None:
    def sent(n: int) -> tuple[tuple[str, str | bytes], ...]:
        seldom = ("x-long", chr(ord("a") + n) * 3000), ("x-trace-bin", bytes(range(n, 200 + n))), ("x-empty-bin", b"")
        return ("authorization", f"Bearer {n}"), ("x-request-id", f"{n:032x}"), ("x-request-id", "again"), *seldom

    rounds = [Round([score(KNOWN)] * 3, metadata=sent(n)) for n in range(20)]
    for result in carry_out(*rounds, gzip=True):
        assert_scores(scores(result), expected, [KNOWN] * 3)


@pytest.mark.parametrize("gzip", [False, True], ids=["plain", "gzip"])
def test_events_are_recorded_one_by_one_and_by_streams(carry_out: Client, target: str, *, gzip: bool) -> None:
    customer, other = someone(), someone()
    events = [
        event(customer, "visit", channel="web"),
        event("", "visit"),
        event(customer, channel="app", text="x" * 900),
    ]
    plan = [Round([record(*events), stream(*events)]), Round([stream(event(other, channel="web"))] * 20)]
    (recorded, streamed), many = carry_out(*plan, gzip=gzip)
    item = recorded.read(events_pb2.RecordEventsResponse)
    assert (item.accepted, [(bad.index, bad.field) for bad in item.rejected]) == (2, [(1, "customer_id")])
    several = acknowledgements(streamed)
    assert [(reply.acknowledged_messages, reply.accepted) for reply in several] == [(1, 2), (2, 2), (3, 2)]
    assert [[bad.index for bad in reply.rejected] for reply in several] == [[1]] * STREAMED
    assert [sum(reply.accepted for reply in acknowledgements(outcome)) for outcome in many] == [STREAMED] * 20
    with calling(target) as live:
        assert (live.counted(customer), live.counted(other)) == (8, 20 * STREAMED)


def test_a_stream_that_is_refused_in_the_middle_tells_every_client_why(carry_out: Client) -> None:
    (result,), after = carry_out(Round([stream(*[event("x")] * 1001)]), Round([score(KNOWN)]))
    assert (result.code, result.infos) == (
        grpc.StatusCode.INVALID_ARGUMENT.value[0],
        [["tidemark", "TOO_MANY_EVENTS", "events"]],
    )
    assert scores(after)


# --- errors, deadlines, cancellation --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "code", "reason", "field"),
    [
        (score("nobody-4711"), grpc.StatusCode.NOT_FOUND, "CUSTOMER_UNKNOWN", "customer_id"),
        (score(""), grpc.StatusCode.INVALID_ARGUMENT, "CUSTOMER_ID_INVALID", "customer_id"),
        (batch([KNOWN] * 1001), grpc.StatusCode.INVALID_ARGUMENT, "TOO_MANY_CUSTOMERS", "customer_ids"),
    ],
    ids=["unknown", "bad id", "too many"],
)
def test_an_error_arrives_with_its_details_to_the_byte(
    carry_out: Client, call: Call, code: grpc.StatusCode, reason: str, field: str
) -> None:
    (result,), after = carry_out(Round([call]), Round([score(KNOWN)]))
    assert (result.code, result.infos, result.replies) == (code.value[0], [["tidemark", reason, field]], [])
    assert result.message
    reported = status_pb2.Status(code=code.value[0], message=result.message)
    reported.details.add().Pack(
        error_details_pb2.ErrorInfo(reason=reason, domain="tidemark", metadata={"field": field})
    )
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        wrong = error_details_pb2.BadRequest.FieldViolation(field=field, description=result.message)
        reported.details.add().Pack(error_details_pb2.BadRequest(field_violations=[wrong]))
    page = f"reference/errors/{reason.lower().replace('_', '-')}.html"
    link = error_details_pb2.Help.Link(description="Cause and fix", url=page)
    reported.details.add().Pack(error_details_pb2.Help(links=[link]))
    assert result.details == reported.SerializeToString()
    assert scores(after)


@pytest.mark.parametrize(
    ("how", "code"),
    [({"timeout_ms": 2}, grpc.StatusCode.DEADLINE_EXCEEDED), ({"cancel_ms": 2}, grpc.StatusCode.CANCELLED)],
    ids=["deadline", "cancelled"],
)
def test_calls_given_up_leave_the_connection_as_good_as_it_was(
    carry_out: Client, expected: dict[str, Any], how: dict[str, Any], code: grpc.StatusCode
) -> None:
    impatient = Round([batch(IDS)] * 20, **how)
    _, given_up, after = carry_out(Round([score(KNOWN)]), impatient, Round([score(KNOWN)] * 50))
    assert {(outcome.code, *outcome.replies) for outcome in given_up} == {(code.value[0],)}
    assert_scores(scores(after), expected, [KNOWN] * 50)


# --- health ---------------------------------------------------------------------------------------------------------


def test_health_is_told_of_the_server_and_of_its_service(carry_out: Client) -> None:
    checks, watches = ([health(method, service) for service in ("", SERVICE, "x")] for method in ("Check", "Watch"))
    checked, watched = carry_out(Round(checks), Round(watches, cancel_after=1))
    assert [outcome.code for outcome in checked] == [0, 0, grpc.StatusCode.NOT_FOUND.value[0]]
    assert [statuses(outcome) for outcome in checked] == [[SERVING], [SERVING], []]
    assert [outcome.code for outcome in watched] == [grpc.StatusCode.CANCELLED.value[0]] * 3
    assert [statuses(outcome) for outcome in watched] == [[SERVING], [SERVING], [SERVICE_UNKNOWN]]


def probe(target: str, service: str = "", timeout_s: float = PATIENCE_S) -> int:
    """What grpc_health_probe does, and its exit code; by itself it waits a second."""
    with grpc.insecure_channel(target, [("grpc.primary_user_agent", "grpc_health_probe")]) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=timeout_s)
        except grpc.FutureTimeoutError:
            return 2
        try:
            request = health_pb2.HealthCheckRequest(service=service)
            reply = health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout_s)
        except grpc.RpcError:
            return 3
    return 0 if reply.status == SERVING else 4


def test_a_health_probe_ends_with_the_code_that_orchestrators_expect(target: str) -> None:
    assert [probe(target), probe(target, SERVICE), probe(target, "x"), probe("127.0.0.1:1", timeout_s=1)] == [
        0,
        0,
        3,
        2,
    ]


def connections(server: ServerProcess, port: int) -> int:
    """How many clients are connected."""
    every = psutil.Process(server.process.pid).net_connections("tcp")
    return sum(item.laddr.port == port and item.status == psutil.CONN_ESTABLISHED for item in every)


def test_every_client_watches_health_go_and_come_back(
    own_redis: RedisProcess, small_registry: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    clients = [client(request) for client in CLIENTS.values()]
    options = ["--registry", str(small_registry), "--redis", own_redis.url, "--port", "0"]
    with ServerProcess(tmp_path, *options) as server, ThreadPoolExecutor(len(clients)) as pool:
        server.wait_for("health is SERVING")
        plan = [Round([health("Watch", SERVICE)], cancel_after=3)]
        watching = [pool.submit(client, server.target, plan) for client in clients]
        port = int(server.target.rpartition(":")[2])
        until(lambda: connections(server, port) == len(clients))
        server.await_idle()  # all of them have been told that it is serving
        own_redis.kill()
        server.wait_for("health is NOT_SERVING")
        assert probe(server.target) == 4
        own_redis.start()
        for ended in watching:
            (((outcome,),)) = ended.result()
            assert statuses(outcome) == [SERVING, NOT_SERVING, SERVING]
        assert probe(server.target) == 0


# --- tools ----------------------------------------------------------------------------------------------------------


def test_buf_curl_learns_the_contract_by_reflection_and_calls_it(target: str, tmp_path: Path) -> None:
    def curl(path: str, *options: str) -> subprocess.CompletedProcess[str]:
        buf = [str(Path(sys.executable).with_name("buf")), "curl", "--protocol=grpc", "--http2-prior-knowledge"]
        environment = os.environ | {"BUF_CACHE_DIR": str(tmp_path)}
        command = [*buf, *options, f"http://{target}{path}"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False)

    listed = curl("", "--list-services")
    assert {SERVICE, "grpc.health.v1.Health"} <= set(listed.stdout.split()), listed.stderr
    scored = curl(f"/{SERVICE}/ScoreCustomer", '--data={"customer_id": "900"}')
    assert json.loads(scored.stdout)["score"]["customerId"] == KNOWN
    refused = json.loads(curl(f"/{SERVICE}/ScoreCustomer", '--data={"customer_id": "nobody"}').stderr)
    info = error_details_pb2.ErrorInfo.FromString(_bytes(refused["details"][0]["value"]))
    assert (refused["code"], info.reason) == ("not_found", "CUSTOMER_UNKNOWN")
    item = {"customerId": someone(), "eventType": "visit", "eventTime": datetime.now(UTC).isoformat()}
    data = json.dumps({"events": [item, item]})
    assert json.loads(curl(f"/{EVENTS}/RecordEvents", f"--data={data}").stdout) == {"accepted": "2"}
    streamed = curl(f"/{EVENTS}/StreamEvents", f"--data={data}{data}").stdout
    assert [json.loads(line) for line in re.findall(r"\{[^}]*\}", streamed)] == [
        {"acknowledgedMessages": number, "accepted": "2"} for number in "12"
    ]
    checked = curl("/grpc.health.v1.Health/Check", "--data={}", "--user-agent=grpc_health_probe")
    assert json.loads(checked.stdout) == {"status": "SERVING"}


@pytest.fixture(scope="session")
def h2load(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command: the system's, or Debian's with what it needs, unpacked into the build folder; never installed."""
    if result := shutil.which("h2load"):
        return [result]
    folder, apt_folder = ROOT / "build" / "h2load", tmp_path_factory.mktemp("apt")
    library, program = folder / "usr" / "lib" / f"{platform.machine()}-linux-gnu", folder / "usr" / "bin" / "h2load"
    if not program.exists():
        if not (shutil.which("apt-get") and shutil.which("dpkg")):
            pytest.skip("no h2load on the PATH, and no apt-get and dpkg to get it with")
        for needed in ("archives", "lists"):
            (apt_folder / needed / "partial").mkdir(parents=True)
        own = [f"Dir::State::Lists={apt_folder / 'lists'}", f"Dir::Cache={apt_folder}", "Debug::NoLocking=1"]
        apt = ["apt-get", *(f"--option={option}" for option in (*own, "APT::Sandbox::User=root"))]
        download = [*apt, "install", "--yes", "--download-only", "--no-install-recommends", "nghttp2-client"]
        try:
            for command in ([*apt, "update"], download):
                subprocess.run(command, capture_output=True, timeout=PATIENCE_S, check=True)
        except subprocess.SubprocessError:
            pytest.skip("no h2load on the PATH, and apt-get cannot download it")
        for package in sorted((apt_folder / "archives").glob("*.deb")):  # the program itself comes last
            subprocess.run(["dpkg", "--extract", package, folder], timeout=PATIENCE_S, check=True)
    return ["env", f"LD_LIBRARY_PATH={library}", str(program)]


@pytest.mark.parametrize(
    ("call", "times", "windows"),
    [(score(KNOWN), 2000, []), (batch(IDS), 64, ["--window-bits=12", "--connection-window-bits=14"])],
    ids=["scores", "batches through small windows"],
)
def test_h2load_gets_a_whole_answer_to_every_request(
    h2load: list[str], target: str, tmp_path: Path, *, call: Call, times: int, windows: list[str]
) -> None:
    (((answer,),)) = sync_client(target, [Round([call])])
    data, body = call[1].SerializeToString(), tmp_path / "body"
    body.write_bytes(struct.pack(">xI", len(data)) + data)
    options = [f"--requests={times}", "--clients=4", "--max-concurrent-streams=16", f"--data={body}", *windows]
    headers = ["--header=content-type: application/grpc", "--header=te: trailers"]
    command = [*h2load, *options, *headers, f"http://{target}{call[0]}"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True).stdout
    assert f" {times} succeeded, 0 failed, 0 errored, 0 timeout" in said
    assert f"status codes: {times} 2xx, 0 3xx, 0 4xx, 0 5xx" in said
    assert f"({times * (5 + len(answer.replies[0]))}) data" in said
