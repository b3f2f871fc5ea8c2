"""``tidemark demo``, or ``make run``: from a config to first answers by the commands that a user would type.

Trains unless the registry has a bundle, embeds Redis unless one is given, loads the features, archives live events,
serves, calls the server with the Python client, and goes on serving until Ctrl-C or SIGTERM. The embedded Redis keeps
its data beside the registry, so that events that were sent are there the next time.

::

    fit ─► bundle ─► load ─► archive, serve ─► ten answers ─► serve until Ctrl-C
      └─► evidence and report, meanwhile
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
from feature_store.online.state_writer import StateWriter
from feature_store.state.layout import StateLayout
from tidemark import Alert, CustomerClient, Event, EventClient, Problem, Score, ScoringClient

SHOWN_CUSTOMERS: Final = 10
VIEWS: Final = 3
START_TIMEOUT_S: Final = 120.0
POLL_S: Final = 0.2
REPORT: Final = "report.html"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("config")
@click.option("--registry", required=True, type=click.Path(path_type=Path), help="Folder of bundles.")
@click.option(
    "--redis", "url", metavar="URL", envvar="REDIS_URL", help="Your Redis, or REDIS_URL [default: an embedded one]."
)
@click.option(
    "--port",
    envvar="TIDEMARK_PORT",
    default=50051,
    show_default=True,
    type=click.IntRange(1, 65535),
    help="Port of the server.",
)
def demo(config: str, registry: Path, url: str | None, port: int) -> None:
    """Train on CONFIG unless there is a bundle, load Redis, serve, and show the first answers.

    CONFIG is a TOML file or the name of a built-in one, for example complete_journey.
    """
    for number in (signal.SIGTERM, signal.SIGINT):  # SIGINT too: a background job inherits it ignored
        signal.signal(number, _interrupt)
    _check_free(port)
    start = time.monotonic()
    console = Console()
    with ExitStack() as stack:
        stack.enter_context(_bundle_in(console, config, registry))
        archive = []
        if url is None:
            data = registry.parent / "redis"
            url = stack.enter_context(_announced_redis(console, data))
            archive = ["--archive", str(data / "archive")]
        load = ["load", config, "--registry", str(registry), "--shift-to-now", *archive]
        with _timed(console, "loaded Redis"):
            _run(_announced(console, url, *load), url)
        if archive:
            stack.enter_context(_process(_announced(console, url, "archive", "--folder", archive[1]), url))
        with _timed(console, "started the server"):
            serve = _announced(console, url, "serve", "--registry", str(registry), "--port", str(port))
            server = stack.enter_context(_process(serve, url))
            _await_serving(server, port)
        _show_answers(console, registry, url, port)
        _show_events(console, f"127.0.0.1:{port}")
        _say(console, f"first answers after {time.monotonic() - start:.1f} s; serving on 127.0.0.1:{port} until Ctrl-C")
        try:
            code = server.wait()
        except KeyboardInterrupt:
            return
    raise InputError(f"the server has ended unexpectedly with exit code {code}")


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def _timed(console: Console, done: str) -> Iterator[None]:
    """Print a line with the time of a step when it has finished."""
    start = time.monotonic()
    yield
    _say(console, f"{done} in {time.monotonic() - start:.1f} s")


@contextmanager
def _bundle_in(console: Console, config: str, registry: Path) -> Iterator[None]:
    """Have a bundle to serve. If one has to be fitted, its evidence and report are made while the block runs.

    The fit of a bundle without a report was stopped before it had made one. It is served, and fitted again meanwhile.
    """
    train = "fit", config, "--registry", str(registry)
    if (current := _current(registry)) is not None:
        version = current.manifest.version
        if (registry / version / REPORT).exists():
            _say(console, f"using bundle {version} in {registry}: no training needed")
            yield
            return
        _say(console, f"using bundle {version} in {registry}. It has no report, because its fit was stopped early:")
        with _process(_announced(console, None, *train), None, signal.SIGINT, stdout=subprocess.DEVNULL):
            _say(console, f"the report will be {registry / bundle.CURRENT / REPORT}; it is made while the server runs")
            yield
        return
    command = _announced(console, None, *train, "--evidence-later")
    # Stopped by SIGINT, so that it ends its workers, removes unfinished files and restores the terminal.
    with _process(command, None, signal.SIGINT) as fit:
        with _timed(console, "trained a bundle"):
            while _current(registry) is None:
                if (code := fit.poll()) is not None and _current(registry) is None:
                    sys.exit(code)  # it has printed why
                time.sleep(POLL_S)
            time.sleep(POLL_S)  # until it has printed the name of the bundle
        _say(
            console,
            f"the report will be {registry / bundle.CURRENT / REPORT}; it is made while the server starts",
        )
        yield


def _current(registry: Path) -> bundle.Bundle | None:
    try:
        return bundle.read(registry)
    except bundle.BundleError:
        return None


@contextmanager
def _announced_redis(console: Console, data: Path) -> Iterator[str]:
    with embedded_redis(data=data) as url:
        _say(console, f"embedded Redis at {url} (data in {data})")
        yield url


def _check_free(port: int) -> None:
    """Refuse a port that is taken before anything else is done."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        raise InputError(f"port {port} is taken: choose another one with --port (make run PORT=…)") from error


