"""What a server says of itself: each call counted once, under the names that the reference and the dashboard have."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import promql_parser
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families
from tidemark.v1 import scoring_pb2

import service
from feature_store.__main__ import cli as feature_store_cli
from feature_store.bundles import bundle
from tests.conftest import Call, Run, Shop
from tests.e2e.conftest import RedisProcess
from tests.e2e.live import ALONE, Live, event
from tests.e2e.models import Models, republished
from tests.e2e.server_process import ServerProcess
from tests.waiting import PATIENCE_S, until
from tidemark import CallFailedError, ScoringClient
from tidemark_docs.metrics_page import families

DASHBOARD = json.loads((Path(service.__file__).parent / "dashboard.json").read_text())
SECRET = "secret-customer"
SCORE, BATCH = "tidemark.v1.ScoringService/ScoreCustomer", "tidemark.v1.ScoringService/BatchScoreCustomers"
KNOWN = "900"
OF_PROMETHEUS = {"job", "instance", "le"}
LEAN_ONLY = {"tidemark_connections"}

Families = dict[str, Metric]


class Seen(NamedTuple):
    """A server and where its metrics are."""

    server: ServerProcess
    url: str

    def page(self, accept: str = "text/plain") -> str:
        """What Prometheus would read."""
        request = urllib.request.Request(self.url, headers={"Accept": accept})
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:
            return str(reply.read().decode())

    def families(self) -> Families:
        """By the name that the page has."""
        parsed = text_string_to_metric_families(self.page())
        return {family.name + "_total" * (family.type == "counter"): family for family in parsed}

    def counts(self, name: str, *labels: str) -> Counter[tuple[str, ...]]:
        """Values of all workers together, by these labels."""
        result: Counter[tuple[str, ...]] = Counter()
        for family in self.families().values():
            for sample in family.samples:
                if sample.name == name:
                    result[tuple(sample.labels[label] for label in labels)] += int(sample.value)
        return result


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as result:
        return int(result.getsockname()[1])


def seen(folder: Path, registry: Path, redis: str, *more: str) -> Seen:
    port = free_port()
    options = ["--registry", str(registry), "--redis", redis, "--port", "0", "--metrics-port", str(port)]
    process = ServerProcess(folder, *options, *more)
    process.wait_for("health is SERVING")
    return Seen(process, f"http://127.0.0.1:{port}/metrics")


@pytest.fixture(scope="module")
def watched(
    front: str,  # noqa: ARG001  # set before the server starts
    loaded_redis: str,
    small_registry: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Seen]:
    """A server after some of all kinds of calls."""
    result = seen(tmp_path_factory.mktemp("watched"), small_registry, loaded_redis, "--log-format", "json")
    with result.server, grpc.insecure_channel(result.server.target) as channel:
        call_all(channel)
        yield result


def call_all(channel: grpc.Channel) -> None:
    live = Live(channel)
    live.record(event(SECRET), event(SECRET, "nonsense\n"))
    live.stream([[event(SECRET)]])
    live.get(SECRET)
    live.score(KNOWN)
    # One that fails: a family whose counts are all zero has no samples.
    assert bytes_call(channel, f"/{SCORE}", asked_for("nobody")) is grpc.StatusCode.NOT_FOUND


def bytes_call(channel: grpc.Channel, path: str, request: bytes = b"", **more: Any) -> grpc.StatusCode:
    call: Any = channel.unary_unary(path)
    try:
        call(request, timeout=more.pop("timeout", PATIENCE_S), **more)
    except grpc.RpcError as error:
        result: Any = error
        return grpc.StatusCode(result.code())
    return grpc.StatusCode.OK


def asked_for(customer_id: str) -> bytes:
    return scoring_pb2.ScoreCustomerRequest(customer_id=customer_id).SerializeToString()


@pytest.mark.both_fronts
def test_every_call_is_counted_once_under_its_method_and_code(watched: Seen) -> None:
    before, latencies = watched.counts("tidemark_calls_total", "method", "code"), "tidemark_call_seconds_count"
    timed = watched.counts(latencies, "method")
    reasons, rows = (watched.counts(f"tidemark_{name}_total", label) for name, label in REASONS)
    ages = watched.counts("tidemark_feature_age_seconds_count")
    with (
        grpc.insecure_channel(watched.server.target) as channel,
        ScoringClient(watched.server.target, timeout_s=PATIENCE_S) as client,
    ):
        for _ in range(7):
            assert bytes_call(channel, f"/{SCORE}", asked_for(KNOWN)) is grpc.StatusCode.OK
        for _ in range(3):
            assert bytes_call(channel, f"/{SCORE}", asked_for(f"{SECRET}-unknown")) is grpc.StatusCode.NOT_FOUND
        assert bytes_call(channel, f"/{SCORE}", asked_for("")) is grpc.StatusCode.INVALID_ARGUMENT
        assert bytes_call(channel, f"/{SCORE}", b"\xff") is grpc.StatusCode.INVALID_ARGUMENT
        client.score_many([KNOWN, "20", f"{SECRET}-unknown", ""] + [KNOWN] * 300)
        for path in (f"/{SECRET}/Made", "/tidemark.v1.ScoringService/Up"):
            assert bytes_call(channel, path) is grpc.StatusCode.UNIMPLEMENTED
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
    expected = {
        (SCORE, "OK"): 7,
        (SCORE, "NOT_FOUND"): 3,
        (SCORE, "INVALID_ARGUMENT"): 2,
        (BATCH, "OK"): 1,
        ("unknown", "UNIMPLEMENTED"): 2,
    }
    assert watched.counts("tidemark_calls_total", "method", "code") - before == expected
    assert watched.counts(latencies, "method") - timed == {(SCORE,): 12, (BATCH,): 1, ("unknown",): 2}
    assert watched.counts("tidemark_errors_total", "reason") - reasons == {
        ("CUSTOMER_UNKNOWN",): 3,
        ("CUSTOMER_ID_INVALID",): 1,
        ("REQUEST_MALFORMED",): 1,
    }
    scored = 7 + 302
    assert watched.counts("tidemark_rows_total", "outcome") - rows == {
        ("scored",): scored,
        ("CUSTOMER_UNKNOWN",): 4,
        ("CUSTOMER_ID_INVALID",): 1,
    }
    assert watched.counts("tidemark_feature_age_seconds_count") - ages == {(): scored}


REASONS = (("errors", "reason"), ("rows", "outcome"))


def test_batches_stages_and_events_are_counted(watched: Seen) -> None:
    before = watched.counts("tidemark_stage_seconds_count", "stage")
    batches = watched.counts("tidemark_batch_rows_count")
    with grpc.insecure_channel(watched.server.target) as channel:
        for _ in range(5):
            assert bytes_call(channel, f"/{SCORE}", asked_for(KNOWN)) is grpc.StatusCode.OK
    stages = ("queue", "redis", "graph", "encode")
    assert watched.counts("tidemark_stage_seconds_count", "stage") - before == {(stage,): 5 for stage in stages}
    assert watched.counts("tidemark_batch_rows_count") - batches == {(): 5}
    events = watched.counts("tidemark_events_total", "outcome")
    assert events["accepted",] == 2
    assert events["EVENT_TYPE_INVALID",] == 1


def test_openmetrics_is_spoken_to_those_who_ask_for_it(watched: Seen) -> None:
    page = watched.page("application/openmetrics-text; version=1.0.0")
    assert page.endswith("# EOF\n")
    names = {family.name for family in openmetrics_families(page)}
    assert {name.removesuffix("_total") for name in watched.families()} == names


@pytest.mark.both_fronts
def test_the_reference_lists_what_is_exposed(watched: Seen, front: str) -> None:
    listed = {family.name: (family.kind, set(family.labels), family.help_text) for family in families()}
    exposed = watched.families()
    seen = {
        name: (
            family.type,
            {label for sample in family.samples for label in sample.labels} - {"worker", "le"},
            family.documentation,
        )
        for name, family in exposed.items()
    }
    assert all(family.samples for family in exposed.values())
    assert seen == {name: row for name, row in listed.items() if front == "lean" or name not in LEAN_ONLY}


def expressions() -> list[str]:
    targets = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    assert len(targets) > 20
    return targets


def selectors(expression: str) -> dict[str, set[str]]:
    """The metrics that an expression reads, each with the labels that it matches on or groups by; ValueError or not."""
    result: dict[str, set[str]] = defaultdict(set)

    def visit(node: promql_parser.Expr, grouped: Sequence[str] = ()) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            result[str(node.name)] |= {matcher.name for matcher in node.matchers.matchers} | set(grouped)
        elif isinstance(node, promql_parser.AggregateExpr) and node.modifier:
            promql_parser.walk(node.expr, partial(visit, grouped=node.modifier.labels))
        return True

    promql_parser.walk(promql_parser.parse(expression.replace("$__rate_interval", "5m")), visit)
    return result


@pytest.mark.both_fronts
def test_the_dashboard_reads_only_what_is_exposed(watched: Seen, front: str) -> None:
    labels = {
        sample.name: set(sample.labels) | OF_PROMETHEUS
        for family in watched.families().values()
        for sample in family.samples
    }
    labels |= {name: {"worker"} | OF_PROMETHEUS for name in LEAN_ONLY if front != "lean"}
    read = set()
    for expression in expressions():
        metrics = selectors(expression)
        assert metrics, expression
        for name, wanted in metrics.items():
            assert wanted <= labels[name], expression
        read |= {re.sub("_(bucket|sum|count)$", "", name) for name in metrics}
    unread = set(watched.families()) - read
    assert not unread, "metrics that no panel shows"


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    panels = DASHBOARD["panels"]
    ids = [panel["id"] for panel in panels]
    assert len(set(ids)) == len(ids)
    places: set[tuple[int, int]] = set()
    for panel in panels:
        box = panel["gridPos"]
        cells = {(x, y) for x in range(box["x"], box["x"] + box["w"]) for y in range(box["y"], box["y"] + box["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & places, panel["title"]
        places |= cells
        assert panel["title"]
    known = {variable["name"] for variable in DASHBOARD["templating"]["list"]} | {"__rate_interval", "__all"}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD))) <= known
    assert {legend for panel in panels for target in panel.get("targets", []) for legend in [target["legendFormat"]]}


def test_no_customer_is_in_metrics_or_log(watched: Seen) -> None:
    log = watched.server.log
    assert SECRET not in watched.page() + log
    lines = [json.loads(line) for line in log.splitlines()]
    assert {line["message"] for line in lines} >= {"health is SERVING"}
    assert [line["model"] for line in lines if "model" in line]


def test_calls_that_are_given_up_and_a_redis_that_is_away_are_told(
    own_redis: RedisProcess, small_registry: Path, tmp_path: Path
) -> None:
    result = seen(tmp_path, small_registry, own_redis.url, "--redis-timeout-s", "4")
    with result.server, grpc.insecure_channel(result.server.target) as channel:
        assert bytes_call(channel, f"/{SCORE}", asked_for(KNOWN)) is grpc.StatusCode.FAILED_PRECONDITION  # it is empty
        own_redis.pause()
        late = bytes_call(channel, f"/{SCORE}", asked_for(KNOWN), timeout=0.3)
        assert late is grpc.StatusCode.DEADLINE_EXCEEDED
        call: Any = channel.unary_unary(f"/{SCORE}")
        running = call.future(asked_for(KNOWN), timeout=PATIENCE_S)
        result.server.await_idle()  # it waits for Redis
        running.cancel()
        assert bytes_call(channel, f"/{SCORE}", asked_for(KNOWN), timeout=PATIENCE_S) is grpc.StatusCode.UNAVAILABLE
        result.server.wait_for("health is NOT_SERVING")
        codes = ("FAILED_PRECONDITION", "DEADLINE_EXCEEDED", "CANCELLED", "UNAVAILABLE")
        until(lambda: result.counts("tidemark_calls_total", "code") == {(code,): 1 for code in codes})
        assert result.counts("tidemark_serving") == {(): 0}
        assert result.counts("tidemark_errors_total", "reason")["FEATURE_STORE_UNAVAILABLE",] == 1
        assert result.counts("tidemark_breaker_open") == {(): 1}
        assert result.counts("tidemark_breaker_opened_total") == {(): 1}


def test_workers_are_asked_at_once_and_told_apart(loaded_redis: str, small_registry: Path, tmp_path: Path) -> None:
    result = seen(tmp_path, small_registry, loaded_redis, "--workers", "2")
    with result.server:
        result.server.wait_for("with 2 workers")
        calls = 0
        with contextlib.ExitStack() as stack:
            while len(result.counts("tidemark_calls_total", "worker")) < 2:  # until both have some of the connections
                channel = stack.enter_context(grpc.insecure_channel(result.server.target, ALONE))
                for _ in range(3):
                    assert bytes_call(channel, f"/{SCORE}", asked_for(KNOWN)) is grpc.StatusCode.OK
                calls += 3
        assert result.counts("tidemark_calls_total", "method", "code") == {(SCORE, "OK"): calls}
        assert result.counts("tidemark_workers") == {(): 2}
        assert set(result.counts("tidemark_model_info", "worker")) == {("0",), ("1",)}
        assert result.server.stop() == 0


def test_explanations_stale_scores_and_changes_of_the_model_are_counted(
    registry: Path, own_redis: RedisProcess, call: Call, shop: Shop, tmp_path: Path
) -> None:
    done = call(feature_store_cli, "load", shop.config, "--registry", registry, "--redis", own_redis.url)
    assert done.code == 0, done.err
    options = ("--registry-interval-s", "0.05", "--stale-cache-bytes", "100000")
    result = seen(tmp_path, registry, own_redis.url, *options)
    with (
        result.server,
        ScoringClient(result.server.target, timeout_s=PATIENCE_S) as client,
        grpc.insecure_channel(result.server.target) as to,
    ):
        models = Models(to)
        first = str(models.serving().version)
        assert result.counts("tidemark_model_info", "version", "role") == {(first, "active"): 1}
        client.score("c0001", explain=True)
        assert result.counts("tidemark_explained_total") == {(): 1}
        assert result.counts("tidemark_stage_seconds_count", "stage")["explain",] == 1
        models.roll_out(shadow=republished(registry, activate=False))
        client.score("c0001")
        until(lambda: result.counts("tidemark_shadow_rows_total", "outcome")["compared",] == 1)
        assert result.counts("tidemark_model_info", "role") == {("active",): 1, ("shadow",): 1}
        bad, later = (republished(registry, activate=False) for _ in range(2))
        (registry / bad / bundle.MODEL_FILE).write_bytes(b"torn")
        bundle.set_link(registry, bundle.CURRENT, bad)
        until(lambda: result.counts("tidemark_model_refusals_total") == {(): 1})
        bundle.set_link(registry, bundle.CURRENT, later)
        until(lambda: result.counts("tidemark_model_switches_total") == {(): 1})
        assert result.counts("tidemark_model_info", "version", "role")[later, "active"] == 1
        client.score("c0001")
        until(lambda: result.counts("tidemark_recent_states") == {(): 1})  # each model has its own cache
        own_redis.kill()
        until(lambda: result.counts("tidemark_breaker_open") == {(): 1})
        assert client.score("c0001", allow_stale=timedelta(minutes=1)).stale
        assert result.counts("tidemark_stale_total") == {(): 1}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_port_in_use_is_one_line(small_registry: Path, run_service: Run, workers: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        options = ["--registry", small_registry, "--redis", "redis://127.0.0.1:1", "--port", "0"]
        ended = run_service(*options, "--metrics-port", port, "--workers", workers)
    assert ended.is_bad_input, ended
    assert f"127.0.0.1:{port} for metrics" in ended.err


def test_an_error_of_the_client_is_the_same_with_metrics(watched: Seen) -> None:
    with (
        ScoringClient(watched.server.target, timeout_s=PATIENCE_S) as client,
        pytest.raises(CallFailedError, match="CUSTOMER_UNKNOWN"),
    ):
        client.score(f"{SECRET}-unknown")
