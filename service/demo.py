"""``make run``: everything from a config to first answers, by the same commands that a user would type, then serve.

Trains if the registry has no usable bundle, embeds Redis unless given one, loads the features, archives live events,
serves, calls the server with the real clients, and goes on serving until Ctrl-C or SIGTERM. The embedded Redis keeps
what it has beside the registry, so that events that were sent are there the next time.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

import click
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rich import box
from rich.console import Console
from rich.table import Table

from feature_store.bundles import bundle
from feature_store.cli import run_cli
from feature_store.embedded_redis import embedded_redis
from feature_store.errors import InputError
from feature_store.online.store import StateWriter
from feature_store.state.layout import StateLayout
from tidemark import Alert, CustomerClient, Event, EventClient, Problem, Score, ScoringClient

SHOWN: Final = 10
LOOKS: Final = 3
START_TIMEOUT_S: Final = 120.0
POLL_S: Final = 0.2


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("config")
@click.option("--registry", required=True, type=click.Path(path_type=Path), help="Folder of bundles.")
@click.option(
    "--redis", "url", envvar="REDIS_URL", help="A Redis of your own, or REDIS_URL [default: an embedded one]."
)
@click.option("--port", default=50051, show_default=True, type=click.IntRange(1, 65535))
def demo(config: str, registry: Path, url: str | None, port: int) -> None:
    """Train if need be, load Redis, serve, and show the first answers."""
    for number in (signal.SIGTERM, signal.SIGINT):  # SIGINT too: a background job inherits it ignored
        signal.signal(number, _interrupt)
    _check_free(port)
    console = Console()
    with ExitStack() as stack:
        stack.enter_context(_bundle_in(console, config, registry))
        archive = []
        if url is None:
            data = registry.parent / "redis"
            url = stack.enter_context(_announced_redis(console, data))
            archive = ["--archive", str(data / "archive")]
        load = ["feature_store", "load", config, "--registry", str(registry), "--shift-to-now", *archive]
        _run(_shown(console, url, *load), url)
        if archive:
            keep = _shown(console, url, "feature_store", "archive", "--folder", archive[1])
            stack.enter_context(_process(keep, url))
        serve = _shown(console, url, "service", "--registry", str(registry), "--port", str(port))
        server = stack.enter_context(_process(serve, url))
        _await_serving(server, port)
        _show_answers(console, registry, url, port)
        _show_events(console, f"127.0.0.1:{port}")
        console.print(f"serving on 127.0.0.1:{port} until Ctrl-C", highlight=False)
        try:
            code = server.wait()
        except KeyboardInterrupt:
            return
    raise InputError(f"the server ended by itself with code {code}")


@contextmanager
def _bundle_in(console: Console, config: str, registry: Path) -> Iterator[None]:
    """A bundle to serve. Where one has to be fitted, its evidence and report are made while the block runs."""
    if (found := _current(registry)) is not None:
        console.print(f"found bundle {found.manifest.version} in {registry}: no training needed", highlight=False)
        yield
        return
    command = ["training", "fit", config, "--registry", str(registry), "--evidence-later"]
    # By Ctrl-C, so that it ends its workers, removes what is half written and leaves the terminal as it was.
    with _process(_shown(console, None, *command), None, signal.SIGINT) as fit:
        while _current(registry) is None:
            if (code := fit.poll()) is not None and _current(registry) is None:
                sys.exit(code)  # it has said why
            time.sleep(POLL_S)
        yield


def _current(registry: Path) -> bundle.Bundle | None:
    try:
        return bundle.read(registry)
    except bundle.BundleError:
        return None


@contextmanager
def _announced_redis(console: Console, data: Path) -> Iterator[str]:
    with embedded_redis(data=data) as url:
        console.print(f"embedded Redis at {url} (data in {data})", highlight=False)
        yield url


def _check_free(port: int) -> None:
    """Refuse a port that is taken before anything is done, not after."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        raise InputError(f"port {port} is taken: choose another one with --port (make run PORT=…)") from error


def _shown(console: Console, url: str | None, *command: str) -> list[str]:
    """One of our commands, printed as a user would type it; a password in the URL is not printed."""
    redis = ["--redis", re.sub(r"//[^/@]*@", "//…@", url)] if url else []
    line = shlex.join(["python", "-m", *command]) + "".join(f" {word}" for word in redis)
    console.print(f"$ {line}", style="bold", highlight=False, soft_wrap=True)
    return [sys.executable, "-P", "-m", *command]


