"""The server as a process: health, reflection, bad settings, Redis gone and back, deadlines, and a clean stop."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tidemark.v1 import scoring_pb2

from tests.conftest import Run, Trained
from tests.e2e.conftest import RedisProcess, load_small, until_answered
from tests.e2e.server_process import ServerProcess
from tests.waiting import PATIENCE_S, until
from tidemark import CallFailedError, ScoringClient

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE = "tidemark.v1.ScoringService"
REDIS_TIMEOUT_S = 1.0

pytestmark = pytest.mark.both_fronts


def health(channel: grpc.Channel, service: str = "") -> int:
    return int(
        health_pb2_grpc.HealthStub(channel)
        .Check(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE_S)
        .status
    )


def await_health(channel: grpc.Channel, wanted: int) -> None:
    until(lambda: health(channel) == wanted)


@pytest.fixture
def fragile(own_redis: RedisProcess, small: Trained, tmp_path: Path) -> Iterator[tuple[ServerProcess, RedisProcess]]:
    """A loaded server over a Redis that the test may harm."""
    load_small(own_redis.url, small)
    options = [
        "--registry",
        str(small.registry),
        "--redis",
        own_redis.url,
        "--port",
        "0",
        "--health-interval-s",
        "0.05",
        "--redis-timeout-s",
        str(REDIS_TIMEOUT_S),
    ]
    with ServerProcess(tmp_path, *options) as server:
        server.wait_for("health is SERVING")
        yield server, own_redis


def test_health_tells_of_the_server_and_the_service(channel: grpc.Channel) -> None:
    assert health(channel) == SERVING
    assert health(channel, SERVICE) == SERVING
    with pytest.raises(grpc.RpcError) as caught:
        health(channel, "tidemark.v1.NoService")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_reflection_describes_the_whole_contract(channel: grpc.Channel) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE),
        reflection_pb2.ServerReflectionRequest(file_by_filename="google/rpc/status.proto"),
    ]
    listed, described, status = stub.ServerReflectionInfo(iter(asked), timeout=PATIENCE_S)
    assert {SERVICE, "grpc.health.v1.Health"} <= {s.name for s in listed.list_services_response.service}
    proto = FileDescriptorProto.FromString(described.file_descriptor_response.file_descriptor_proto[0])
    assert proto.package == "tidemark.v1"
    assert [method.name for method in proto.service[0].method] == ["ScoreCustomer", "BatchScoreCustomers"]
    assert status.HasField("file_descriptor_response")


def test_an_unknown_method_is_unimplemented(channel: grpc.Channel) -> None:
    nothing: Any = channel.unary_unary(f"/{SERVICE}/Nothing")
    with pytest.raises(grpc.RpcError) as caught:
        nothing(b"", timeout=PATIENCE_S)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_redis_away_is_unavailable_with_retry_info_and_heals_by_itself(
    fragile: tuple[ServerProcess, RedisProcess],
) -> None:
    server, redis = fragile
    with grpc.insecure_channel(server.target) as channel, ScoringClient(server.target, timeout_s=PATIENCE_S) as client:
        assert scored_in_the_end(client) == "900"
        redis.kill()
        await_health(channel, NOT_SERVING)
        with pytest.raises(CallFailedError) as caught:
            client.score("900")
        problem = caught.value.problem
        assert (problem.code, problem.reason) == (grpc.StatusCode.UNAVAILABLE, "FEATURE_STORE_UNAVAILABLE")
        assert problem.retry_after is not None
        redis.start()
        await_health(channel, SERVING)
        assert scored_in_the_end(client) == "900"
    assert "Traceback" not in server.log


def test_redis_that_hangs_is_unavailable_within_its_timeout(fragile: tuple[ServerProcess, RedisProcess]) -> None:
    server, redis = fragile
    with grpc.insecure_channel(server.target) as channel:
        call: Any = channel.unary_unary(f"/{SERVICE}/ScoreCustomer")
        request = scoring_pb2.ScoreCustomerRequest(customer_id="900").SerializeToString()
        until_answered(lambda: call(request, timeout=PATIENCE_S))
        redis.pause()
        with pytest.raises(grpc.RpcError) as caught:  # by the server's timeout, long before the call's
            call(request, timeout=PATIENCE_S)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        redis.resume()
        until_answered(lambda: call(request, timeout=PATIENCE_S))
        await_health(channel, SERVING)


@pytest.mark.any_front
def test_the_client_retries_unavailable_until_redis_is_back(fragile: tuple[ServerProcess, RedisProcess]) -> None:
    server, redis = fragile
    with ScoringClient(server.target, timeout_s=PATIENCE_S) as client, ThreadPoolExecutor(1) as pool:
        scored_in_the_end(client)
        redis.kill()
        result = pool.submit(scored_in_the_end, client)
        time.sleep(0.1)  # it may fail meanwhile
        redis.start()  # not in a thread: it would end with the thread that started it
        assert result.result() == "900"


def scored_in_the_end(client: ScoringClient) -> str:
    """A customer's score, asked for until there is one."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            return client.score("900").customer_id
        except CallFailedError as error:
            if error.problem.code is not grpc.StatusCode.UNAVAILABLE or time.monotonic() > end:
                raise


@pytest.mark.any_front
def test_a_server_without_redis_starts_and_is_not_serving(small_registry: Path, tmp_path: Path) -> None:
    options = ["--registry", str(small_registry), "--redis", f"unix://{tmp_path}/none.sock", "--port", "0"]
    with ServerProcess(tmp_path, *options) as server, grpc.insecure_channel(server.target) as channel:
        server.wait_for("health is NOT_SERVING")
        assert health(channel) == NOT_SERVING
        assert server.stop() == 0