def _announced(console: Console, url: str | None, *arguments: str) -> list[str]:
    """A command of ours, printed as a user would type it; a password in the URL is not printed."""
    redis = ["--redis", re.sub(r"//[^/@]*@", "//…@", url)] if url else []
    line = shlex.join(["tidemark", *arguments]) + "".join(f" {word}" for word in redis)
    console.print(f"$ {line}", style="bold", highlight=False, markup=False, soft_wrap=True)
    return [sys.executable, "-P", "-m", "service.cli", *arguments]


def _environment(url: str | None) -> dict[str, str]:
    """Tells the commands where Redis is: not in their arguments, which everybody on the machine can read."""
    return {**os.environ, "REDIS_URL": url, "TIDEMARK_REDIS": url} if url else dict(os.environ)


def _run(command: list[str], url: str | None) -> None:
    """Run a command; if it fails, it has printed why."""
    code = subprocess.run(command, env=_environment(url), check=False).returncode  # noqa: S603  # our own
    if code:
        sys.exit(code)


@contextmanager
def _process(
    command: list[str], url: str | None, stop: signal.Signals = signal.SIGTERM, stdout: int | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process during the block, and stop it with a signal afterwards."""
    # In a separate session: Ctrl-C reaches this process, which then stops fit, server, archiver and Redis in order.
    process = subprocess.Popen(command, env=_environment(url), start_new_session=True, stdout=stdout)  # noqa: S603  # our own
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
                sys.exit(server.returncode)  # it has printed why
            try:
                reply = health.Check(health_pb2.HealthCheckRequest(), timeout=0.5, wait_for_ready=True)
            except grpc.RpcError:
                continue
            if reply.status == health_pb2.HealthCheckResponse.SERVING:
                return
            time.sleep(0.05)
    raise InputError(f"the server did not become healthy within {START_TIMEOUT_S:.0f} s")


def _show_answers(console: Console, registry: Path, url: str, port: int) -> None:
    """Score all customers, and show ten of them, from far below to far above their churn threshold."""
    manifest = bundle.read(registry).manifest
    with StateWriter(url, StateLayout(manifest.features)) as redis:
        ids = sorted(redis.customer_ids())
    with ScoringClient(f"127.0.0.1:{port}", timeout_s=10.0) as client:
        start = time.perf_counter()
        results = client.score_many(ids)
        all_s = time.perf_counter() - start
        scores = sorted((r for r in results if not isinstance(r, Problem)), key=_churn_margin)
        chosen = [scores[round(i * (len(scores) - 1) / (SHOWN_CUSTOMERS - 1))] for i in range(SHOWN_CUSTOMERS)]
        start = time.perf_counter()
        answers = [client.score(score.customer_id) for score in chosen]
        each_s = (time.perf_counter() - start) / len(answers)
    console.print(_table(answers))
    _say(
        console,
        f"{len(scores):,} customers scored in {all_s:.2f} s, one in {each_s * 1e3:.1f} ms; model {manifest.version}",
    )


def _show_events(console: Console, target: str) -> None:
    """Let a visitor view an item and buy it, show how the score changes at once, and delete the visitor."""
    visitor = f"visitor-{uuid.uuid4().hex[:6]}"
    with ScoringClient(target) as scores, EventClient(target) as events, CustomerClient(target) as customers:
        views = [Event(visitor, "view", item_id="running-shoe", channel="web") for _ in range(VIEWS)]
        events.record([Event(visitor, "visit", channel="web"), *views])
        before = scores.score(visitor)
        start = time.perf_counter()
        events.record([Event(visitor, "purchase", amount=80.0, item_id="running-shoe", channel="app")])
        after = scores.score(visitor)
        took_s = time.perf_counter() - start
        customers.delete(visitor)
    item = before.top_interest.item_id if before.top_interest else "nothing"
    repeated = "yes" if before.propensity.repeated_view else "no"
    _say(
        console,
        f"{visitor} views {item} {VIEWS} times (repeated view: {repeated}) and "
        f"then buys it: the purchase propensity goes from {before.propensity.probability:.3f} to "
        f"{after.propensity.probability:.3f} and the expected spend from {before.expected_spend:.2f} to "
        f"{after.expected_spend:.2f}, {took_s * 1e3:.1f} ms later; then the visitor is deleted",
    )


def _churn_margin(score: Score) -> float:
    return score.churn.probability - score.churn.threshold


def _table(scores: list[Score]) -> Table:
    title = "Ten customers, from far below to far above their per-customer churn threshold"
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