def _environment(url: str | None) -> dict[str, str]:
    """Where the commands find Redis: not in their arguments, which everybody on the machine can read."""
    return {**os.environ, "REDIS_URL": url, "TIDEMARK_REDIS": url} if url else dict(os.environ)


def _run(command: list[str], url: str | None) -> None:
    """Run a command; its own error line is enough if it fails."""
    code = subprocess.run(command, env=_environment(url), check=False).returncode  # noqa: S603  # our own
    if code:
        sys.exit(code)


@contextmanager
def _process(
    command: list[str], url: str | None, stop: signal.Signals = signal.SIGTERM
) -> Iterator[subprocess.Popen[bytes]]:
    # A session of its own: Ctrl-C reaches this process, which then stops fit, server, archiver and Redis in order.
    process = subprocess.Popen(command, env=_environment(url), start_new_session=True)  # noqa: S603  # our own
    try:
        yield process
    finally:
        process.send_signal(stop)
        process.wait()


def _await_serving(server: subprocess.Popen[bytes], port: int) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if server.poll() is not None:
                sys.exit(server.returncode)  # it has said why
            try:
                reply = health.Check(health_pb2.HealthCheckRequest(), timeout=0.5, wait_for_ready=True)
            except grpc.RpcError:
                continue
            if reply.status == health_pb2.HealthCheckResponse.SERVING:
                return
            time.sleep(0.05)
    raise InputError("the server did not become healthy in time")


def _show_answers(console: Console, registry: Path, url: str, port: int) -> None:
    """Score everybody, and show ten customers spread from far below to far above their own churn threshold."""
    manifest = bundle.read(registry).manifest
    with StateWriter(url, StateLayout(manifest.features)) as redis:
        ids = sorted(redis.customer_ids())
    with ScoringClient(f"127.0.0.1:{port}", timeout_s=10.0) as client:
        start = time.perf_counter()
        results = client.score_many(ids)
        took = time.perf_counter() - start
        scores = sorted((r for r in results if not isinstance(r, Problem)), key=_churn_margin)
        chosen = [scores[round(i * (len(scores) - 1) / (SHOWN - 1))] for i in range(SHOWN)]
        start = time.perf_counter()
        answers = [client.score(score.customer_id) for score in chosen]
        each = (time.perf_counter() - start) / len(answers)
    console.print(_table(answers))
    console.print(
        f"{len(scores):,} customers scored in {took:.2f} s, one in {each * 1e3:.1f} ms; model {manifest.version}",
        highlight=False,
        soft_wrap=True,
    )


def _show_events(console: Console, target: str) -> None:
    """Let a visitor look at something and buy it, show what that changes at once, and forget the visitor again."""
    visitor = f"visitor-{uuid.uuid4().hex[:6]}"
    with ScoringClient(target) as scores, EventClient(target) as events, CustomerClient(target) as customers:
        looks = [Event(visitor, "view", item_id="running-shoe", channel="web") for _ in range(LOOKS)]
        events.record([Event(visitor, "visit", channel="web"), *looks])
        before = scores.score(visitor)
        start = time.perf_counter()
        events.record([Event(visitor, "purchase", amount=80.0, item_id="running-shoe", channel="app")])
        after = scores.score(visitor)
        took = time.perf_counter() - start
        customers.delete(visitor)
    console.print(
        f"{visitor} looks {LOOKS} times at {before.top_interest.item_id if before.top_interest else 'nothing'} "
        f"(repeated view: {'yes' if before.propensity.repeated_view else 'no'}), then buys it: propensity "
        f"{before.propensity.probability:.3f}, then {after.propensity.probability:.3f}, expected spend "
        f"{before.expected_spend:.2f}, then {after.expected_spend:.2f}, in {took * 1e3:.1f} ms; forgotten again",
        highlight=False,
        soft_wrap=True,
    )


def _churn_margin(score: Score) -> float:
    return score.churn.probability - score.churn.threshold


def _table(scores: list[Score]) -> Table:
    title = "Ten customers, from far below to far above the churn threshold of their own"
    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for heading in ("customer", "churn", "threshold", "alert", "propensity", "threshold", "alert", "expected spend"):
        table.add_column(heading, justify="right")
    for score in scores:
        table.add_row(score.customer_id, *_cells(score.churn), *_cells(score.propensity), f"{score.expected_spend:.2f}")
    return table


def _cells(alert: Alert) -> tuple[str, str, str]:
    return f"{alert.probability:.3f}", f"{alert.threshold:.3f}", "act" if alert.alert else "-"


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    run_cli(demo, "tidemark demo")