@pytest.mark.parametrize("damage", ["torn model", "torn golden", "no margin", "no bundle"])
@pytest.mark.any_front
def test_a_bundle_that_must_not_be_served_stops_the_start(
    damage: str, small_registry: Path, tmp_path: Path, run_service: Run
) -> None:
    registry = tmp_path / "registry"
    if damage != "no bundle":
        shutil.copytree(small_registry, registry, symlinks=True)
    if damage.startswith("torn"):
        path = registry / "current" / ("model.onnx" if damage == "torn model" else "golden.npz")
        path.write_bytes(path.read_bytes()[:-20])
    if damage == "no margin":
        manifest = registry / "current" / "manifest.json"
        text = json.loads(manifest.read_text())
        text["economics"].pop("margin")
        manifest.write_text(json.dumps(text))
    ended = run_service("--registry", registry, "--redis", "redis://127.0.0.1:1", "--port", "0")
    assert ended.is_bad_input
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--registry", "r"], "--redis"),
        (["--registry", "r", "--redis", "redis://x", "--port", "99999"], "--port"),
        (["--registry", "r", "--redis", "redis://x", "--port", "many"], "--port"),
        (["--registry", "r", "--redis", "redis://x", "--bogus", "1"], "--bogus"),
        (["--registry", "nowhere", "--redis", "redis://x"], "nowhere"),
    ],
)
@pytest.mark.any_front
def test_bad_options_end_in_one_line_and_exit_code_2(options: list[str], said: str, run_module: Run) -> None:
    ended = run_module("service", *options)
    assert ended.is_bad_input, ended
    assert said in ended.err


@pytest.mark.any_front
def test_a_bad_redis_url_is_refused_without_repeating_it(small_registry: Path, run_service: Run) -> None:
    ended = run_service("--registry", small_registry, "--redis", "http://u:secret@x", "--port", "0")
    assert ended.is_bad_input, ended
    assert "secret" not in ended.err


def test_a_port_in_use_ends_in_one_line(server: ServerProcess, small_registry: Path, run_module: Run) -> None:
    port = server.target.rpartition(":")[2]
    ended = run_module("service", "--registry", small_registry, "--redis", "redis://127.0.0.1:1", "--port", port)
    assert ended.is_bad_input, ended
    assert port in ended.err


@pytest.mark.any_front
def test_settings_come_from_the_environment_too(loaded_redis: str, small_registry: Path, tmp_path: Path) -> None:
    environment = {"TIDEMARK_REGISTRY": str(small_registry), "TIDEMARK_REDIS": loaded_redis, "TIDEMARK_PORT": "0"}
    with ServerProcess(tmp_path, environment=environment, cold=True) as server:
        server.wait_for("health is SERVING")
        port = server.target.rpartition(":")[2]
        check = [sys.executable, "-m", "service.healthcheck"]
        asked = subprocess.run(check, env={"TIDEMARK_PORT": port}, capture_output=True, text=True, check=False)
        assert (asked.returncode, asked.stdout) == (0, "SERVING\n")
        assert server.stop() == 0
        asked = subprocess.run(check, env={"TIDEMARK_PORT": port}, capture_output=True, text=True, check=False)
        assert asked.returncode == 1


def test_a_stop_lets_running_calls_finish(loaded_redis: str, small_registry: Path, tmp_path: Path) -> None:
    options = ["--registry", str(small_registry), "--redis", loaded_redis, "--port", "0", "--grace-s", "600"]
    with ServerProcess(tmp_path, *options) as server:
        server.wait_for("health is SERVING")
        with grpc.insecure_channel(server.target) as channel:
            call: Any = channel.unary_unary(f"/{SERVICE}/BatchScoreCustomers")
            ids = [str(number % 2000) for number in range(1000)]
            request = scoring_pb2.BatchScoreCustomersRequest(customer_ids=ids).SerializeToString()
            call(request, timeout=PATIENCE_S)
            running = [call.future(request, timeout=PATIENCE_S) for _ in range(20)]
            until(lambda: any(future.done() for future in running))
            assert server.stop() == 0
            codes = {future.code() for future in running}
        assert codes <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
        assert grpc.StatusCode.OK in codes
    assert "stopped" in server.log
    assert "Traceback" not in server.log


def test_a_call_past_its_deadline_is_given_up_and_the_server_goes_on(
    fragile: tuple[ServerProcess, RedisProcess],
) -> None:
    server, redis = fragile
    with grpc.insecure_channel(server.target) as channel:
        call: Any = channel.unary_unary(f"/{SERVICE}/ScoreCustomer")
        request = scoring_pb2.ScoreCustomerRequest(customer_id="900").SerializeToString()
        until_answered(lambda: call(request, timeout=PATIENCE_S))
        redis.pause()
        with pytest.raises(grpc.RpcError) as caught:
            call(request, timeout=0.05)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        redis.resume()
        await_health(channel, SERVING)
        until_answered(lambda: call(request, timeout=PATIENCE_S))
    assert "Traceback" not in server.log


def test_no_customer_id_reaches_the_log(client: ScoringClient, server: ServerProcess) -> None:
    with pytest.raises(CallFailedError):
        client.score("nobody-4711")
    assert "4711" not in server.log
